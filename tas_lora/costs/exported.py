"""What an exported network costs: parameters, multiply-adds by two counts, memory and latency."""

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
from ..models.plain_vit import PlainViT
from ..search.complexity import count_flops, count_params
from ..structures import Subnet
from .deployed import Deployed, latency_of

RUNTIMES = ('torch', 'compiled', 'onnx')


def convention(network: dict) -> dict[str, float]:
    """'params' and 'flops' of a network by AutoFormer's convention, which limits and tables follow.

    Args:
        network: Arguments of ``PlainViT``.
    """
    subnet, spec = _as_subnet(network)
    return dict(params=count_params(subnet, **spec), flops=count_flops(subnet, **spec))


def check_costs(source: Source) -> None:
    """Compare the costs that ``architecture.json`` states with those of the network.

    Raises:
        UserError: If they differ.
    """
    for name, counted in convention(source.network).items():
        said = source.description.get(name)
        if type(said) not in (int, float) or said != counted:
            raise UserError(
                f'{source.folder}/architecture.json: {name} is {said!r:.50}, the network has '
                f'{counted:,.0f}; the file was edited: export again'
            )


def counted_flops(network: dict) -> float:
    """Multiply-adds of one image as torch counts them: those of matrix products alone.

    AutoFormer's convention, ``count_flops``, differs: it counts norms and sums too, the classifier
    for every token, one token more in each block, and a formula for relative positions in place of
    the products that compute them. On the meta device attention is made of plain products, whatever
    kernel a CPU or GPU has for it. torch's counter takes a multiply-add for 2, hence the half.

    Args:
        network: Arguments of ``PlainViT``.
    """
    with torch.device('meta'):
        net = PlainViT(**network)
        images = torch.empty(1, network['in_channels'], network['img_size'], network['img_size'])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return counter.get_total_flops() / 2


def measure(
    source: Source, runtimes: Sequence[str], device: str, batch_size: int, rounds: int
) -> dict[str, dict]:
    """What a forward of one batch of noise takes, in the figures of ``val_cfg.measure``.

    Args:
        source: The export.
        runtimes: Of :data:`RUNTIMES`; ONNX Runtime is for CPUs.
        device: 'cpu' or 'cuda'.
        batch_size: Images in the batch.
        rounds: Forwards that are timed.

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
    for name in ('embed_dim', 'num_heads', 'hidden_dims', 'pooling'):
        spec.pop(name)
    ratios = [(hidden + 0.5) / width for hidden in network['hidden_dims']]  # which are truncated
    return Subnet(width, network['num_heads'], ratios), spec
