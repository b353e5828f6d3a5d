"""Parameters and FLOPs of an exported network, by torch's own counter and by ours."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..export.source import Source
from ..models.plain_vit import PlainViT
from ..search.complexity import count_flops, count_params
from ..structures import Subnet


def convention(network: dict) -> dict[str, float]:
    """'params' and 'flops' of a network by AutoFormer's convention, which limits and tables follow.

    Args:
        network: Arguments of ``PlainViT``.
    """
    width, spec = network['embed_dim'], dict(network)
    for name in ('embed_dim', 'num_heads', 'hidden_dims', 'pooling'):
        spec.pop(name)
    ratios = [(hidden + 0.5) / width for hidden in network['hidden_dims']]  # which are truncated
    subnet = Subnet(width, network['num_heads'], ratios)
    return dict(params=count_params(subnet, **spec), flops=count_flops(subnet, **spec))


def check_costs(source: Source) -> None:
    """Compare what ``architecture.json`` says of costs with what they are.

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


def sizes(source: Source) -> dict[str, float]:
    """Parameters, and bytes of their file.

    Returns:
        'ours', of ``count_params``; 'module', of the tensors in use; 'file_bytes', and of these
        'header_bytes', in which safetensors keeps names and shapes; 'file_vs_params', the whole
        file over 4 bytes for each parameter, and 'data_vs_params', the same without the header,
        which counts in small networks.
    """
    module = sum(parameter.numel() for parameter in source.net.parameters())
    path = Path(source.folder, 'weights.safetensors')
    file, ours = path.stat().st_size, convention(source.network)['params']
    with path.open('rb') as content:  # the header, behind 8 bytes that tell its length
        header = 8 + int.from_bytes(content.read(8), 'little')
    return dict(
        ours=ours,
        module=module,
        file_bytes=file,
        header_bytes=header,
        file_vs_params=file / (4 * ours),
        data_vs_params=(file - header) / (4 * ours),
    )


def counted_flops(net: PlainViT, network: dict) -> float:
    """Multiply-accumulates of one image as torch counts them: those of matrix products alone.

    On the meta device, where attention is made of such products, whatever kernel a CPU or GPU
    takes for it.
    """
    with torch.device('meta'):
        net = PlainViT(**network)
        images = torch.empty(1, network['in_channels'], network['img_size'], network['img_size'])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return counter.get_total_flops() / 2


def flops_reasons(net: PlainViT, network: dict) -> dict[str, float]:
    """Why AutoFormer's convention, ``count_flops``, differs from :func:`counted_flops`.

    Returns:
        Multiply-accumulates that the convention has more, by reason; their sum is the difference.
    """
    C, D = network['embed_dim'], network['head_dim']
    R, classes = network['max_relative_position'], network['num_classes']
    patches = (network['img_size'] // network['patch_size']) ** 2
    N, T = patches + 1, patches + 2  # tokens there are, and that the convention counts
    blocks = list(zip(network['num_heads'], network['hidden_dims'], strict=True))
    inner = sum(heads for heads, _ in blocks) * D
    hidden, depth = sum(hidden for _, hidden in blocks), len(blocks)
    lines, offsets = net.grid.marks.shape[1], net.grid.to_line.shape[1]
    positions = 2 * N * N * inner // D * lines + 2 * N * inner * offsets
    formula = depth * (2 * R * T * T + T * T / 2) + T * inner / 2
    return {
        'the classifier is counted for every token, and used for one': patches * C * classes,
        'linear layers are counted for one token more': 4 * inner * C + 2 * C * hidden,
        'attention is counted for one token more': 2 * (T * T - N * N) * inner,
        'relative positions follow a formula, and are computed otherwise': formula - positions,
        'norms and sums are counted, where torch counts products alone': (
            C + N * C / 2 + depth * 2 * T * C
        ),
    }
