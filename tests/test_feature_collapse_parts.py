"""The parts of projects/feature_collapse, without a training."""

import sys
from itertools import product
from math import prod, sqrt
from statistics import mean

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.registry import MODELS
from tiny import repeatable

from tas_lora import SearchSpace, UserError

PROJECT = ROOT / 'projects' / 'feature_collapse'
CONFIGS = PROJECT / 'configs'
sys.path.insert(0, str(PROJECT))

from feature_collapse import (  # noqa: E402
    edits,
    images,
    plan,
    progress,
    records,
    searches,
    settings,
)


def test_plan_has_every_net_once_behind_its_start():
    extra = ('ablations', 'ablations_dynas', 'past')
    main = [m.name for m in plan.METHODS.values() if m.part not in extra]
    assert len(plan.nets_of([0, 1], main)) == 2 * (10 + 5 * 6)
    nets = plan.nets_of([0, 1], plan.METHODS)
    assert len(nets) == len({net.name for net in nets})
    for place, net in enumerate(nets):
        assert net.start is None or net.start in nets[:place]
    same, other = (
        {n.init_seed for n in nets if n.method == f'independent_{kind}'}
        for kind in ('same', 'other')
    )
    assert same == {0, 1}
    assert len(other) == 12


def test_space_experts_and_subnets_agree():
    cfg = settings.load('mole', 'data')
    space = SearchSpace.coerce(cfg.space)
    groups = len(space.embed_dim) * len(space.num_heads) * len(space.mlp_ratio)
    assert cfg.model.backbone.mole.num_experts == groups
    assert cfg.model.backbone.arch == space.largest().to_dict()
    assert space.size >= 6


@pytest.mark.parametrize('method', ['mole', 'gru', 'joint', 'joint_start', 'embed'])
@pytest.mark.parametrize('name', edits.SPACES)
def test_another_space_reaches_supernet_router_and_loops(name, method):
    cfg = settings.load(plan.METHODS[method].config, 'data', space=name)
    model = MODELS.build(cfg.model)
    space = SearchSpace(**edits.SPACES[name])
    assert SearchSpace.coerce(cfg.train_cfg.space) == SearchSpace.coerce(cfg.val_cfg.space) == space
    assert model.router.space == space
    assert model.subnet == space.largest()
    axes = ('embed_dim',) if method == 'embed' else ('embed_dim', 'num_heads', 'mlp_ratio')
    assert model.router.num_experts == prod(len(getattr(space, axis)) for axis in axes)


def test_every_method_has_a_config_and_every_config_a_method():
    files = {str(path.relative_to(CONFIGS))[:-3] for path in CONFIGS.rglob('*.py')}
    configs = {method.config for method in plan.METHODS.values()}
    others = {'search', 'transfer/digits'}
    assert configs | others == {name for name in files if not name.startswith('_base_')}


def test_config_of_the_search_has_its_space_throughout():
    cfg = settings.load('search', 'data')
    space = SearchSpace(**edits.SPACES['search'])
    model = MODELS.build(cfg.model)
    assert SearchSpace.coerce(cfg.val_cfg.space) == model.router.space == space
    assert model.subnet == space.largest()


@pytest.mark.parametrize('name', sorted({method.config for method in plan.METHODS.values()}))
@pytest.mark.parametrize('factor', [0.01, 0.5, 3.0])
def test_stretched_schedules_have_no_gap(name, factor):
    cfg = settings.load(name, 'data')
    before = cfg.train_cfg.max_epochs
    edits.stretch_epochs(cfg, factor)
    total = cfg.train_cfg.max_epochs
    assert total == max(2, round(before * factor))
    schedules = cfg.param_scheduler
    schedules = (
        schedules.values()
        if isinstance(schedules, dict) and 'type' not in schedules
        else [schedules if isinstance(schedules, list) else [schedules]]
    )
    for schedule in schedules:
        if 'periods' in schedule[0]:
            assert schedule[0]['periods'] == [max(1, round(5 * factor))] * 4
            continue
        for step, following in zip(schedule, schedule[1:], strict=False):
            assert 0 <= step['begin'] < step['end'] == following['begin']
        if schedule[-1]['type'] == 'CosineAnnealingLR':
            assert schedule[-1]['end'] == total
            assert schedule[-1]['T_max'] == total - schedule[-1]['begin']


@repeatable
@given(st.integers(0, 10**6))
def test_shift_moves_each_image_by_its_offset(seed):
    rng = np.random.default_rng(seed)
    pictures = torch.from_numpy(rng.integers(1, 255, (4, 1, 5, 5), dtype=np.uint8))
    offsets = torch.from_numpy(rng.integers(-2, 3, (4, 2)))
    moved = images.shifted(pictures, offsets)
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    for picture, shifted, (down, right) in zip(padded, moved, offsets.tolist(), strict=True):
        assert torch.equal(shifted, picture[:, 2 - down : 7 - down, 2 - right : 7 - right])


def test_flips_are_as_likely_as_asked():
    sample = dict(inputs=torch.arange(25, dtype=torch.uint8).view(1, 5, 5), data_samples=None)
    flipped = {}
    for share in (0.0, 0.5, 1.0):
        batch = images.shift_flip_collate([sample] * 2000, shift=0, flip=share)['inputs']
        flipped[share] = float((batch[:, 0, 0, 0] == 4).float().mean())
    assert flipped[0.0] == 0
    assert flipped[1.0] == 1
    assert abs(flipped[0.5] - 0.5) < 4 * sqrt(0.25 / 2000)


def test_tasks_are_done_once_by_whoever_holds_the_lock(tmp_path, monkeypatch):
    """What another process is at is waited for, and what needs it comes after."""
    monkeypatch.setattr(progress, 'PAUSE', 0.0)
    done, said, looks = [], [], []

    def task(name: str, needs: str | None = None) -> progress.Task:
        return progress.Task(
            name,
            1.0,
            tmp_path / f'{name}.lock',
            lambda: name in done,
            lambda: needs is None or needs in done,
            lambda: done.append(name) or name,
        )

    def other_process(*_):
        looks.append(1)
        done.append('held')

    monkeypatch.setattr(progress.time, 'sleep', other_process)
    with progress._held(tmp_path / 'held.lock') as is_ours:
        assert is_ours
        tasks = [task('after', needs='held'), task('held'), task('free')]
        progress.work_off(tasks, said.append)
    assert done == ['free', 'held', 'after']
    assert len(looks) == 1
    assert said[0] == '0 of 3 are there'
    assert len(said) == 3


def test_damaged_and_missing_records_are_told(tmp_path):
    with pytest.raises(UserError, match='has no records'):
        records.read_all(tmp_path)
    records.write(tmp_path, dict(net='a_seed0', digest='x'))
    assert records.read(tmp_path, 'a_seed0', 'x') == dict(net='a_seed0', digest='x')
    assert records.read(tmp_path, 'b_seed0') is None
    (tmp_path / 'a_seed0.json').write_text('{')
    with pytest.raises(UserError, match='is no JSON'):
        records.read(tmp_path, 'a_seed0')


def made_up_scores(space: SearchSpace) -> searches.Scores:
    """A landscape without local minima: a loss that falls with every choice, and its rank."""
    params = [s.embed_dim + 10 * sum(s.num_heads) + 3 * int(sum(s.mlp_ratio)) for s in space]
    loss = [1 / (s.embed_dim + sum(s.num_heads) + 0.1 * sum(s.mlp_ratio)) for s in space]
    return searches.Scores(params, loss, [-x for x in loss], list(range(len(loss))))


@pytest.mark.parametrize('kind', searches.KINDS)
def test_a_search_scores_sixty_subnets_within_the_budget(kind):
    space = SearchSpace(**edits.SPACES['search'])
    scores = made_up_scores(space)
    most = sorted(scores.params)[len(scores.params) // 2]
    allowed = [i for i, n in enumerate(scores.params) if n <= most]
    least = min(scores.loss[i] for i in allowed)
    for seed in range(5):
        found = searches.search(space, scores, kind, most, seed)
        assert found.scored == 60
        assert found.test in allowed
        assert found.heldout == -scores.loss[found.test]
        assert found.regret == scores.loss[found.test] - least >= 0


def test_evolution_beats_random_search_where_every_step_up_is_seen():
    space = SearchSpace(**edits.SPACES['search'])
    scores = made_up_scores(space)
    most = float(np.quantile(scores.params, 0.75))
    regret = {
        kind: mean(searches.search(space, scores, kind, most, seed).regret for seed in range(40))
        for kind in searches.KINDS
    }
    assert 0 < regret['evolution'] < regret['random']


def test_summary_has_a_row_for_each_budget_and_kind():
    space = SearchSpace(**edits.SPACES['nano'])
    rows = searches.summary(space, made_up_scores(space), range(2))
    assert [(r['share'], r['kind']) for r in rows] == [*product(searches.SHARES, searches.KINDS)]
    assert all(row['found_the_best'] == 1 and row['regret'] == 0 for row in rows)
