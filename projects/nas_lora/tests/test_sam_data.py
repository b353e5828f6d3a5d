"""Folders of masks, their transforms, and the pictures that the scripts make."""

import json
import runpy
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from nas_lora.datasets import MaskFolder
from nas_lora.registry import TRANSFORMS
from nas_lora.stamps import PARTS, composite, cut_out, kind_of, parts_of, split, stamps_in
from PIL import Image

from tas_lora import UserError

TOOLS = Path(__file__).parents[1] / 'tools'


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


def call_tool(name: str, *arguments) -> int:
    argv, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(TOOLS / name), run_name='__main__')
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = argv
    return 0


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
    with pytest.raises(UserError, match='mask .*c.png is no picture'):
        load(tmp_path / 'c.png')
    with pytest.raises(UserError, match='mask .*none.png cannot be read'):
        load(tmp_path / 'none.png')
    with pytest.raises(UserError, match='LoadMask.threshold must be an integer from 0 to 254'):
        pipeline(threshold=255)


def draw_stamps(folder: Path, count: int = 20) -> Path:
    """Discs of a colour each, in two classes, and one picture that has no alpha."""
    y, x = np.mgrid[-20:20, -20:20]
    for i in range(count):
        name = f'{chr(97 + i // 2)}{i % 2}.png'  # a0, a1, b0, ...: two of each kind
        picture = np.zeros((40, 40, 4), np.uint8)
        picture[..., :3] = 10 * i
        picture[..., 3] = 255 * (x**2 + y**2 < 150 + 10 * i)
        save(folder / 'tuxpaint' / 'stamps' / ('food' if i % 3 else 'people') / name, picture)
    save(folder / 'tuxpaint/stamps/food/flat.png', np.zeros((40, 40, 3), np.uint8))
    return folder


def test_split_is_complete_disjoint_and_keeps_groups_together():
    groups = [f'g{i % 37}' for i in range(200)]
    parts = split(range(200), groups, np.random.default_rng(0))
    assert sorted(sum(parts, [])) == list(range(200))
    of_parts = [{groups[i] for i in part} for part in parts]
    assert [len(names) for names in of_parts] == [22, 8, 7]  # of 37, at .6 and .8
    assert not (of_parts[0] & of_parts[1] | of_parts[0] & of_parts[2] | of_parts[1] & of_parts[2])
    assert parts != split(range(200), groups, np.random.default_rng(1))


@pytest.mark.parametrize(
    ('name', 'kind'),
    [('spider2', 'spider'), ('Dog_mirror', 'dog'), ('005nickel', 'nickel'), ('10', '10')],
)
def test_kinds_are_first_words(name, kind):
    assert kind_of(Path(f'{name}.png')) == kind


def test_a_composite_is_the_stamp_inside_and_the_photograph_outside():
    stamp = np.zeros((30, 20, 4), np.uint8)
    stamp[..., 1] = 200
    stamp[:, :15, 3] = 255
    photograph = Image.new('RGB', (90, 70), (10, 0, 30))
    picture, mask = composite(Image.fromarray(stamp), photograph, 64, np.random.default_rng(2))
    picture, mask = np.asarray(picture), np.asarray(mask)
    assert picture.shape == (64, 64, 3)
    assert set(np.unique(mask)) == {0, 255}
    inside = mask == 255
    assert (picture[inside][:, 1] > 90).mean() > 0.99  # but for the edge, which is mixed
    outside = ~inside & (picture == (10, 0, 30)).all(-1)
    assert outside.sum() > 0.95 * (~inside).sum()
    height = inside.any(1).sum()
    assert 0.35 * 64 - 1 <= height <= 0.9 * 64 + 1


def test_stamps_without_an_object_are_left_out(tmp_path):
    folder = draw_stamps(tmp_path)
    assert len(stamps_in(folder, [])) == 20
    assert {p.parent.name for p in stamps_in(folder, ['food'])} == {'people'}
    faint = np.zeros((40, 40, 4), np.uint8)
    assert cut_out(save(tmp_path / 'none.png', faint)) is None
    faint[::12, ::12, 3] = 255
    assert cut_out(save(tmp_path / 'dots.png', faint)) is None
    with pytest.raises(UserError, match='--leave-out toys: .* has the classes food, people'):
        stamps_in(folder, ['toys'])
    with pytest.raises(UserError, match='has 0 stamps with an alpha channel'):
        stamps_in(folder, ['food', 'people'])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> Path:
    pytest.importorskip('skimage', reason='the photographs are those of scikit-image')
    folder = draw_stamps(tmp_path_factory.mktemp('stamps'))
    for out, seed in (('a', 0), ('b', 0), ('c', 1)):
        options = ('--folder', folder / 'tuxpaint', '--train', 12, '--val', 4, '--test', 4)
        options += ('--leave-out', '--seed', seed, '--size', 32)
        assert call_tool('prepare_stamps.py', *options, '--out', folder / out) == 0
    return folder


def test_the_same_seed_writes_the_same_bytes(prepared):
    a, b, c = (contents(prepared / name) for name in 'abc')
    assert a == b
    assert len(a) == 2 * (12 + 4 + 4) + 1
    assert a != c


def test_objects_and_photographs_are_held_out(prepared):
    record = json.loads((prepared / 'a' / 'made_of.json').read_text())
    for what, key in (('stamps', lambda n: kind_of(Path(n))), ('photographs', str)):
        sets = [{key(name) for name in record[part][what]} for part in PARTS]
        assert all(sets)
        assert not (sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]), what
    for part in PARTS:  # the pictures are named after their stamps
        known = {Path(name).stem for name in record[part]['stamps']}
        used = {p.stem.split('_', 1)[1] for p in (prepared / 'a' / part / 'images').iterdir()}
        assert used <= known


def test_colours_of_held_out_stamps_are_in_no_training_picture(prepared):
    """The stamps have a colour each: what a picture shows is a stamp of its own part."""
    record = json.loads((prepared / 'a' / 'made_of.json').read_text())
    for part in PARTS:
        own = {10 * (2 * (ord(Path(n).stem[0]) - 97) + int(Path(n).stem[1])) for n in
               record[part]['stamps']}  # fmt: skip
        for path in (prepared / 'a' / part / 'images').iterdir():
            inside = np.asarray(Image.open(prepared / 'a' / part / 'masks' / path.name)) == 255
            value = np.median(np.asarray(Image.open(path))[inside])
            assert min(abs(value - colour) for colour in own) <= 2, path


def test_photographs_of_a_part_do_not_depend_on_the_stamps(tmp_path):
    stamps = stamps_in(draw_stamps(tmp_path), [])
    pictures = [[Path(f'{i}.png') for i in kind] for kind in (range(7), range(7, 15))]
    whole, fewer = (parts_of(some, pictures, seed=3) for some in (stamps, stamps[:12]))
    assert [p.photographs for p in whole] == [p.photographs for p in fewer]
    scenes = [sum(path in pictures[0] for path in p.photographs) for p in whole]
    textures = [sum(path in pictures[1] for path in p.photographs) for p in whole]
    assert (scenes, textures) == ([4, 2, 1], [5, 1, 2])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--folder', 'none'), '--folder none: there is no such folder'),
        (('--deb', 'none.deb'), '--deb none.deb: there is no such file'),
        (('--size', '0'), '--size must be a positive integer'),
        (('--seed', '-1'), '--seed must be an integer from 0 up'),
        (('--out', '.'), '--out . is not empty'),
    ],
)
def test_the_script_for_stamps_refuses_in_one_line(arguments, message, capsys, tmp_path):
    assert call_tool('prepare_stamps.py', '--out', tmp_path / 'new', *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_a_file_that_is_no_package_is_refused(capsys, tmp_path):
    (tmp_path / 'x.deb').write_bytes(b'no package')
    deb = ('--deb', tmp_path / 'x.deb', '--out', tmp_path / 'new')
    assert call_tool('prepare_stamps.py', *deb) == 2
    assert 'give it by --deb FILE' in capsys.readouterr().err


@pytest.fixture
def wheel(tmp_path) -> Path:
    """A wheel with an image of which every tile has a value of its own."""
    value = np.arange(8)[:, None] * 8 + np.arange(8)
    image = np.kron(value, np.ones((64, 64))).astype(np.uint16)
    with zipfile.ZipFile(tmp_path / 'stardist.whl', 'w') as archive:
        for name, array in (('img2d', image), ('mask2d', image % 3)):
            buffer = BytesIO()
            Image.fromarray(array.astype(np.uint16)).save(buffer, 'TIFF')
            archive.writestr(f'stardist/data/images/{name}.tif', buffer.getvalue())
    return tmp_path / 'stardist.whl'


def test_nuclei_become_tiles_each_in_one_part(wheel, tmp_path):
    out = tmp_path / 'nuclei'
    assert call_tool('prepare_nuclei.py', '--wheel', wheel, '--out', out) == 0
    rows = dict(train=range(5), val=range(5, 6), test=range(6, 8))
    seen = []
    for part, of_part in rows.items():
        names = sorted(p.name for p in (out / part / 'images').iterdir())
        assert names == [f'{y:02d}_{x:02d}.png' for y in of_part for x in range(8)]
        for name in names:
            image, mask = (
                np.asarray(Image.open(out / part / d / name)) for d in ('images', 'masks')
            )
            assert image.shape == (64, 64, 3)
            seen += np.unique(image).tolist()
            assert np.unique(mask).tolist() == [255 * (seen[-1] % 3 > 0)]
    assert seen == list(range(64))


def test_the_script_for_nuclei_refuses_in_one_line(wheel, capsys, tmp_path):
    (tmp_path / 'bad.whl').write_bytes(b'x')
    for arguments, message in (
        (('--wheel', tmp_path / 'none.whl'), 'there is no such file'),
        (('--wheel', tmp_path / 'bad.whl'), 'is not that of stardist'),
        (('--wheel', wheel, '--size', 256), '2 rows of tiles are too few for three parts'),
        (('--wheel', wheel, '--out', tmp_path), 'is not empty'),
    ):
        options = ('--out', tmp_path / 'nuclei', *arguments)
        assert call_tool('prepare_nuclei.py', *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count('\n') == 1
