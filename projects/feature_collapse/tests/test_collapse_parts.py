"""Plan, spaces, schedules, images, tasks and searches, without a training."""

import copy
from itertools import product
from math import prod, sqrt
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from feature_collapse import edits, images, plan, progress, searches, settings
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.registry import MODELS
from tiny import repeatable

from tas_lora import SearchSpace

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


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
def test_stretched_schedules_have_no_gap(name):
    before = settings.load(name, 'data')
    for factor in (0.01, 0.5, 3.0):
        cfg = copy.deepcopy(before)
        edits.stretch_epochs(cfg, factor)
        total = cfg.train_cfg.max_epochs
        assert total == max(2, round(before.train_cfg.max_epochs * factor))
        for schedule in schedules_of(cfg):
            if 'periods' in schedule[0]:
                assert schedule[0]['periods'] == [max(1, round(5 * factor))] * 4
                continue
            for step, following in zip(schedule, schedule[1:], strict=False):
                assert 0 <= step['begin'] < step['end'] == following['begin']
            if schedule[-1]['type'] == 'CosineAnnealingLR':
                assert schedule[-1]['end'] == total
                assert schedule[-1]['T_max'] == total - schedule[-1]['begin']


def schedules_of(cfg) -> list[list[dict]]:
    """The schedules of a config, one an optimizer."""
    found = cfg.param_scheduler
    if isinstance(found, dict) and 'type' not in found:
        return list(found.values())
    return [found if isinstance(found, list) else [found]]


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


def test_summary_has_means_for_each_budget_and_kind_and_evolution_ahead():
    """Ahead where every step up is seen, as in this landscape."""
    space = SearchSpace(**edits.SPACES['search'])
    scores = made_up_scores(space)
    rows = {(r['share'], r['kind']): r for r in searches.summary(space, scores, range(20))}
    assert list(rows) == [*product(searches.SHARES, searches.KINDS)]
    most = float(np.quantile(scores.params, 0.75))
    found = [searches.search(space, scores, 'random', most, seed) for seed in range(20)]
    row = rows[0.75, 'random']
    assert row['most'] == most
    assert row['regret'] == pytest.approx(mean(f.regret for f in found))
    assert row['found_the_best'] == sum(f.regret == 0 for f in found) / 20
    assert 0 < rows[0.75, 'evolution']['regret'] < row['regret']
