"""Costs of a space ahead of training, against enumeration, other formulas and real data sets."""

import json
from math import sqrt

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS
from tiny import CLASSES, IMAGE, MOLE, SPACE, every, repeatable, spaces, tiny_model
from torch.utils.data import DataLoader

from tas_lora import SearchSpace, UserError, count_flops, count_params
from tas_lora.costs import space_costs as costs
from tas_lora.costs import space_timing as timing
from tas_lora.costs.benchmark import batch_of
from tas_lora.costs.space_report import in_words
from tas_lora.search import Evolution

SPEC = dict(IMAGE, num_classes=CLASSES)
MOLE_CONFIG = str(ROOT / 'configs' / 'digits_moLE.py')
SEARCH_CONFIG = str(ROOT / 'configs' / 'digits_search.py')


def chance(subnet, space: SearchSpace) -> float:
    """Of a uniform draw: over widths, over depths, over the blocks' choices."""
    per_block = len(space.num_heads) * len(space.mlp_ratio)
    return 1 / (len(space.embed_dim) * len(space.depth) * per_block**subnet.depth)


@repeatable
@given(spaces(depths=(1, 2)))
def test_number_and_ends_are_those_of_the_enumeration(space):
    found, subnets = costs.count_space(space, SPEC, draws=1), every(space)
    assert found['subnets'] == len(subnets)
    for name, cost in (('params', count_params), ('flops', count_flops)):
        values = [cost(subnet, **SPEC) for subnet in subnets]
        assert found[name]['smallest'] == min(values)
        assert found[name]['largest'] == max(values)


def test_mean_and_quantiles_are_those_of_the_enumeration():
    draws, subnets = 4000, every(SPACE)
    found = costs.count_space(SPACE, SPEC, draws)
    weights = np.array([chance(subnet, SPACE) for subnet in subnets])
    assert weights.sum() == pytest.approx(1)
    for name, cost in (('params', count_params), ('flops', count_flops)):
        values = np.array([cost(subnet, **SPEC) for subnet in subnets])
        mean = weights @ values
        error = sqrt(weights @ (values - mean) ** 2 / draws)
        assert abs(found[name]['mean'] - mean) < 4 * error
        for share, value in zip(costs.QUANTILES, found[name]['quantiles'], strict=True):
            tolerance = 4 * sqrt(share * (1 - share) / draws)
            assert weights[values < value].sum() < share + tolerance
            assert weights[values <= value].sum() > share - tolerance


def test_draws_follow_the_seed():
    one, again, other = (costs.count_space(SPACE, SPEC, 50, seed) for seed in (3, 3, 4))
    assert one == again
    assert one['params']['mean'] != other['params']['mean']


def test_weights_by_the_formula_of_the_factors():
    arch, K, rank = SPACE.largest(), MOLE['num_experts'], MOLE['rank']
    width, inner, hidden = (
        arch.embed_dim,
        arch.num_heads[0] * IMAGE['head_dim'],
        arch.hidden_dims[0],
    )
    shapes = [(width, 3 * inner), (inner, width), (width, hidden), (hidden, width)]
    experts = arch.depth * K * rank * sum(i + o for i, o in shapes)
    model = tiny_model()
    found = costs.count_weights(model)
    assert found['supernet'] == count_params(arch, **SPEC)
    assert found['experts'] == experts
    assert found['trained'] == experts + found['router']
    total = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    assert found['supernet'] + found['experts'] + found['router'] <= total  # buffers besides
    assert costs.count_experts(model) == (K, K)


def test_without_experts_all_is_trained():
    model, params = tiny_model(mole=False), count_params(SPACE.largest(), **SPEC)
    assert costs.count_weights(model) == dict(supernet=params, experts=0, router=0, trained=params)
    assert costs.count_experts(model) is None


@pytest.mark.parametrize('loader', ['train_dataloader', 'heldout_dataloader'])
def test_images_are_those_of_the_data_set(loader, digits_config):
    cfg = digits_config('supernet')
    dataset = cfg[loader].dataset
    wrapped = dataset if loader == 'heldout_dataloader' else dataset.dataset
    whole = DATASETS.build(wrapped.dataset)
    assert costs.images_read(dataset, len(whole)) == len(DATASETS.build(dataset)) > 0


def test_images_that_cannot_be_known_are_refused():
    split = dict(type='tas_lora.HeldOutSplit', part='train', size=10, dataset=dict(type='MNIST'))
    assert costs.images_read(split, 11) == 1
    assert costs.images_read(dict(type='RepeatDataset', times=3, dataset=split), 15) == 15
    with pytest.raises(UserError, match='cannot hold out 10 of 10 training images'):
        costs.images_read(split, 10)
    with pytest.raises(UserError, match='is a list of files'):
        costs.images_read(split | dict(images='autoformer'), 11)


@pytest.mark.parametrize(
    'evolution', [dict(population=7, generations=3, mutations=2, crossovers=2), dict(population=60)]
)
def test_candidates_are_what_the_evolution_asks_for(evolution):
    space = SearchSpace([16, 24, 32], [1, 2], [1, 2], [1.0, 2.0])  # of 60
    search, asked = Evolution(space, lambda subnet: True, **evolution), 0
    while subnets := search.ask():
        asked += len(subnets)
        search.tell({subnet: subnet.embed_dim for subnet in subnets})
    assert costs.candidates_of(dict(evolution=evolution), space) == asked


def test_expected_seconds_lie_on_the_line_through_what_was_timed():
    rng = np.random.default_rng(0)
    flops = {f'{i}': float(value) for i, value in enumerate(rng.uniform(1e6, 9e6, 6))}
    exact = {name: 0.02 + 3e-9 * value for name, value in flops.items()}
    assert costs.expected_seconds(exact, flops, 7e6) == pytest.approx(0.041)
    noisy = {name: value + rng.normal(0, 1e-3) for name, value in exact.items()}
    line = np.polyfit(list(flops.values()), list(noisy.values()), 1)
    assert costs.expected_seconds(noisy, flops, 4e6) == pytest.approx(np.polyval(line, 4e6))
    assert costs.expected_seconds(dict(a=1.0, b=3.0), dict(a=5.0, b=5.0), 5.0) == 2.0


@repeatable
@given(st.integers(1, 500), st.integers(1, 64), st.booleans())
def test_steps_are_those_of_a_dataloader(images, size, drop_last):
    loader = DataLoader(range(images), size, drop_last=drop_last)
    assert costs.steps_of(images, dict(batch_size=size, drop_last=drop_last)) == len(loader)


def test_workers_read_while_a_step_runs():
    loader = dict(batch_size=10)
    assert costs.step_with_reading(0.5, 0.1, loader) == pytest.approx(1.5)
    assert costs.step_with_reading(0.5, 0.1, dict(loader, num_workers=1)) == pytest.approx(1.0)
    assert costs.step_with_reading(0.5, 0.1, dict(loader, num_workers=4)) == pytest.approx(0.5)


def test_every_subnet_is_timed_and_trained():
    model = tiny_model().train()
    subnets = costs.chosen_subnets(SPACE, 2, seed=0)
    assert list(subnets) == ['smallest', 'drawn 1', 'drawn 2', 'largest']
    assert all(subnet in SPACE for subnet in subnets.values())
    batch, calls = batch_of(SPEC, 4, 'cpu'), []
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    seconds = timing.time_steps(model, subnets, batch, 2, tell=lambda: calls.append('step'))
    after = [p for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    found = timing.time_evaluations(model, subnets, batch[0], 2, lambda: calls.append('forward'))
    assert calls == ['step'] * 12 + ['forward'] * 12  # warm-up and two rounds of four
    assert not model.is_merged
    for times in (seconds, found['merge'], found['forward']):
        assert {name: len(values) for name, values in times.items()} == dict.fromkeys(subnets, 2)
        assert all(value > 0 for values in times.values() for value in values)


def test_memory_of_a_step_is_weights_and_so_much_for_each_image():
    model, largest = tiny_model().train(), SPACE.largest()
    one, two, three = (
        timing.step_memory(model, largest, batch_of(SPEC, size, 'cpu')) for size in (4, 8, 12)
    )
    assert three - two == two - one > 0
    weights = costs.count_weights(model)
    total = weights['supernet'] + weights['experts'] + weights['router']
    assert one - (two - one) > 4 * (total + 3 * weights['trained'])
    assert timing.step_memory(model, SPACE.smallest(), batch_of(SPEC, 4, 'cpu')) < one


PLAIN = dict(
    subnets=5000,
    params=dict(smallest=100, largest=300),
    weights=dict(supernet=330),
    experts=(8, 8),
    search=dict(candidates=1000, images=500),
)


@pytest.mark.parametrize(
    ('change', 'hint'),
    [
        (dict(params=dict(smallest=100, largest=119), weights=dict(supernet=119)), 'only 1.19 x'),
        (dict(weights=dict(supernet=390)), 'lower model.backbone.arch'),
        (dict(subnets=1000), 'no more than the search asks for'),
        (dict(experts=(9, 8)), 'K is 9, but there are only 8 groups'),
        (dict(search=dict(candidates=1000, images=40)), '2.5 points'),
    ],
)
def test_what_is_odd_is_said_and_nothing_else(change, hint):
    assert costs.find_hints(PLAIN) == []
    (found,) = costs.find_hints(PLAIN | change)
    assert hint in found


def test_pixels_are_those_of_the_images_read():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 4, 4)).astype(np.float32)
    pixels[:, 0] /= 4
    dataset = [dict(inputs=torch.from_numpy(image)) for image in pixels]
    found = timing.try_reading(dataset)
    assert found['mean'] == pytest.approx(pixels.mean(axis=(0, 2, 3)), rel=1e-6)
    assert found['std'] == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-2)
    assert found['reading'] > 0


def test_pixels_far_off_are_told_in_the_order_of_the_model():
    usual = dict(mean=[120.0, 110.0, 100.0], std=[60.0] * 3, to_rgb=True)
    assert costs.pixel_hint([90, 100, 110], [60, 50, 70], usual) == []  # B, G, R as read
    (hint,) = costs.pixel_hint([230.0, 240.0, 250.0], [60.0] * 3, usual)
    assert 'mean=[250.0, 240.0, 230.0]' in hint
    assert 'a mean of 2.2 and a spread of 1.0' in hint
    (hint,) = costs.pixel_hint([100.0, 110.0, 120.0], [12.0] * 3, usual)
    assert 'std=[12.0, 12.0, 12.0]' in hint
    assert costs.pixel_hint([230, 240, 250], [60, 60, 60], {}) == []


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(4.25, '4.2 s'), (89, '89 s'), (91, '1.5 min'), (7200, '2.0 h'), (9e5, '10 days')],
)
def test_seconds_in_words(seconds, text):
    assert in_words(seconds) == f'about {text}'


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the tool far from any data; returns its text and its figures."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[str, dict]:
        options = ('--subnets', 1, '--rounds', 1, '--device', 'cpu', '--json', 'found.json')
        assert call_tool('space_costs.py', *arguments, *options) == 0
        return capsys.readouterr().out, json.loads((tmp_path / 'found.json').read_text())

    return call


def test_tool_on_the_digits(run, digits_root):
    text, found = run(MOLE_CONFIG)
    assert found['subnets'] == 3 * (4**2 + 4**3 + 4**4)
    assert '13,202' in text  # the README's smallest and largest
    assert '87,554' in text
    assert 'give their number with --images' in text
    assert 'training_seconds' not in found
    text, told = run(MOLE_CONFIG, '--images', 1437)
    assert (told['training']['images'], told['training']['steps']) == (5 * 1150, 12 * 89)
    assert told['search']['images'] == 287
    per_step = told['training_seconds'] / told['training']['steps']
    slowest = max(max(seconds) for seconds in told['timed']['step'].values())
    assert 0 < per_step < slowest
    assert 'without the reading of images' in text
    place = 'train_dataloader.dataset.dataset.dataset.data_root'
    _, found = run(MOLE_CONFIG, '--cfg-options', f'{place}={digits_root}')
    assert (
        found['training'].items()
        >= {
            name: told['training'][name] for name in ('epochs', 'images', 'steps', 'subnets')
        }.items()
    )
    assert found['training']['reading'] > 0
    assert found['hints'] == []
    assert found['search']['images'] is None


def test_tool_on_a_search_config(run):
    text, found = run(SEARCH_CONFIG, '--images', 1437)
    assert found['search'] == dict(candidates=200, images=287)
    assert found['search_seconds'] > 0
    assert 'Search: 200 subnets x 287 held-out images: about' in text
    assert 'Training' not in text
    _, counted = run(SEARCH_CONFIG, '--images', 1437, '--no-timing')
    assert 'timed' not in counted
    assert counted['params'] == found['params']


def test_tool_says_how_many_subnets_a_step_trains(run):
    _, one = run(MOLE_CONFIG, '--no-timing')
    rule = 'train_cfg.strategy.type=tas_lora.SandwichRule'
    _, four = run(MOLE_CONFIG, '--no-timing', '--cfg-options', rule)
    assert (one['training']['subnets'], four['training']['subnets']) == (1, 4)
    rule = (
        'train_cfg.strategy.type=tas_lora.ParentDistillation',
        'train_cfg.strategy.subnets=sandwich',
    )
    kept = 'model.keep_parent=True'  # so that the largest is not trained
    _, three = run(MOLE_CONFIG, '--no-timing', '--cfg-options', *rule, kept)
    assert (three['training']['subnets'], three['training']['teachers']) == (3, 1)


@pytest.mark.parametrize(
    ('arguments', 'why'),
    [
        (['nowhere.py'], 'config nowhere.py does not exist'),
        ([ROOT / 'configs' / 'transfer' / 's_cars.py'], 'has no space'),
        ([MOLE_CONFIG, '--images', 0], '--images must be a positive integer, got 0'),
        ([MOLE_CONFIG, '--images', 287], 'cannot hold out 287 of 287 training images'),
        ([MOLE_CONFIG, '--rounds', 0], '--rounds must be a positive integer'),
        ([MOLE_CONFIG, '--subnets', -1], '--subnets must be an integer from 0'),
        ([MOLE_CONFIG, '--json', 'no/such/file'], 'must be a file in an existing folder'),
        (
            [MOLE_CONFIG, '--cfg-options', 'model.backbone.mole.num_experts=20'],
            'num_experts is 20, but router.space has 12 groups',
        ),
        (
            [MOLE_CONFIG, '--cfg-options', 'train_cfg.space.embed_dim=[48]'],
            'does not fit: embed_dim is 48',
        ),
    ],
)
def test_mistakes_are_one_line(arguments, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call_tool('space_costs.py', *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert why in line
