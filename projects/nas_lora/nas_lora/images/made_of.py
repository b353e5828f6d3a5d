"""What a set of images and masks was made of, and what it is worth to guess."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tas_lora import cli
from tas_lora.atomic_files import write_atomic
from tas_lora.image_formats import open_image

RECORD = 'made_of.json'


def base_rates(masks: Path) -> dict:
    """Share of object pixels in a folder of masks, and IoU if all pixels are called object.

    The IoU of that guess is |object| / |image|, so both averages are the share itself where images
    are equally large. A method has to be above it.

    Args:
        masks: Folder of images, 255 where the object is, else 0.

    Returns:
        ``object_share``, of all pixels, and ``iou_if_all_object``: the mean over images (``image``)
        and the ratio over all pixels (``dataset``), the averages of ``MaskMetrics``.
    """
    is_object = [np.asarray(open_image(path)) > 127 for path in sorted(masks.iterdir())]
    objects, pixels = np.array([(mask.sum(), mask.size) for mask in is_object]).T
    share = round(float(objects.sum() / pixels.sum()), 4)
    of_images = round(float((objects / pixels).mean()), 4)
    return dict(object_share=share, iou_if_all_object=dict(image=of_images, dataset=share))


def write_record(folder: Path, out: Path, facts: Mapping, parts: Mapping[str, Mapping]) -> None:
    """Write ``folder``/made_of.json and print a line for each part.

    Args:
        folder: What was written, with a folder for each part.
        out: Its name when it is complete.
        facts: Seed, size, sources and split.
        parts: What each part was made of; the number of pictures and base rates are added.
    """
    record = dict(facts)
    for name, made_of in parts.items():
        pictures = len(list((folder / name / 'masks').iterdir()))
        rates = base_rates(folder / name / 'masks')
        record[name] = dict(pictures=pictures, **rates, **made_of)
        counts = ', '.join(f'{len(items)} {what}' for what, items in made_of.items())
        iou = rates['iou_if_all_object']
        cli.say(
            f'{out / name}: {pictures} pictures of {counts}; {rates["object_share"]:.1%} of pixels '
            f'are object; all called object, IoU {iou["image"]:.3f} (images), '
            f'{iou["dataset"]:.3f} (pixels)'
        )
    write_atomic(folder / RECORD, json.dumps(record, indent=1) + '\n')
