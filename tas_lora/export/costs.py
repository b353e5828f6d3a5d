"""Parameters and FLOPs of an exported network, by torch's own counter and by ours."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.plain_vit import PlainViT
from .source import Source


def sizes(source: Source) -> dict[str, float]:
    """Parameters, and bytes of their file.

    Returns:
        'ours', of ``count_params``; 'module', of the tensors in use; 'file_bytes', and
        'file_vs_params', these over 4 bytes for each parameter.
    """
    module = sum(parameter.numel() for parameter in source.net.parameters())
    file = Path(source.folder, 'weights.safetensors').stat().st_size
    ours = source.description['params']
    return dict(ours=ours, module=module, file_bytes=file, file_vs_params=file / (4 * ours))


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
