"""The ONNX file with 8-bit weights, and what that costs in accuracy."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, blame
from . import onnx
from .source import Source


def quantise(folder: Path) -> Path:
    """Write ``model_int8.onnx`` next to ``model.onnx``, with 8-bit weights in linear layers.

    Inputs of linear layers are quantised on the fly. The patch embedding stays in float32.

    Returns:
        Path of the new file.

    Raises:
        UserError: If ONNX Runtime fails; no partial file is left.
    """
    import onnx as onnx_files
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, small = folder / onnx.FILE, folder / 'model_int8.onnx'
    unfinished = small.with_suffix('.tmp')
    with onnx.quiet(), blame(f'{whole} cannot be quantised'):
        model = onnx_files.load(whole)
        # Some ONNX Runtimes transpose weights, but not their recorded shapes.
        model.graph.ClearField('value_info')
        try:
            quantize_dynamic(
                model,
                unfinished,
                op_types_to_quantize=['MatMul', 'Gemm'],  # not every build has an 8-bit convolution
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            unfinished.replace(small)
        finally:
            unfinished.unlink(missing_ok=True)
    return small


def compare(source: Source, folder: Path, small: Path) -> str:
    """Compare size and logits of the two files on 64 random images; returns one line."""
    images = source.random_images()
    before, after = (onnx.run(folder, [images], name)[0] for name in (onnx.FILE, small.name))
    difference = float((before - after).abs().max() / before.std())
    agreed = int((before.argmax(1) == after.argmax(1)).sum())
    share = small.stat().st_size / (folder / onnx.FILE).stat().st_size
    return (
        f'Quantised to {small}: {share:.0%} of the size; on 64 random images logits differ by at '
        f'most {difference:.1e} of their standard deviation, {agreed} have the same top class'
    )


def compare_top1(
    folder: Path, small: Path, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Top-1 accuracy of both files.

    Args:
        folder: Folder of ``model.onnx``.
        small: Path of the quantised file.
        batches: Normalised images and labels.

    Returns:
        'float32' and 'int8' in percent, and 'images', their number.

    Raises:
        UserError: If there are no images.
    """
    sessions = dict(float32=onnx.open_session(folder / onnx.FILE), int8=onnx.open_session(small))
    right, count = dict.fromkeys(sessions, 0), 0
    for images, labels in batches:
        count += len(labels)
        for name, session in sessions.items():
            logits = torch.from_numpy(session.run(None, dict(images=images.numpy()))[0])
            right[name] += int((logits.argmax(1) == labels).sum())
    if not count:
        raise UserError('test_dataloader has no images')
    return {name: 100 * number / count for name, number in right.items()} | dict(images=count)
