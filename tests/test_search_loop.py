"""The search as a user runs it: runner, held-out data, limits, history."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from tas_lora import Subnet, UserError, count_params
from tas_lora.datasets.held_out_images import HeldOutImages, size_in_bytes
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
        (dict(params=(2, 1)), 'constraints.params has low 2 above high 1'),
    ],
)
def test_limits_that_make_no_sense(digits_config, constraints, message):
    cfg = digits_config('search')
    cfg.val_cfg.constraints = constraints
    with pytest.raises(UserError, match=message):
        Runner.from_cfg(cfg).val()


def test_generations_may_overlap(digits_config):
    sizes = {**SMALL, 'val_cfg.evolution.overlap': 1}
    history, plain = (search(digits_config('search', options=one)) for one in (sizes, SMALL))
    assert [line['generation'] for line in history] == [0] * 6 + [1] * 6 + [2] * 6
    assert len({str(line['subnet']) for line in history}) == 18
    assert history[:6] == plain[:6]
    assert history[6:12] != plain[6:12]  # bred from nothing yet


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'val_cfg.race': dict()}, r'evolution.overlap is 1, but a generation races .* race=None'),
        ({'val_cfg.goals': ['params']}, 'evolution.overlap is 1: with goals, .* set it to 0'),
    ],
)
def test_an_overlap_where_generations_need_each_other(digits_config, options, message):
    cfg = digits_config('search', options={**SMALL, 'val_cfg.evolution.overlap': 1, **options})
    with pytest.raises(UserError, match=message):
        Runner.from_cfg(cfg).val()


def test_unknown_score_names_the_metrics(digits_config):
    cfg = digits_config('search', options={'val_cfg.score': 'loss'})
    message = r"'loss', but the numbers that val_evaluator gives are .*'cross_entropy'"
    with pytest.raises(UserError, match=message):
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


def test_images_are_decoded_once_for_all_subnets(digits_config, monkeypatch):
    """And the scores are those of a search that reads them anew for each."""
    decoded, histories = [], []
    for share in (0.5, 0):
        cfg = digits_config('search', options=SMALL)
        cfg.val_cfg.memory_share, cfg.val_dataloader.batch_size = share, 64
        runner = Runner.from_cfg(cfg)
        dataset, seen = runner.val_loop.dataloader.dataset.dataset, []
        monkeypatch.setattr(
            type(dataset), '__getitem__', _counted(type(dataset).__getitem__, seen), raising=True
        )
        runner.val()
        monkeypatch.undo()
        decoded.append(len(seen) / len(dataset))
        history = (Path(cfg.work_dir) / 'search_history.jsonl').read_text()
        histories.append(history)
    assert decoded == [1, 18]
    assert histories[0] == histories[1]


def _counted(getitem, seen):
    def spy(self, index):
        seen.append(index)
        return getitem(self, index)

    return spy


def numbered(count: int) -> DataLoader:
    """Images that say which they are."""
    samples = [
        dict(inputs=torch.full((8,), i, dtype=torch.uint8), data_samples=DataSample())
        for i in range(count)
    ]
    return DataLoader(samples, batch_size=2, collate_fn=pseudo_collate)


def numbers(batches) -> list[list[int]]:
    return [[int(image[0]) for image in batch['inputs']] for batch in batches]


@pytest.mark.parametrize(('share', 'kept'), [(1.0, True), (1e-12, False), (0, False)])
def test_images_are_kept_only_if_they_fit(share, kept):
    images = HeldOutImages(numbered(5), share)
    for _ in range(2):
        assert numbers(images.batches()) == [[0, 1], [2, 3], [4]]
        assert numbers(images.batches([3, 0, 4])) == [[3, 0], [4]]
    assert (images.kept is not None) == kept
    first = next(iter(images.batches()))
    first['data_samples'][0].set_pred_label(1)
    assert 'pred_label' not in next(iter(images.batches()))['data_samples'][0]
    assert len(images) == 5


def test_what_is_kept_of_some_images_serves_others():
    images = HeldOutImages(numbered(5))
    assert numbers(images.batches([1, 4])) == [[1, 4]]
    assert sorted(images.kept) == [1, 4]
    assert numbers(images.batches([4, 2])) == [[4, 2]]
    assert sorted(images.kept) == [1, 2, 4]
    assert size_in_bytes(images.kept[4]) == 8


def test_a_batch_sampler_of_the_config_is_refused():
    loader = DataLoader([0, 1], batch_sampler=[[0], [1]])
    with pytest.raises(UserError, match='^batch_sampler has no effect: .* set batch_size'):
        HeldOutImages(loader)


def test_finalists_of_a_bfloat16_search_are_confirmed_in_float32(digits_config):
    evolution = SMALL['val_cfg.evolution']
    options = {'val_cfg.evolution': evolution, 'val_cfg.finalists': 4}
    plain = search(digits_config('search', options=options))
    cfg = digits_config('search', options={**options, 'val_cfg.precision': 'bfloat16'})
    history = search(cfg)
    assert [line['precision'] for line in history] == ['bfloat16'] * 18 + ['float32'] * 4
    exact = {str(line['subnet']): line['cross_entropy'] for line in plain}
    low, finals = history[:18], history[18:]
    assert any(line['cross_entropy'] != exact.get(str(line['subnet'])) for line in low)
    for line in finals:
        if str(line['subnet']) in exact:
            assert line['cross_entropy'] == exact[str(line['subnet'])]
    chosen = sorted(low, key=lambda line: line['cross_entropy'])[:4]
    assert {str(line['subnet']) for line in finals} == {str(line['subnet']) for line in chosen}
    best = json.loads((Path(cfg.work_dir) / 'best_subnet.json').read_text())
    assert best['cross_entropy'] == min(line['cross_entropy'] for line in finals)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('precision', 'int8', "precision must be 'float32' or 'bfloat16', got 'int8'"),
        ('fp16', True, "fp16 must be False: use precision='bfloat16'"),
        ('memory_share', 7, 'memory_share must be a number from 0 to 1, got 7'),
        ('memory_share', 'a', "memory_share must be a number from 0 to 1, got 'a'"),
    ],
)
def test_options_of_the_evaluation_that_make_no_sense(digits_config, field, value, message):
    cfg = digits_config('search', options={f'val_cfg.{field}': value})
    with pytest.raises(UserError, match=message):
        Runner.from_cfg(cfg).val_loop  # noqa: B018


def test_kept_images_leave_shared_memory(digits_config):
    cfg = digits_config('search')
    cfg.val_dataloader.update(num_workers=1, batch_size=64)
    loop = Runner.from_cfg(cfg).val_loop
    list(loop.images.batches())
    assert len(loop.images.kept) == len(loop.images)
    assert not any(sample['inputs'].is_shared() for sample in loop.images.kept.values())
