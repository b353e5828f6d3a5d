"""Folders of masks, and their transforms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from nas_lora.registry import TRANSFORMS
from nas_lora.segmentation.datasets import MaskFolder
from PIL import Image

from tas_lora import UserError


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def draw_set(root: Path, count: int = 3, ending: str = '.png', size=(12, 10)) -> Path:
    """Images of noise, in the left half of which there is an object."""
    rng = np.random.default_rng(0)
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 255
    for i in range(count):
        save(root / 'images' / f'{i}.jpg', rng.integers(0, 255, (*size, 3), np.uint8))
        save(root / 'masks' / f'{i}{ending}', mask)
    return root


def test_images_find_the_masks_of_their_names(tmp_path):
    root = draw_set(tmp_path, ending='_segmentation.png')
    save(root / 'images' / '0_superpixels.png', np.zeros((4, 4), np.uint8))  # as ISIC has them
    (root / 'images' / 'notes.txt').write_text('')
    save(root / 'masks' / '9_segmentation.png', np.zeros((4, 4), np.uint8))  # of another part
    found = MaskFolder(str(root), image_endings=['.jpg'], mask_ending='_segmentation.png')
    pairs = [(Path(i['img_path']).name, Path(i['seg_map_path']).name) for i in found]
    assert pairs == [(f'{i}.jpg', f'{i}_segmentation.png') for i in range(3)]


def test_a_list_chooses_images_in_its_order(tmp_path):
    root = draw_set(tmp_path)
    (root / 'part.txt').write_text('2\n0.jpg\n\n')
    found = MaskFolder(str(root), ann_file='part.txt')
    assert [Path(info['img_path']).stem for info in found] == ['2', '0']
    (root / 'part.txt').write_text('7\n')
    with pytest.raises(UserError, match='part.txt names 7, which is not among the images'):
        MaskFolder(str(root), ann_file='part.txt')
    with pytest.raises(UserError, match='there is no list .*none.txt'):
        MaskFolder(str(root), ann_file='none.txt')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mask_ending='_m.png'), 'has no mask 0_m.png in'),
        (dict(data_prefix=dict(img_path='x', seg_map_path='masks')), 'no folder .*x of images'),
        (dict(data_prefix=dict(img_path='images', seg_map_path='y')), 'no folder .*y of masks'),
        (dict(data_prefix=dict(img='images')), 'must be dict.img_path=FOLDER, seg_map_path'),
        (dict(data_prefix=3), 'must be dict.img_path=FOLDER.*, got 3'),
        (dict(image_endings='.jpg'), "image_endings must be a list such as .* got '.jpg'"),
        (dict(image_endings=['.bmp']), 'has no image that ends in one of'),
        (dict(mask_ending='png_'), 'mask_ending must be the end of a file'),
    ],
)
def test_folders_that_do_not_match_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        MaskFolder(str(draw_set(tmp_path)), **options)


def pipeline(*steps: dict, **load) -> Compose:
    init_default_scope('mmpretrain')
    first = [dict(type='LoadImageFromFile'), dict(type='nas_lora.LoadMask', **load)]
    steps = [*first, *steps, dict(type='nas_lora.PackMask')]
    return Compose([TRANSFORMS.build(step) for step in steps])


def test_masks_follow_their_images_through_mmcv(tmp_path):
    """The object's pixels are white in the image, so image and mask can be compared."""
    mask = np.zeros((20, 30), np.uint8)
    mask[4:12, 3:21] = 255
    info = dict(
        img_path=str(save(tmp_path / 'a.png', np.repeat(mask[..., None], 3, 2))),
        seg_map_path=str(save(tmp_path / 'b.png', mask)),
    )
    flip = dict(type='RandomFlip', prob=1.0, direction='horizontal')
    resize = dict(type='Resize', scale=(60, 60), keep_ratio=False, interpolation='nearest')
    packed = pipeline(resize, flip)(info)
    assert packed['data_samples'].mask.shape == packed['inputs'].shape[1:] == (60, 60)
    assert packed['data_samples'].mask.dtype == torch.uint8
    torch.testing.assert_close(packed['data_samples'].mask * 255, packed['inputs'][0])
    assert packed['data_samples'].mask.sum() == 8 * 3 * 18 * 2


@pytest.mark.parametrize(
    ('values', 'load', 'object_pixels'),
    [([0, 255], {}, 2), ([0, 1], dict(threshold=0), 2), ([7, 248], {}, 2), ([0, 0], {}, 0)],
)
def test_a_threshold_decides_what_is_an_object(tmp_path, values, load, object_pixels):
    mask = np.array(values * 2, np.uint8).reshape(2, 2)
    info = dict(
        img_path=str(save(tmp_path / 'a.png', np.zeros((2, 2, 3), np.uint8))),
        seg_map_path=str(save(tmp_path / 'b.png', mask)),
    )
    found = pipeline(**load)(info)['data_samples'].mask
    assert found.sum() == object_pixels
    assert torch.equal(found == 1, torch.tensor(mask == values[1])) or not object_pixels


def test_colour_and_palette_masks_are_read(tmp_path):
    save(tmp_path / 'a.png', np.zeros((2, 2, 3), np.uint8))
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    for mode in ('RGB', 'RGBA', 'P', '1'):
        Image.fromarray(grey).convert(mode).save(tmp_path / 'b.png')
        info = dict(img_path=str(tmp_path / 'a.png'), seg_map_path=str(tmp_path / 'b.png'))
        assert pipeline()(info)['data_samples'].mask.tolist() == [[0, 1], [1, 0]], mode


def test_masks_that_will_not_do_are_refused_by_name(tmp_path):
    image = str(save(tmp_path / 'a.png', np.zeros((2, 2, 3), np.uint8)))

    def load(mask: Path):
        return pipeline()(dict(img_path=image, seg_map_path=str(mask)))

    with pytest.raises(UserError, match=r'mask .*b.png is \(3, 2\), its image \(2, 2\)'):
        load(save(tmp_path / 'b.png', np.zeros((3, 2), np.uint8)))
    with pytest.raises(UserError, match='b.png has no value above .* 127, the largest is 1;'):
        load(save(tmp_path / 'b.png', np.ones((2, 2), np.uint8)))
    (tmp_path / 'c.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match='mask .*c.png is not an image'):
        load(tmp_path / 'c.png')
    with pytest.raises(UserError, match='mask .*none.png cannot be read'):
        load(tmp_path / 'none.png')
    with pytest.raises(UserError, match='LoadMask.threshold must be an integer from 0 to 254'):
        pipeline(threshold=255)
