"""A killed search resumes, but never from another search's history or on the test set."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_tool
from mmengine.runner import Runner
from tiny import SPACE

from tas_lora import UserError, apis, count_params
from tas_lora.engine.search import driver
from tas_lora.engine.search.candidate_evaluator import CandidateEvaluator
from tas_lora.engine.search.identity import search_identity
from tas_lora.search import Limits

SMALL = {
    'val_cfg.evolution': dict(population=6, generations=3, parents=3, mutations=2, crossovers=2),
    'val_cfg.constraints': dict(params=(20e3, 40e3)),
}


RACE = dict(first=60, strata=2, controls=4)


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.fixture
def config(digits_config, tmp_path, shared):
    """Makes the config of a small search in a folder, of the same weights."""
    weights = shared / 'weights.pth'
    if not weights.exists():
        model = apis.load_supernet(digits_config('search'))
        torch.save(dict(state_dict=model.state_dict()), weights)

    def make(folder: str, resume: bool = False, options: dict | None = None):
        cfg = digits_config('search', options=SMALL | (options or {}))
        cfg.work_dir, cfg.load_from = str(tmp_path / folder), str(weights)
        cfg.val_cfg.resume = resume
        return cfg

    return make


@pytest.fixture
def first(config, shared) -> Path:
    """A folder, the test's own, of a search that is over; it is made once."""
    cfg = config('first')
    if not (shared / 'first').exists():
        search(cfg)
        shutil.copytree(cfg.work_dir, shared / 'first')
    else:
        shutil.copytree(shared / 'first', cfg.work_dir)
    return Path(cfg.work_dir)


def search(cfg) -> tuple[str, str]:
    """Run; returns history and result as text."""
    Runner.from_cfg(cfg).val()
    return found_in(Path(cfg.work_dir))


def found_in(folder: Path) -> tuple[str, str]:
    return tuple((folder / f).read_text() for f in ('search_history.jsonl', 'best_subnet.json'))


def search_and_kill(cfg, monkeypatch, evaluations: int) -> int:
    """Kill a search in its n-th evaluation from here; returns the lines that are on disk."""
    predict, left = CandidateEvaluator._predict, [evaluations]

    def predict_or_die(self, task, evaluator):
        predict(self, task, evaluator)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CandidateEvaluator, '_predict', predict_or_die)
        with pytest.raises(Killed):
            Runner.from_cfg(cfg).val()
    return len(Path(cfg.work_dir, 'search_history.jsonl').read_text().splitlines())


FULL, SLOW = pytest.mark.full, pytest.mark.slow  # run by `make test-all`, by `make nightly`
KINDS = {
    'whole': {},
    'bfloat16': {'val_cfg.precision': 'bfloat16', 'val_cfg.finalists': 4},
    'race': {'val_cfg.race': RACE, 'val_cfg.baseline': True},
    'goals': {'val_cfg.goals': ['params'], 'val_cfg.evolution.generations': 4},
    'surrogate': {'val_cfg.surrogate': True, 'val_cfg.evolution.generations': 8},
}


TIERS = dict(whole=(), race=FULL)


@pytest.mark.parametrize('kind', [pytest.param(k, marks=TIERS.get(k, SLOW)) for k in KINDS])
def test_killed_at_random_moments_and_resumed(config, monkeypatch, kind):
    options = SMALL | KINDS[kind]
    expected, rng = search(config('whole', options=options)), random.Random(0)
    evaluated = 0
    for number in range(5):
        more = rng.randint(1, 5)
        cfg = config('killed', resume=number > 0, options=options)
        lines = search_and_kill(cfg, monkeypatch, more)
        evaluated += more - 1
        # In a race, a subnet has a line once it is decided, after some slices.
        assert lines <= evaluated if kind == 'race' else lines == evaluated
    assert search(config('killed', resume=True, options=options)) == expected


def test_what_was_evaluated_is_not_evaluated_again(config, monkeypatch):
    options = {'val_cfg.race': RACE}
    search(config('first', options=options))
    monkeypatch.setattr(CandidateEvaluator, '_predict', None)  # any use of it fails
    search(config('first', resume=True, options=options))


def test_a_torn_last_line_is_scored_again(config, first):
    expected, path = found_in(first), first / 'search_history.jsonl'
    path.write_text(''.join(expected[0].splitlines(keepends=True)[:7])[:-20])
    with pytest.warns(UserWarning, match='the last line is truncated, ignored'):
        assert search(config('first', resume=True)) == expected


def test_nothing_to_resume_starts_anew(config, first):
    assert search(config('new', resume=True)) == found_in(first)


def test_a_new_search_moves_the_old_one_aside(config, first):
    expected = found_in(first)
    (first / 'measured.jsonl').write_text('measured')
    journal = (first / 'search_journal.jsonl').read_text()
    assert search(config('first')) == expected
    assert (first / 'search_history.jsonl.old').read_text() == expected[0]
    assert (first / 'search_journal.jsonl.old').read_text() == journal
    assert (first / 'measured.jsonl.old').read_text() == 'measured'


OTHERS = {
    'val_cfg.evolution.seed': (3, 'val_cfg.evolution.seed was 0, is 3 now'),
    'val_cfg.constraints.params': (
        (20e3, 39e3),
        r'constraints.params was \[20000.0, 40000.0\], is',
    ),
    'val_cfg.space.depth': ([2, 3], r'val_cfg.space.depth was \[2, 3, 4\], is \[2, 3\] now'),
    'val_dataloader.dataset.seed': (1, 'val_dataloader.dataset.seed was 0, is 1 now'),
    'data_preprocessor.mean': ([10.0], r'data_preprocessor.mean was \[78.0\], is \[10.0\] now'),
    'val_cfg.race': (RACE, 'val_cfg.race.first was nothing, is 60 now'),
    'val_dataloader.dataset.size': (100, 'val_dataloader.dataset.size was 287, is 100 now'),
}


@pytest.mark.parametrize('field', OTHERS)
def test_another_search_is_not_resumed(config, first, field):
    value, message = OTHERS[field]
    with pytest.raises(UserError, match=f'is of another search: .*{message}'):
        search(config('first', resume=True, options={field: value}))


def test_other_images_at_the_same_place_are_noticed(config, first, digits_root):
    labels = digits_root / 'train-labels-idx1-ubyte'
    content = labels.read_bytes()
    try:
        labels.write_bytes(content[:8] + content[8:][::-1])
        with pytest.raises(UserError, match='held-out images was 287, checksum'):
            search(config('first', resume=True))
    finally:
        labels.write_bytes(content)


@pytest.mark.parametrize(
    'moment',
    ['begin_search', *(pytest.param(m, marks=SLOW) for m in ('History', 'Journal'))],
)
def test_killed_while_a_new_search_begins_in_the_folder_of_another(
    config, first, monkeypatch, moment
):
    """What the other one found is never taken for the new one's."""
    expected = search(config('new', options={'val_cfg.evolution.seed': 5}))

    def die(*arguments):
        raise Killed

    again = config('first', options={'val_cfg.evolution.seed': 5})
    with monkeypatch.context() as patch:
        patch.setattr(driver, moment, die)
        with pytest.raises(Killed):
            search(again)
    again.val_cfg.resume = True
    assert search(again) == expected


def test_what_has_no_name_is_not_resumed(config, first):
    (first / 'search.json').unlink()
    with pytest.raises(UserError, match='has search_history.jsonl, but not search.json'):
        search(config('first', resume=True))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'search.json is not JSON'),
        ('[]', 'search.json must hold a dict, got '),
        ('{"search": 3}', 'search.json is not a search result: it needs checkpoint_sha256'),
        ('{"config": 1, "settings": 2}', 'search.json is not a search result'),
        (None, 'search.json is not a search result'),
    ],
)
def test_an_identity_that_is_damaged(config, first, content, message):
    path = first / 'search.json'
    whole = json.loads(path.read_text())
    path.write_text(content or json.dumps(whole | dict(settings=2)))
    with pytest.raises(UserError, match=message):
        search(config('first', resume=True))


def test_without_the_journal_all_is_evaluated_again(config, first):
    expected = found_in(first)
    journal = first / 'search_journal.jsonl'
    journal.rename(first / 'search_journal.bin')  # what it was called in 0.1, in another format
    assert search(config('first', resume=True)) == expected
    log = max(first.glob('*/*.log')).read_text()
    assert f'{journal} is missing: all of them are evaluated again' in log


def test_a_history_of_other_numbers_is_refused(config, first):
    path = first / 'search_history.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]['cross_entropy'] *= 1.5
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with pytest.raises(UserError, match='line 4 is not of the subnet .* or has different numbers'):
        search(config('first', resume=True))


def test_weights_at_an_address_have_no_identity(config):
    cfg = config('first')
    with pytest.raises(UserError, match='is not a file.*download it first'):
        search_identity(cfg, 'http://somewhere/weights.pth', '')


def test_other_weights_are_noticed(config, first, tmp_path):
    cfg = config('first', resume=True)
    weights = torch.load(cfg.load_from, weights_only=True)
    weights['state_dict']['head.fc.bias'] += 1
    cfg.load_from = str(tmp_path / 'weights.pth')
    torch.save(weights, cfg.load_from)
    with pytest.raises(UserError, match='checkpoint_sha256 was'):
        search(cfg)


def test_a_history_of_other_subnets_is_refused(config, first):
    path = first / 'search_history.jsonl'
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match='line 1 is not of the subnet that this search scores next'):
        search(config('first', resume=True))


def test_what_a_search_was_is_on_disk(first):
    stored = json.loads((first / 'search.json').read_text())
    assert len(stored['checkpoint_sha256']) == 64
    assert {'torch', 'mmengine', 'tas-lora', 'python'} <= set(stored['versions'])
    assert stored['config']['val_cfg']['constraints'] == dict(params=[20e3, 40e3])


@pytest.mark.full
def test_the_tool_resumes(config, tmp_path, capsys):
    cfg = config('tool')
    cfg.dump(tmp_path / 'search.py')
    arguments = ('search.py', tmp_path / 'search.py', cfg.load_from)
    assert call_tool(*arguments) == 0
    assert call_tool(*arguments, '--resume') == 0
    assert 'Continuing after 18 subnets that are scored' in capsys.readouterr().out


@pytest.mark.parametrize(
    'kind', ['marked', 'marked by a number', 'concatenated', pytest.param('the same', marks=FULL)]
)
def test_the_test_set_is_refused(config, kind):
    cfg = config('test')
    cfg.val_dataloader = cfg.test_dataloader.copy()
    if kind == 'marked by a number':
        cfg.val_dataloader.dataset.test_mode = 1
    if kind == 'concatenated':
        part = cfg.val_dataloader.dataset
        cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[part])
    if kind == 'the same':
        cfg.val_dataloader.dataset.data_root += '/'
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.update(split='train', test_mode=False)
    with pytest.raises(UserError, match='val_dataloader.dataset is the test set'):
        search(cfg)
    cfg.val_cfg.search_on_test_set = True
    search(cfg)


def test_narrow_limits_are_told_with_their_share(config):
    cfg = config('narrow', options={'val_cfg.constraints': dict(params=(None, 13300))})
    search(cfg)
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert 'The limits are narrow: ' in log
    assert 'of 2,000 random subnets are within the limits: params asked for 0 to 13,300' in log


def test_the_share_of_a_space_within_limits():
    """Against the count over all subnets."""
    spec = dict(img_size=8, patch_size=2, in_channels=1, num_classes=5, head_dim=8)
    count = partial(count_params, **spec)
    sizes = sorted(count(SPACE.sample(np.random.default_rng(i))) for i in range(500))
    expected = sum(size <= sizes[100] for size in sizes) / len(sizes)  # many are equal
    limits = Limits(dict(params=(None, sizes[100])), dict(params=count))
    share, text = limits.survey(SPACE)
    assert share == pytest.approx(expected, abs=0.06)
    assert 'params asked for 0 to' in text
