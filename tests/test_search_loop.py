"""The search as a user runs it: runner, held-out data, limits, history."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from tas_lora import Subnet, UserError, count_params
from tas_lora.evaluation import CrossEntropy

SMALL = {
    'val_cfg.evolution': dict(population=6, generations=3, parents=3, mutations=2, crossovers=2),
    'val_cfg.constraints': dict(params=(20e3, 40e3)),
}


def search(cfg) -> list[dict]:
    """Run a search; returns its history."""
    Runner.from_cfg(cfg).val()
    history = Path(cfg.work_dir) / 'search_history.jsonl'
    return [json.loads(line) for line in history.read_text().splitlines()]


def test_history_holds_limits_and_the_best(digits_config):
    cfg = digits_config('search', options=SMALL)
    history = search(cfg)
    assert len(history) == 18
    assert [line['generation'] for line in history] == [0] * 6 + [1] * 6 + [2] * 6
    subnets = [Subnet.from_dict(line['subnet']) for line in history]
    assert len(set(subnets)) == 18
    spec = dict(img_size=8, patch_size=2, in_channels=1, num_classes=10)
    for line, subnet in zip(history, subnets, strict=True):
        assert line['params'] == count_params(subnet, max_relative_position=3, head_dim=16, **spec)
        assert 20e3 <= line['params'] <= 40e3
    best = json.loads((Path(cfg.work_dir) / 'best_subnet.json').read_text())
    expected = min(history, key=lambda line: line['cross_entropy'])
    assert best['subnet'] == expected['subnet']
    assert best['cross_entropy'] == expected['cross_entropy']


def test_same_seed_same_history(digits_config):
    first, second = (search(digits_config('search', options=SMALL)) for _ in range(2))
    assert first == second


def test_another_seed_another_history(digits_config):
    first = search(digits_config('search', options=SMALL))
    second = search(digits_config('search', options={**SMALL, 'val_cfg.evolution.seed': 1}))
    assert [line['subnet'] for line in first] != [line['subnet'] for line in second]


@pytest.mark.parametrize(
    ('constraints', 'message'),
    [
        (dict(params=(None, 1000)), r'no subnet .* asked for 0 to 1,000, the space has 13,202 to'),
        (dict(flops=(1e12, None)), 'the space has 247,368 to 1,624,628'),
        (
            dict(latency=(0, 1)),
            r"constraints.latency is unknown; choose from \['flops', 'params'\]",
        ),
        (dict(params=5), r'constraints.params must be \(low, high\), got 5'),
        (dict(params=(2, 1)), 'low 2 is above high 1'),
    ],
)
def test_limits_that_make_no_sense(digits_config, constraints, message):
    cfg = digits_config('search')
    cfg.val_cfg.constraints = constraints
    with pytest.raises(UserError, match=message):
        Runner.from_cfg(cfg).val()


def test_unknown_score_names_the_metrics(digits_config):
    cfg = digits_config('search', options={'val_cfg.score': 'loss'})
    with pytest.raises(UserError, match=r"'loss', but val_evaluator gives .*'cross_entropy'"):
        Runner.from_cfg(cfg).val()


def test_space_beyond_the_supernet(digits_config):
    cfg = digits_config('search', options={'val_cfg.space.num_heads': [2, 5]})
    with pytest.raises(UserError, match=r'num_heads\[0\] is 5, the supernet has 3'):
        Runner.from_cfg(cfg).val()


def test_cross_entropy_is_the_mean_negative_log_likelihood():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    metric = CrossEntropy()
    samples = [
        dict(gt_label=label[None], pred_score=row.softmax(0))
        for row, label in zip(logits, labels, strict=True)
    ]
    metric.process(None, samples)
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert metric.evaluate(7)['cross_entropy'] == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_a_score_of_zero_is_finite():
    metric = CrossEntropy()
    metric.process(None, [dict(gt_label=torch.tensor([1]), pred_score=torch.tensor([1.0, 0.0]))])
    assert 80 < metric.evaluate(1)['cross_entropy'] < 100


def test_accuracy_is_maximised(digits_config):
    options = {**SMALL, 'val_cfg.score': 'accuracy/top1', 'val_cfg.rule': 'greater'}
    cfg = digits_config('search', options=options)
    history = search(cfg)
    best = json.loads((Path(cfg.work_dir) / 'best_subnet.json').read_text())
    assert best['accuracy/top1'] == max(line['accuracy/top1'] for line in history)
    assert len({line['accuracy/top1'] for line in history}) > 1


def test_weights_that_give_nan_find_nothing(digits_config):
    runner = Runner.from_cfg(digits_config('search', options=SMALL))
    torch.nn.init.constant_(runner.model.head.fc.bias, float('nan'))
    with pytest.raises(UserError, match='no subnet has a finite cross_entropy'):
        runner.val()
