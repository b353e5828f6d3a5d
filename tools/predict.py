"""Classify images with an exported subnet."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import bounded, positive
from tas_lora.datasets.image_depth import refuse_deep
from tas_lora.errors import blame, printable
from tas_lora.export.image_preparation import ImagePreparation, square
from tas_lora.image_formats import open_image
from tas_lora.models.plain_vit import PlainViT, load_plain_vit

_ORDERS = ('RGB', 'BGR')
_LONGEST = 100  # times the short edge


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('export', help='folder that tools/export.py wrote')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files, of any size')
    parser.add_argument(
        '--top', type=int, help='classes to show per image (default: 5, or all found)'
    )
    parser.add_argument(
        '--threshold',
        type=float,
        help='least score of a class that is found, for networks that find several in an image '
        '(default: from the export)',
    )
    parser.add_argument('--classes', help='text file with one class name per line')
    parser.add_argument('--out', help='write the predictions to this JSON file')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument(
        '--crop-ratio',
        type=float,
        help='share of the short edge that the central crop covers; '
        "0.875 is ImageNet's 224 of 256 pixels (default: from the export, or 1)",
    )
    parser.add_argument(
        '--channel-order',
        choices=_ORDERS,
        help='order that the network was trained on, if the export does not name it',
    )
    return parser.parse_args()


def load_export(folder: str) -> tuple[PlainViT, dict]:
    """Load the network and ``architecture.json``; raise :class:`UserError` if there are none."""
    if not (Path(folder) / 'architecture.json').exists():
        raise UserError(
            f'{folder} is not an export: it has no architecture.json; give the folder that '
            'tools/export.py wrote to'
        )
    with blame(f'{folder} cannot be loaded'):
        model, description = load_plain_vit(folder)
    if not description['network']['num_classes']:
        raise UserError(f'{folder} gives features, not classes; load it by its plain_vit.py')
    return model, description


def class_names(path: str | None, description: dict) -> list[str] | None:
    """Class names from a file, else from the export; None if neither has any."""
    source, names = 'classes of architecture.json', description.get('classes')
    if path is not None:
        with blame(f'--classes {path} cannot be read'):
            source, names = f'--classes {path}', Path(path).read_text('utf-8').split('\n')
        while names and not names[-1].strip():  # the end of the last line
            names.pop()
    count = description['network']['num_classes']
    if names is not None and (not isinstance(names, list) or len(names) != count):
        found = len(names) if isinstance(names, list) else repr(names)
        raise UserError(f'{source}: {found} names for a network of {count} classes; give {count}')
    names = names and [str(name).strip() for name in names]
    exported = description.get('classes')
    if names != exported and sorted(names or ()) == sorted(map(str, exported or ())):
        raise UserError(
            f'{source} has the names of the export in another order, so that classes would be '
            'mixed up; leave it out'
        )
    return names


def read_image(
    path: str, mode: str, side: int, crop_ratio: float | None = 1.0, **shape
) -> np.ndarray:
    """Read the square of an image that the network was tested on.

    Args:
        path: The file.
        mode: 'L' or 'RGB'.
        side: Side of the square in pixels.
        crop_ratio, **shape: Further arguments of :func:`tas_lora.export.image_preparation.square`.

    Returns:
        (side, side) or (side, side, 3), values 0..255.
    """
    if not Path(path).is_file():
        what = 'is not a file' if Path(path).exists() else 'does not exist'
        raise UserError(f'image {path} {what}')
    refuse_deep(path)  # Pillow divides those in colour by 256
    with blame(f'image {path} cannot be read'), open_image(path) as file:
        if file.mode.startswith(('I', 'F')):  # Pillow would clip values above 255
            raise UserError(f'image {path} has more than 8 bits per channel; save it with 8')
        image = ImageOps.exif_transpose(file).convert(mode)
    if crop_ratio is not None and max(image.size) > _LONGEST * min(
        image.size
    ):  # enlarged, it might not fit in memory
        raise UserError(f'image {path} is more than {_LONGEST} times as long as wide; crop it')
    return square(image, side, crop_ratio, **shape)


class Preprocessing:
    """Turns image files into batches for an exported network.

    Args:
        description: Content of ``architecture.json``.
        crop_ratio: Share of the short edge that a central crop covers; by default as exported.
        channel_order: 'RGB' or 'BGR', used if the export does not name it.

    Raises:
        UserError: If the network's images have other than 1 or 3 channels, or the order of channels
            or a step of the test pipeline is unknown.
    """

    def __init__(self, description: dict, crop_ratio: float | None, channel_order: str | None):
        network, preprocess = description['network'], description['preprocess']
        channels = network['in_channels']
        if channels not in (1, 3):
            raise UserError(f'the network takes {channels} channels; image files have 1 or 3')
        order = preprocess.get('channel_order')
        if channels == 3 and order not in _ORDERS:
            if channel_order is None:
                raise UserError(
                    f'architecture.json gives the order of channels as {order!r}; set '
                    '--channel-order to RGB, or to BGR if OpenCV read the training images'
                )
            order = channel_order
        preprocess = preprocess | dict(channel_order=order)
        if crop_ratio is not None:  # the user knows how images are resized
            others = ('squash', 'pad_value', 'unknown_steps')
            preprocess = {name: value for name, value in preprocess.items() if name not in others}
            preprocess['crop_ratio'] = crop_ratio
        try:
            self.prepare = ImagePreparation(preprocess, channels, network['img_size'])
        except ValueError as error:
            raise UserError(f'{error}, or set --crop-ratio if a central crop will do') from None

    def __call__(self, paths: list[str]) -> Tensor:
        """Normalised images (B, channels, side, side)."""
        prepare = self.prepare
        images = [read_image(path, prepare.mode, prepare.side, **prepare.shape) for path in paths]
        return torch.stack([prepare.normalised(image) for image in images])


@torch.no_grad()
def predict(
    model: PlainViT, preprocessing: Preprocessing, paths: list[str], batch_size: int, several: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield each image's path with the probabilities of all classes, (classes,).

    With ``several``, each class has its own: they do not add up to 1.

    Raises:
        UserError: If an image cannot be read, or the network's output is not finite.
    """
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        logits = model(preprocessing(batch))
        if not logits.isfinite().all():
            raise UserError(f'the output for {batch[0]} or an image after it is not finite')
        yield from zip(batch, logits.sigmoid() if several else logits.softmax(dim=1), strict=True)


def threshold_of(args: argparse.Namespace, description: dict) -> float | None:
    """Least score of a class that is found; None if every image has one class."""
    if description.get('problem_type') != 'multi_label_classification':
        if args.threshold is not None:
            raise UserError('--threshold: this network gives one class per image; use --top')
        return None
    threshold = description.get('threshold', 0.5) if args.threshold is None else args.threshold
    return bounded(threshold, '--threshold')


def ranked(
    probabilities: Tensor, top: int, names: list[str] | None, threshold: float | None = None
) -> list[dict]:
    """The most likely classes, best first, from ``threshold`` up if there is one."""
    found = len(probabilities) if threshold is None else int((probabilities >= threshold).sum())
    values, classes = probabilities.topk(min(top, found))
    return [
        dict(class_index=index, probability=value)
        | ({} if names is None else dict(class_name=names[index]))
        for index, value in zip(classes.tolist(), values.tolist(), strict=True)
    ]


def table_of(results: list[dict]) -> Table:
    """Table of the predictions of all images."""
    table = Table('image', 'class', 'probability')
    for result in results:
        if not result['predictions']:
            table.add_row(escape(Path(result['image']).name), 'none', '')
        for rank, found in enumerate(result['predictions']):
            image = '' if rank else Path(result['image']).name
            label = found.get('class_name', str(found['class_index']))
            cells = (*map(escape, map(printable, (image, label))), f'{found["probability"]:.1%}')
            table.add_row(*cells, style='dim' if rank else '')
        table.add_section()
    return table


def main() -> None:
    """Parse, load, predict, print and write."""
    args = parse_args()
    batch_size = positive(args.batch_size, '--batch-size', int)
    if args.crop_ratio is not None and not 0.1 <= args.crop_ratio <= 1:
        raise UserError(f'--crop-ratio must be a number from 0.1 to 1, got {args.crop_ratio}')
    if args.out:
        cli.check_output(args.out)
    model, description = load_export(args.export)
    names, threshold = class_names(args.classes, description), threshold_of(args, description)
    several = threshold is not None
    default = description['network']['num_classes'] if several else 5
    top = positive(default if args.top is None else args.top, '--top', int)
    preprocessing = Preprocessing(description, args.crop_ratio, args.channel_order)
    results = [
        dict(image=path, predictions=ranked(probabilities, top, names, threshold))
        for path, probabilities in predict(model, preprocessing, args.images, batch_size, several)
    ]
    cli.SafeConsole().print(table_of(results))
    if args.out:
        write_atomic(args.out, json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
