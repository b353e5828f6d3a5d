"""Stamps on photographs and tiles of nuclei: the pictures that the scripts make."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from nas_lora.images.stamps import PARTS, composite, cut_out, kind_of, parts_of, split, stamps_in
from PIL import Image
from tool_calls import call

from tas_lora import UserError


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def call_tool(name: str, *arguments) -> int:
    try:
        call(name, *arguments)
    except SystemExit as stop:
        return stop.code or 0
    return 0


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
    record = json.loads((out / 'made_of.json').read_text())
    assert {part: record[part]['rows'] for part in rows} == {p: [*r] for p, r in rows.items()}
    of_test = np.mean([value % 3 > 0 for value in range(48, 64)])  # test has the last two rows
    assert record['test']['object_share'] == pytest.approx(of_test, abs=1e-4)


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
