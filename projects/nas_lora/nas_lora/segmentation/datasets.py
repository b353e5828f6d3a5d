"""Images in one folder, masks in another."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset

from tas_lora import UserError

from ..registry import DATASETS

_IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff')


@DATASETS.register_module()
class MaskFolder(BaseDataset):
    """Pairs of an image and a mask of the same name, the layout of most segmentation sets.

    With ``mask_ending='_segmentation.png'``, ``ISIC_0000000.jpg`` and
    ``ISIC_0000000_segmentation.png`` are a pair. Masks without an image are ignored; images without
    a mask are refused.

    Args:
        data_root: Folder of the data set.
        data_prefix: Folders below it: ``img_path`` and ``seg_map_path``.
        ann_file: A text file below ``data_root`` with the names of the images to use, one per
            line, with or without extension; all if empty.
        image_endings: Extensions of image files, in lower case.
        mask_ending: End of a mask's name, after the image's name without extension.
        **kwargs: ``pipeline``, ``indices``, ``test_mode``, ... as in ``BaseDataset``.

    Raises:
        UserError: If a folder or file does not exist, or there is no image, or one without a mask.
    """

    METAINFO = dict(classes=('object',))

    def __init__(
        self,
        data_root: str = '',
        data_prefix: dict = dict(img_path='images', seg_map_path='masks'),  # noqa: B006  MMEngine's
        ann_file: str = '',
        image_endings: Sequence[str] = _IMAGES,
        mask_ending: str = '.png',
        **kwargs,
    ):
        if not isinstance(data_prefix, dict) or set(data_prefix) != {'img_path', 'seg_map_path'}:
            raise UserError(
                'MaskFolder.data_prefix must be dict(img_path=FOLDER, seg_map_path=FOLDER), got '
                f'{data_prefix!r}'
            )
        if not isinstance(mask_ending, str) or '.' not in mask_ending:
            raise UserError(
                f"MaskFolder.mask_ending must be the end of a file's name, such as '.png' or "
                f"'_segmentation.png', got {mask_ending!r}"
            )
        if not isinstance(image_endings, Sequence) or isinstance(image_endings, str):
            raise UserError(
                f"MaskFolder.image_endings must be a list such as ['.jpg'], got {image_endings!r}"
            )
        self.image_endings = tuple(image_endings)
        self.mask_ending = mask_ending
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=dict(data_prefix), **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Paths of all pairs, sorted by the images' names or in the order of ``ann_file``."""
        images = [Path(name) for name in _files(self.data_prefix['img_path'], 'images')]
        images = [path for path in images if path.suffix.lower() in self.image_endings]
        masks = {path.name: path for path in _files(self.data_prefix['seg_map_path'], 'masks')}
        if self.ann_file:
            images = _named(images, self.ann_file)
        if not images:
            raise UserError(
                f'{self.data_prefix["img_path"]} has no image that ends in one of '
                f'{self.image_endings}; check MaskFolder.data_prefix and image_endings'
            )
        return [self._pair(path, masks) for path in images]

    def _pair(self, image: Path, masks: dict[str, Path]) -> dict:
        name = image.stem + self.mask_ending
        if name not in masks:
            raise UserError(
                f'{image} has no mask {name} in {self.data_prefix["seg_map_path"]}; check '
                'MaskFolder.mask_ending, or remove the image'
            )
        return dict(img_path=str(image), seg_map_path=str(masks[name]))


def _files(folder: str, what: str) -> list[Path]:
    """Files of a folder, sorted by name, so in the same order on every machine."""
    if not Path(folder).is_dir():
        raise UserError(
            f'there is no folder {folder} of {what}; check MaskFolder.data_root and data_prefix'
        )
    return sorted(path for path in Path(folder).iterdir() if path.is_file())


def _named(images: list[Path], list_file: str) -> list[Path]:
    """The images that a list names, in the list's order."""
    if not Path(list_file).is_file():
        raise UserError(f'there is no list {list_file}; check MaskFolder.ann_file')
    known = {path.stem: path for path in images} | {path.name: path for path in images}
    names = [line.strip() for line in Path(list_file).read_text().splitlines() if line.strip()]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise UserError(f'{list_file} names {unknown}, which is not among the images')
    return [known[name] for name in names]
