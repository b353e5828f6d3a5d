"""Costs of an exported network: parameters, multiply-adds by two counts, memory and latency."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError, blame
from ..export import onnx
from ..export.source import Source
from ..models.export import PLAIN_STYLE
from ..models.plain_vit import PlainViT
from ..search.complexity import count_flops, count_params
from ..structures import Subnet, ViTStyle, ratio_of
from .deployed import Deployed, latency_of

RUNTIMES = ('torch', 'compiled', 'onnx')


def convention(network: dict) -> dict[str, float]:
    """'params' and 'flops' of a ``PlainViT`` as a search counts them."""
    subnet, spec = _as_subnet(network)
    return dict(params=count_params(subnet, **spec), flops=count_flops(subnet, **spec))


def check_costs(source: Source) -> None:
    """Compare the costs in ``architecture.json`` with those of the network.

    Raises:
        UserError: If they differ.
    """
    for name, counted in convention(source.network).items():
        stated = source.description.get(name)
        if type(stated) not in (int, float) or stated != counted:
            raise UserError(
                f'{source.folder}/architecture.json: {name} is {stated!r:.50}, but the network has '
                f'{counted:,.0f}; the file was edited: export again'
            )


def counted_flops(network: dict) -> float:
    """Multiply-adds of one image in the matrix products of a ``PlainViT``, by torch's counter.

    It is ``count_flops`` of networks without relative positions. For others that follows
    AutoFormer's convention: it also counts norms and sums, the classifier for every token, and one
    more token in each block, and uses a formula in place of the products of the positions. On the
    meta device torch counts attention as plain products, whatever kernel a CPU or GPU would use.
    """
    with torch.device('meta'):
        net = PlainViT(**network)
        images = torch.empty(1, network['in_channels'], network['img_size'], network['img_size'])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return counter.get_total_flops() / 2  # which counts a multiply-add as 2


def measure(
    source: Source, runtimes: Sequence[str], device: str, batch_size: int, rounds: int
) -> dict[str, dict]:
    """Measure a forward of one batch of noise, as ``val_cfg.measure`` does in a search.

    ``runtimes`` are names in :data:`RUNTIMES`; 'onnx' only runs on CPUs.

    Returns:
        For each runtime :func:`~tas_lora.costs.deployed.latency_of`; for 'torch' also ``memory``.

    Raises:
        UserError: If a runtime fails.
    """
    net, images = source.net.to(device), source.random_images(batch_size).to(device)
    found = {}
    with TemporaryDirectory() as folder:
        for runtime in runtimes:
            with blame(f'{runtime} cannot run a batch of {batch_size} on {device}'):
                forward = _forward(runtime, net, images, Path(folder, onnx.FILE))
                found[runtime] = latency_of(forward, device, rounds=rounds)
    if 'torch' in found:
        subnet, spec = _as_subnet(source.network)
        deployed = Deployed(spec, source.network['pooling'], device, batch_size)
        found['torch'] |= deployed.memory(subnet)
    return found


def _forward(runtime: str, net: PlainViT, images: Tensor, path: Path) -> Callable[[], object]:
    if runtime != 'onnx':
        return partial(torch.compile(net, dynamic=False) if runtime == 'compiled' else net, images)
    onnx.save(net, images, path)
    return partial(onnx.open_session(path).run, None, dict(images=images.numpy()))


def _as_subnet(network: dict) -> tuple[Subnet, dict]:
    """A subnet of the same widths, and the other arguments of the counters."""
    width, spec = network['embed_dim'], dict(network)
    hidden, heads = spec.pop('hidden_dims'), spec.pop('num_heads')
    style = {name: spec.pop(name) for name in PLAIN_STYLE if name in spec}
    parts = 2 if spec.pop('pooling') == 'cls_avg' else 1
    del spec['embed_dim']
    subnet = Subnet(width, heads, [ratio_of(each, width) for each in hidden])
    return subnet, spec | dict(style=ViTStyle(**style), feature_parts=parts)
