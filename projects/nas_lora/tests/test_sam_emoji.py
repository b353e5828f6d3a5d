"""Emoji on photographs, from made-up archives; base rates; folders that are whole or not there."""

import io
import json
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from from_pretrained import downloads
from from_pretrained.emoji import split_emoji
from mmengine.structures import BaseDataElement
from nas_lora.images import made_of
from nas_lora.images.folders import written_whole
from nas_lora.segmentation.metrics import MaskMetrics
from PIL import Image
from test_sam_scripts import call_tool, contents, draw_stamps, save, wheel  # noqa: F401

from tas_lora import UserError
from tas_lora.provenance import sha256

HANDS = ('google', 'twitter', 'apple')
CODES = [f'1F3{i:02}' for i in range(15)] + ['1F300-200D-2640-FE0F']  # the last is 1F300, a woman
LISTING = [
    dict(unified=code, subcategory='tool', image=f'{code.lower()}.png')
    | {f'has_img_{hand}': True for hand in HANDS}
    for code in CODES
]
SPLIT = {
    part: [one['unified'].lower() for one in classes['tool']]
    for part, classes in split_emoji(LISTING).items()
}
ALIKE = {SPLIT['train'][0]: SPLIT['test'][0]}  # Twitter draws the one as the other
NO_OBJECT = SPLIT['train'][1]
COUNTS = dict(train=16, val=6, test=8, third=8)


def colour(hand: str, code: str) -> int:
    code = ALIKE.get(code, code) if hand == 'twitter' else code
    return 80 * HANDS.index(hand) + 5 * [c.lower() for c in CODES].index(code)


def drawing(hand: str, code: str) -> np.ndarray:
    """A triangle, leaning to the right, of a colour that only this drawing has."""
    picture = np.zeros((48, 48, 4), np.uint8)
    picture[..., :3] = colour(hand, code)
    y, x = np.mgrid[:48, :48]
    inside = (x >= 6) & (y >= 4) & (x - 6 <= (y - 4)) & (y < 44)
    picture[..., 3] = 0 if code == NO_OBJECT else 255 * inside
    return picture


def pack(path: Path, hand: str, codes: list[str]) -> None:
    files = {'emoji.json': json.dumps(LISTING).encode()}
    for code in codes:
        buffer = io.BytesIO()
        Image.fromarray(drawing(hand, code.lower())).save(buffer, 'png')
        files[f'img/{hand}/64/{code.lower()}.png'] = buffer.getvalue()
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f'package/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """Folder of archives, which are those expected."""
    folder = tmp_path_factory.mktemp('downloads')
    with pytest.MonkeyPatch.context() as patch:
        for hand in HANDS:
            path = folder / f'emoji-datasource-{hand}-16.0.0.tgz'
            pack(path, hand, CODES)
            patch.setitem(downloads.HASHES, path.name, sha256(path))
        yield folder


def prepare_emoji(archives: Path, out: Path, *arguments) -> int:
    counts = [text for part, count in COUNTS.items() for text in (f'--{part}', count)]
    options = ('--archives', archives, '--size', 64, *counts, '--out', out, *arguments)
    return call_tool('prepare_emoji.py', *options)


@pytest.fixture(scope='module')
def emoji(archives, tmp_path_factory) -> Path:
    pytest.importorskip('skimage', reason='the photographs are those of scikit-image')
    out = tmp_path_factory.mktemp('emoji') / 'new'
    assert prepare_emoji(archives, out) == 0
    return out


def pairs(part: Path):
    """Hand and code of each picture by its name, the picture, and where its mask is white."""
    for path in sorted((part / 'images').iterdir()):
        _, hand, code = path.stem.split('_', 2)
        mask = np.asarray(Image.open(part / 'masks' / path.name))
        assert set(np.unique(mask)) <= {0, 255}
        yield hand, code, np.asarray(Image.open(path)), mask == 255


def test_each_part_shows_its_own_emoji_drawn_by_its_hands(emoji):
    """What a picture shows is told by its colour; so names cannot hide an emoji of another part."""
    shown = {}
    for part, count in COUNTS.items():
        found = list(pairs(emoji / part))
        assert len(found) == count
        for hand, code, picture, inside in found:
            assert abs(np.median(picture[inside]) - colour(hand, code)) <= 2, (part, hand, code)
        shown[part] = {(hand, code) for hand, code, *_ in found}
    codes = {part: {code for _, code in drawn} for part, drawn in shown.items()}
    designs = {part: {code.split('-')[0] for code in some} for part, some in codes.items()}
    for one, other in combinations(('train', 'val', 'test'), 2):
        assert not designs[one] & designs[other]
    assert codes['test'] == codes['third'] == set(SPLIT['test'])
    hands = {part: {hand for hand, _ in drawn} for part, drawn in shown.items()}
    assert hands == dict.fromkeys(COUNTS, {'google', 'twitter'}) | dict(third={'apple'})


def test_emoji_without_an_object_or_drawn_as_in_a_later_part_are_left_out(emoji):
    record = json.loads((emoji / 'made_of.json').read_text())
    of_hands = [f'tool/{hand}_' for hand in ('google', 'twitter')]
    expected = [hand + code + '.png' for hand in of_hands for code in SPLIT['train'][2:]]
    assert sorted(record['train']['stamps']) == sorted(expected)
    (alike,) = ALIKE
    assert record['left_out'] == {
        'no object': [f'train/{hand}{NO_OBJECT}.png' for hand in of_hands],
        'drawn alike': [f'train/{hand}{alike}.png' for hand in of_hands],
    }


def test_no_photograph_is_in_two_parts_but_those_of_test_in_third(emoji):
    record = json.loads((emoji / 'made_of.json').read_text())
    parts = {part: set(record[part]['photographs']) for part in COUNTS}
    assert all(parts.values())
    for one, other in combinations(('train', 'val', 'test'), 2):
        assert not parts[one] & parts[other]
    assert parts['third'] == parts['test']
    assert (record['seed'], record['size'], record['third']['pictures']) == (0, 64, 8)
    assert len(record['sources']) == 4  # scikit-image and three archives


def test_a_mask_is_the_alpha_channel_of_its_emoji(emoji):
    """At the size found in the mask, by nearest neighbours; an emoji may be mirrored."""
    triangle = np.tri(40, dtype=bool)  # what drawing() draws, cropped
    mirrored = 0
    for part in COUNTS:
        for *_, inside in pairs(emoji / part):
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            found = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert 0.35 * 64 - 2 <= max(found.shape) <= 0.9 * 64 + 1
            y, x = ((np.arange(n) + 0.5) * 40 // n for n in found.shape)
            expected = triangle[np.ix_(y.astype(int), x.astype(int))]
            iou = [
                (found & one).sum() / (found | one).sum() for one in (expected, expected[:, ::-1])
            ]
            assert max(iou) > 0.9
            mirrored += iou[1] > iou[0]
    assert 0 < mirrored < sum(COUNTS.values())


def test_the_same_seed_writes_the_same_emoji(archives, emoji, tmp_path):
    for seed in (0, 1):
        assert prepare_emoji(archives, tmp_path / str(seed), '--seed', seed) == 0
    assert contents(tmp_path / '0') == contents(emoji)
    first, second = (set(contents(out)) for out in (emoji, tmp_path / '1'))
    assert first != second


def test_errors_are_one_line(archives, emoji, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(downloads, '_fetch', lambda name, folder: None)  # no network
    pack(tmp_path / 'emoji-datasource-google-16.0.0.tgz', 'google', CODES[:5])
    for arguments, message in (
        (('--third', 0), '--third must be a positive integer'),
        (('--size', 'x'), '--size'),
        (('--out', emoji), 'new is not empty; give another folder'),
        (('--archives', tmp_path), 'emoji-datasource-google-16.0.0.tgz is not the file expected'),
    ):
        assert prepare_emoji(archives, tmp_path / 'new', *arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / 'new').exists()


def test_base_rates_are_what_the_metric_says_of_all_object(tmp_path):
    """Of a quarter of 4 pixels and all of 16: .625 over images, 17 / 20 over pixels."""
    quarter = np.array([[255, 0], [0, 0]], np.uint8)
    masks = [quarter, np.full((4, 4), 255, np.uint8)]
    for i, mask in enumerate(masks):
        save(tmp_path / f'{i}.png', mask)
    found = made_of.base_rates(tmp_path)
    assert found == dict(object_share=0.85, iou_if_all_object=dict(image=0.625, dataset=0.85))
    for average, iou in found['iou_if_all_object'].items():
        metric = MaskMetrics(average=average)
        for mask in masks:
            everywhere = torch.ones(mask.shape)
            sample = BaseDataElement(mask=torch.tensor(mask // 255), pred_mask=everywhere)
            metric.process(None, [sample.to_dict()])
        assert metric.evaluate(len(masks))['iou'] == pytest.approx(iou)


def test_what_is_written_halfway_has_another_name(tmp_path):
    out = tmp_path / 'set'
    killed = written_whole(out)
    (killed.__enter__() / 'half').touch()  # what a kill leaves
    assert not out.exists()
    with written_whole(out) as folder:
        assert list(folder.iterdir()) == []
        (folder / 'whole').touch()
        assert not out.exists()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob('*')] == [
        Path('set'),
        Path('set/whole'),
    ]
    with pytest.raises(UserError, match='set is not empty'), written_whole(out):
        pass


def test_a_script_that_fails_at_its_end_leaves_nothing(
    archives,
    wheel,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    def full(masks):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(made_of, 'base_rates', full)
    few = ('--train', 1, '--val', 1, '--test', 1)
    stamps = draw_stamps(tmp_path / 'stamps')
    out = tmp_path / 'sets' / 'new'
    assert prepare_emoji(archives, out) == 2
    assert call_tool('prepare_nuclei.py', '--wheel', wheel, '--out', out) == 2
    stamps = ('--folder', stamps / 'tuxpaint', '--leave-out', *few)
    assert call_tool('prepare_stamps.py', *stamps, '--out', out) == 2
    assert list(out.parent.iterdir()) == []
