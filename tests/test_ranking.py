"""Ranking: Kendall's tau, scores image by image, and the tool."""

import json
from itertools import combinations
from math import exp, log

import numpy as np
import pytest
import torch
from analysed import (
    SMALL,
    WIDE,
    analyse,
    named,
    result,
    write_alone,
    write_checkpoint,
    write_config,
)
from conftest import call_tool
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.structures import DataSample
from tiny import CLASSES, SPACE, every, images, randomize, repeatable, tiny_model

from tas_lora import UserError
from tas_lora.analysis.ranking import check_sanity, kendall_tau, score, taus

RECORD = '{"subnet": {"embed_dim": 24, "num_heads": [2], "mlp_ratio": [2]}, "top1": %s}'
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


@given(pairs)
@repeatable
def test_tau_counts_pairs(points):
    a, b = zip(*points, strict=True)
    alike = reverse = in_a = in_b = 0
    for (x, y), (u, v) in combinations(points, 2):
        in_a, in_b = in_a + (x != u), in_b + (y != v)
        alike += (x - u) * (y - v) > 0
        reverse += (x - u) * (y - v) < 0
    got = kendall_tau(a, b)
    if not in_a * in_b:
        assert np.isnan(got)
    else:
        assert got == pytest.approx((alike - reverse) / (in_a * in_b) ** 0.5)


@given(pairs)
@repeatable
def test_tau_is_scipys(points):
    stats = pytest.importorskip('scipy.stats')
    a, b = zip(*points, strict=True)
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, nan_ok=True)


def test_tau_at_its_ends():
    assert kendall_tau([1, 2, 5], [0.1, 0.4, 0.5]) == 1
    assert kendall_tau([1, 2, 5], [3, 2, 1]) == -1
    assert np.isnan(kendall_tau([1], [1]))


def batches_of(labels: list[int]) -> list[dict]:
    samples = [DataSample().set_gt_label(label) for label in labels]
    inputs = images(len(labels))
    return [
        dict(inputs=list(inputs[i : i + 3]), data_samples=samples[i : i + 3])
        for i in range(0, len(labels), 3)
    ]


@pytest.mark.parametrize('mole', [False, True])
def test_scores_are_those_of_each_image(mole):
    model, subnet = randomize(tiny_model(mole), std=0.4), every(SPACE)[9]
    labels = [0, 3, 1, 4, 2, 0, 1, 3]
    found = score(model, subnet, batches_of(labels))
    model.set_subnet(subnet)
    right = loss = 0
    for image, label in zip(images(8), labels, strict=True):
        with torch.no_grad():
            logits = model(image[None], mode='tensor')[0].tolist()
        right += logits.index(max(logits)) == label
        loss += log(sum(map(exp, logits))) - logits[label]
    assert found == dict(top1=100 * right / 8, loss=pytest.approx(loss / 8, rel=1e-4))
    assert len(logits) == CLASSES


def test_score_puts_the_model_back_and_needs_images():
    model = tiny_model()
    model.train()
    score(model, SPACE.smallest(), batches_of([1, 2]))
    assert model.training
    assert model.subnet == SPACE.largest()
    assert not model.is_merged
    with pytest.raises(UserError, match='no images'):
        score(model, SPACE.smallest(), [])


def test_taus_of_the_scores_that_all_have():
    supernet = [dict(top1=1, loss=3), dict(top1=2, loss=2), dict(top1=3, loss=1)]
    alone = [dict(top1=10, loss=1), dict(top1=11, loss=2), dict(top1=12, loss=3)]
    assert taus(supernet, alone) == dict(top1=1, loss=-1)
    assert taus(supernet, [dict(top1=11.5), *alone[1:]]) == dict(top1=pytest.approx(1 / 3))


def test_the_largest_should_be_better():
    worse, better = dict(top1=80, loss=0.5), dict(top1=81, loss=0.4)
    assert check_sanity(worse, better) == dict(top1=True, loss=True)
    assert check_sanity(better, worse) == check_sanity(worse, worse) == dict(top1=False, loss=False)


@pytest.fixture
def supernet(tmp_path):
    config = write_config(tmp_path / 'net.py', 'moLE')
    write_checkpoint(config)
    return config


def test_tool_ranks_networks_and_records(supernet, digits_root, tmp_path, capsys):
    alone = write_alone(tmp_path / 'alone.py', SMALL)
    write_checkpoint(alone, seed=5)
    bare = write_config(tmp_path / 'bare.py', 'supernet')
    write_checkpoint(bare, seed=6)
    records = [dict(name='wide', subnet=WIDE, top1=30.5), dict(subnet=SMALL, top1=1.5)]
    (tmp_path / 'record.json').write_text(json.dumps(records))
    (tmp_path / 'other.json').write_text(json.dumps(dict(subnet=WIDE, top1=99)))
    options = ('--scores', tmp_path / 'record.json', tmp_path / 'other.json')
    options += ('--nets', named('small', alone), '--beside', named('bare', bare), '--images', 100)
    assert analyse('ranking', supernet, digits_root, *options) == 0
    found = result(supernet, 'ranking')
    assert list(found['alone']) == ['small', 'wide', 'record_1', 'other']
    assert found['images'] == 100
    assert set(found['made_by']['checkpoints']) == {'net', 'bare', 'small'}
    for name in ('net', 'bare'):
        subnets = found['predicted'][name]['subnets']
        assert subnets['small'] == subnets['record_1']  # of one architecture
        assert subnets['wide'] == subnets['other']
        both = [(found['alone'][k]['top1'], subnets[k]['top1']) for k in subnets]
        tau = found['tau'][name]['top1']
        expected = kendall_tau(*zip(*both, strict=True))
        assert (np.isnan(expected) and tau is None) or tau == pytest.approx(expected, abs=1e-5)
        ends = found['predicted'][name]
        better = ends['largest']['loss'] < ends['smallest']['loss']
        assert ends['sane']['loss'] == better
    assert 'larger is better' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'ranking.png').stat().st_size > 10_000


def test_tool_scores_as_the_test_tool_does(supernet, digits_root, tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(dict(subnet=SMALL, top1=1)))
    (tmp_path / 'b.json').write_text(json.dumps(dict(subnet=WIDE, top1=2)))
    records = tmp_path / 'a.json', tmp_path / 'b.json'
    data = f'test_dataloader.dataset.data_root={digits_root}'
    checkpoint = supernet.with_suffix('.pth')
    options = ('--cfg-options', data, '--out')
    where = (tmp_path / 'out', '--data', 'test', '--scores', *records)
    assert call_tool('analysis/ranking.py', supernet, checkpoint, *options, *where) == 0
    test = (tmp_path / 'test.json', '--work-dir', tmp_path / 'test', '--subnet', *records)
    assert call_tool('test.py', supernet, checkpoint, *options, *test) == 0
    expected = json.loads((tmp_path / 'test.json').read_text())
    found = result(supernet, 'ranking')['predicted']['net']['subnets']
    for name in ('a', 'b'):
        assert found[name]['top1'] == pytest.approx(expected[f'{name}/accuracy/top1'], abs=1e-3)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"subnet": {}, "top1": 1}', 'a subnet has exactly the fields'),
        ('{"top1": 1}', 'a record needs subnet and top1'),
        ('[3]', 'a record needs subnet and top1'),
        (
            '{"subnet": {"embed_dim": 24, "num_heads": [2], "mlp_ratio": [2]}, "top1": 101}',
            'to 100',
        ),
        (RECORD % '1', 'a ranking needs two'),
        ('[', 'is not JSON'),
    ],
)
def test_records_that_will_not_do_are_refused(supernet, digits_root, capsys, content, message):
    path = supernet.parent / 'record.json'
    path.write_text(content)
    assert analyse('ranking', supernet, digits_root, '--scores', path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_subnets_of_another_space_are_refused(supernet, digits_root, capsys):
    subnet = dict(embed_dim=64, num_heads=[2], mlp_ratio=[2])
    path = supernet.parent / 'record.json'
    path.write_text(json.dumps([dict(name=n, subnet=subnet, top1=5) for n in 'ab']))
    assert analyse('ranking', supernet, digits_root, '--scores', path) == 2
    assert 'does not fit: embed_dim is 64' in capsys.readouterr().err


def test_names_are_given_once(supernet, digits_root, capsys):
    path = supernet.parent / 'record.json'
    path.write_text(json.dumps([dict(name='a', subnet=SMALL, top1=5)] * 2))
    assert analyse('ranking', supernet, digits_root, '--scores', path) == 2
    assert "two are called 'a'" in capsys.readouterr().err
