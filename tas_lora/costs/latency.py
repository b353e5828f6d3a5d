"""How long exported networks take, in several runtimes, beside a plain ViT of the same widths."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..errors import blame
from ..export import onnx
from .timing import interleave, milliseconds, ratio

RUNTIMES = ('torch', 'compiled', 'onnx')


def timm_vit(network: Mapping) -> nn.Module:
    """timm's vision transformer with the widths of each block of a ``PlainViT``.

    Args:
        network: Arguments of that.
    """
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import VisionTransformer

    width = network['embed_dim']
    model = VisionTransformer(
        img_size=network['img_size'],
        patch_size=network['patch_size'],
        in_chans=network['in_channels'],
        num_classes=network['num_classes'],
        global_pool='token' if network['pooling'] == 'cls_token' else 'avg',
        embed_dim=width,
        depth=len(network['num_heads']),
        num_heads=1,
    )
    widths = zip(model.blocks, network['num_heads'], network['hidden_dims'], strict=True)
    for block, heads, hidden in widths:
        block.attn = Attention(width, heads, attn_head_dim=network['head_dim'], qkv_bias=True)
        block.mlp = Mlp(width, hidden)
    return model.eval()


@torch.no_grad()
def measure(
    nets: Mapping[str, nn.Module],
    images: Tensor,
    runtimes: Sequence[str] = RUNTIMES,
    rounds: int = 20,
) -> dict[str, dict]:
    """Time of one forward of a batch, all networks in all runtimes in turn.

    Args:
        nets: By name, in evaluation mode.
        images: The batch, on the device of the networks; ONNX Runtime is for CPUs.
        runtimes: Of :data:`RUNTIMES`.
        rounds: How often.

    Returns:
        For each runtime and network 'median' and 'spread' in ms, and under 'versus' the ratio
        of the first network to each other one, within rounds.
    """
    with TemporaryDirectory() as folder:
        jobs = {
            (runtime, name): _job(runtime, net, images, Path(folder, f'{name}.onnx'))
            for runtime in runtimes
            for name, net in nets.items()
        }
        seconds = interleave(jobs, rounds, images.device.type)
    first, *others = nets
    return {
        runtime: {
            **{name: milliseconds(seconds[runtime, name]) for name in nets},
            'versus': {
                name: ratio(seconds[runtime, first], seconds[runtime, name]) for name in others
            },
        }
        for runtime in runtimes
    }


def _job(runtime: str, net: nn.Module, images: Tensor, path: Path) -> Callable[[], object]:
    if runtime == 'torch':
        return partial(net, images)
    if runtime == 'compiled':
        compiled = torch.compile(net, dynamic=False)
        with blame('the network cannot be compiled'):
            compiled(images)
        return partial(compiled, images)
    onnx.save(net, images, path)
    session = onnx.open_session(path)
    return partial(session.run, None, dict(images=images.numpy()))
