"""The network in ONNX, for any batch size, run by ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, blame
from .preprocess import metadata
from .source import Source

FILE = 'model.onnx'
OPSETS = (18, 23)  # torch's exporter writes the oldest without converting; the newest it knows


def check_opset(opset: int) -> None:
    """Raise :class:`UserError` unless torch's exporter can write this opset."""
    oldest, newest = OPSETS
    if not oldest <= opset <= newest:
        wrong = 'too old' if opset < oldest else 'too new'
        raise UserError(f'--opset {opset} is {wrong}; choose from {oldest} to {newest}')


def write(source: Source, folder: Path) -> None:
    """Write ``model.onnx``: 'images' (batch, channels, side, side) to 'logits' (batch, classes).

    Its ``metadata_props`` hold the preprocessing of images and the class names.
    """
    check_opset(source.opset)
    with blame(f'the network cannot be written in ONNX opset {source.opset}'):
        images = source.random_images(2)
        save(source.net, images, folder / FILE, source.opset, metadata(source))


def save(
    net: nn.Module,
    images: Tensor,
    path: Path,
    opset: int = OPSETS[0],
    properties: Mapping[str, str] | None = None,
    output: str = 'logits',
) -> None:
    """Write any network that takes images.

    Args:
        net: The network, in evaluation mode.
        images: A batch; the file accepts any batch size.
        path: The file.
        opset: Within the range :data:`OPSETS`.
        properties: Entries of the file's ``metadata_props``.
        output: Name of what it returns.
    """
    two = images[:1].expand(2, -1, -1, -1)  # a batch size of 1 would become a constant
    with quiet():
        program = torch.onnx.export(
            net,
            (two,),
            input_names=['images'],
            output_names=[output],
            dynamic_shapes=({0: 'batch'},),
            opset_version=opset,
            verbose=False,
        )
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # source locations, most of the file's size
    model.metadata_props.update(properties or {})
    model.ir_version = ir_version_of(model.opset_imports)
    program.save(path, external_data=False)


def ir_version_of(opsets: Mapping[str, int]) -> int:
    """The oldest version of ONNX's file format that has these opsets, given by domain.

    Every ONNX Runtime that knows the opsets reads it. torch's exporter writes a newer one, which
    older runtimes refuse.
    """
    from onnx.helper import find_min_ir_version_for, make_opsetid

    known = [make_opsetid(*opset) for opset in opsets.items()]
    return find_min_ir_version_for(known, ignore_unknown=True)


def run(folder: Path, batches: list[Tensor], name: str = FILE) -> list[Tensor]:
    """Logits of each batch of images, by ONNX Runtime."""
    session = open_session(folder / name)
    return [torch.from_numpy(session.run(None, dict(images=x.numpy()))[0]) for x in batches]


def open_session(path: Path):
    """Open an ``onnxruntime.InferenceSession`` on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log lines of the exporters."""
    loggers = [logging.getLogger(name) for name in ('root', 'torch.onnx', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
