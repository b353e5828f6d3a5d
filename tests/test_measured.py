"""Measurements of subnets: right, robust, and kept on disk."""

import json
import os
import subprocess
import sys
from math import inf, nan
from statistics import median, quantiles

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import CLASSES, IMAGE, SPACE, every, tiny_model

from tas_lora import Subnet, UserError
from tas_lora.costs import deployed
from tas_lora.costs.deployed import Deployed, trimmed
from tas_lora.models.export import standalone_state_dict
from tas_lora.models.plain_vit import PlainViT
from tas_lora.search import Measured, read_measured

SPEC = IMAGE | dict(num_classes=CLASSES)
SUBNETS = every(SPACE)[:3]


# Measurements


def test_one_slow_round_in_twenty_does_not_show(monkeypatch):
    rounds = [1 + 0.01 * (7 * i % 19) for i in range(19)]  # seconds
    clock = iter([*rounds[:5], 10.0, *rounds[5:]])
    monkeypatch.setattr(deployed, 'stopwatch', lambda job, device: next(clock))
    found = Deployed(SPEC, 'cls_token').latency(SPACE.smallest())
    low, _, high = quantiles(rounds, n=4, method='inclusive')
    assert found['latency'] == pytest.approx(1e3 * median(rounds))
    assert found['latency_spread'] == pytest.approx(1e3 * (high - low))


def test_outliers_beyond_tukeys_fences_are_left_out():
    """Quartiles are 2 and 4: the fences stand at -1 and 7."""
    assert trimmed([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert trimmed([-1.0, 2, 2, 3, 4, 4, 7.0]) == [-1.0, 2, 2, 3, 4, 4, 7.0]
    assert trimmed([-1.1, 2, 2, 3, 4, 4, 7.1]) == [2, 2, 3, 4, 4]
    assert trimmed([3.0]) == [3.0]


def test_what_is_measured_is_what_is_exported(monkeypatch):
    seen, forward = [], PlainViT.forward

    def spy(net, images):
        assert not net.training
        assert not torch.is_grad_enabled()
        seen.append((net, images))
        return forward(net, images)

    monkeypatch.setattr(PlainViT, 'forward', spy)
    model, subnet = tiny_model(), SPACE.sample(np.random.default_rng(3))
    options = dict(batch_size=3, precision='bfloat16', warmup=2, rounds=5)
    Deployed.of_model(model, options).latency(subnet)
    assert len(seen) == 7
    shapes = {name: value.shape for name, value in standalone_state_dict(model, subnet).items()}
    for net, images in seen:
        assert {name: value.shape for name, value in net.state_dict().items()} == shapes
        assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
        assert net.pooling == model.backbone.out_type
        assert (images.shape, images.dtype) == ((3, 1, 8, 8), torch.bfloat16)


def test_latency_grows_with_the_subnet():
    spec = SPEC | dict(img_size=32, head_dim=32)
    small, large = Subnet(32, [1] * 2, [2] * 2), Subnet(256, [8] * 4, [4] * 4)
    measure = Deployed(spec, 'avg_featmap', rounds=7)
    first, second = measure(small), measure(large)
    assert 0 < first['latency'] < second['latency']
    assert 0 < first['memory'] < second['memory']


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_memory_of_a_wide_mlp_by_hand(precision):
    """The peak is in the activation of the MLP, whose input and output are alive, and so are
    the block's input and what the attention made of it."""
    batch, width, hidden, size = 16, 16, 256, dict(float32=4, bfloat16=2)[precision]
    measure = Deployed(SPEC, 'avg_featmap', batch_size=batch, precision=precision)
    subnet = Subnet(width, [1, 1], [16.0, 16.0])
    tokens = 17
    indices = 7 + tokens * (24 + 15)  # int64: rows of tables, lines to offsets and back
    attention = 3 * 8 * (width + 1) + (8 + 1) * width + 4 * 6 * 8  # 6 offsets, head width 8
    block = attention + 4 * width + 2 * width * hidden + width + hidden
    ends = (4 + 1) * width + width + tokens * width + 2 * width + (width + 1) * CLASSES
    activations = batch * tokens * (2 * width + 2 * hidden)
    marks = tokens * 24  # 4 rows and 4 columns, and blanks up to a multiple of 16 with the head
    elements = 2 * block + ends + marks + batch * 8 * 8 + activations
    assert measure.memory(subnet)['memory'] * 2**20 == size * elements + 8 * indices


PEAK = """
import importlib.util, sys, torch
from pathlib import Path
spec = importlib.util.spec_from_file_location('plain_vit', sys.argv[1])
plain_vit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_vit)

def status(field):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

@torch.no_grad()
def forward(width, batch):
    sizes = dict(img_size=224, patch_size=16, in_channels=3, num_classes=1000, head_dim=64)
    net = plain_vit.PlainViT(
        width, [width // 64] * 2, [4 * width] * 2, **sizes, max_relative_position=14,
        pooling='avg_featmap',
    )
    net.eval()(torch.randn(batch, 3, 224, 224))

torch.set_num_threads(1)
forward(384, 16)  # libraries keep the workspaces that they need for these sizes
Path('/proc/self/clear_refs').write_text('5')  # Linux: let the peak start from here
before = status('VmRSS')
forward(384, 16)
print(status('VmHWM') - before)
"""


@pytest.mark.full
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='not on Linux')
def test_memory_is_what_the_process_takes():
    """Of a process that gives every block back to the system, so that none is used again."""
    path = ROOT / 'tas_lora' / 'models' / 'plain_vit.py'
    done = subprocess.run(
        [sys.executable, '-c', PEAK, path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0'),
    )
    spec = dict(img_size=224, patch_size=16, in_channels=3, num_classes=1000, head_dim=64)
    measure = Deployed(spec | dict(max_relative_position=14), 'avg_featmap', batch_size=16)
    found = measure.memory(Subnet(384, [6] * 2, [4.0] * 2))['memory']
    assert found == pytest.approx(float(done.stdout), rel=0.05)


def test_measuring_draws_nothing_that_others_would():
    state = torch.get_rng_state()
    Deployed(SPEC, 'cls_token', rounds=1)(SPACE.smallest())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_subnet_that_does_not_fit_costs_more_than_any_limit(monkeypatch):
    def fail(net, images):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PlainViT, 'forward', fail)
    costs = Deployed(SPEC, 'cls_token')(SPACE.smallest())
    assert costs == dict(latency=inf, latency_spread=inf, memory=inf)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(batch_size=0), '^batch_size must be a positive integer, got 0'),
        (dict(batch_size=1.5), '^batch_size must be a positive integer, got 1.5'),
        (dict(rounds=True), '^rounds must be a positive integer, got True'),
        (dict(warmup=-1), '^warmup must be an integer from 0'),
        (dict(device='tpu'), "^device must be 'cpu' or 'cuda', got 'tpu'"),
        (dict(precision='int8'), "^precision must be one of 'float32' or"),
        (dict(precision='float16'), r"must be 'float32' or 'bfloat16' on a CPU, got 'float16'"),
        (dict(batch=3), r"^must be a dict of \('device', .*got {'batch': 3}"),
        (['cpu'], r"^must be a dict of .*got \['cpu'\]"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        Deployed.of_model(tiny_model(mole=False), options)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match="device is 'cuda', but there is no GPU; set 'cpu'"):
        Deployed(SPEC, 'cls_token', device='cuda')


# Their file


def by_counting(start: float = 0.1):
    """Another number at each measurement, as a clock gives."""
    numbers = iter(range(1, 1000))
    return lambda subnet: dict(latency=start * next(numbers), latency_spread=0.0, memory=1.0)


def resumed(path, measure) -> Measured:
    measured = Measured(path, measure)
    measured.resume()
    return measured


def never(subnet):
    raise AssertionError(f'{subnet} is measured again')


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'measured.jsonl'


def test_each_measurement_is_on_disk_at_once(path):
    measured = Measured(path, by_counting())
    for number, subnet in enumerate(SUBNETS, 1):
        assert measured.cost('latency', subnet) == pytest.approx(0.1 * number)
        assert measured.cost('memory', subnet) == 1
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line['subnet'] for line in lines] == [s.to_dict() for s in SUBNETS[:number]]
        assert set(lines[-1]) == {'subnet', 'latency', 'latency_spread', 'memory'}


def test_a_resumed_search_sees_the_same_numbers(path):
    first = Measured(path, by_counting())
    expected = [first.cost('latency', subnet) for subnet in SUBNETS[:2]]
    second = resumed(path, by_counting(5.0))
    assert [second.cost('latency', subnet) for subnet in SUBNETS[:2]] == expected
    assert second.cost('latency', SUBNETS[2]) == 5
    third = resumed(path, never)
    assert [third.cost('latency', subnet) for subnet in SUBNETS] == [*expected, 5]


def test_nothing_to_resume(path):
    assert resumed(path, never).known == {}
    assert not path.exists()


def test_what_another_search_measured_is_not_measured_again(path):
    first = Measured(path, by_counting())
    expected = [first.cost('latency', subnet) for subnet in SUBNETS]
    other = Measured(path.with_name('other.jsonl'), never, read_measured(path))
    assert [other.cost('latency', subnet) for subnet in SUBNETS] == expected


def test_a_torn_last_line_is_measured_again(path):
    measured = Measured(path, by_counting())
    expected = [measured.cost('latency', subnet) for subnet in SUBNETS]
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(whole[:-cut])
        with pytest.warns(UserWarning, match='measured.jsonl: the last line is truncated, ignored'):
            again = resumed(path, by_counting(7.0))
        found = [again.cost('latency', subnet) for subnet in SUBNETS]
        assert found == [*expected[:2], 7]
        assert len(path.read_text().splitlines()) == 3


def test_a_torn_first_line_is_measured_again(path):
    path.write_text('{"subnet": {"embed')
    with pytest.warns(UserWarning, match='the last line is truncated'):
        assert resumed(path, never).known == {}
    assert path.read_bytes() == b''


def test_infinite_costs_come_back(path):
    infinite = dict(latency=inf, latency_spread=inf, memory=inf)
    Measured(path, lambda subnet: infinite).cost('latency', SUBNETS[0])
    again = resumed(path, never)
    assert again.cost('memory', SUBNETS[0]) == inf


def test_a_cost_that_is_not_measured(path):
    with pytest.raises(UserError, match=r"measured.jsonl has no energy of .*only \['latency', "):
        Measured(path, by_counting()).cost('energy', SUBNETS[0])


@pytest.mark.parametrize('value', [nan, -1.0, 'fast'])
def test_a_measurement_that_is_none(path, value):
    with pytest.raises(UserError, match='latency must be a number from 0'):
        Measured(path, lambda subnet: dict(latency=value)).cost('latency', SUBNETS[0])
    assert not path.exists()


LINE = dict(subnet=SUBNETS[0].to_dict(), latency=1.0)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{', 'line 1 is damaged'),
        (json.dumps(3), 'line 1: expected a dict with a subnet and numbers, got 3'),
        (
            json.dumps(LINE | dict(latency='1')),
            "latency must be a number from 0 to inf, got '1'",
        ),
        (json.dumps(LINE | dict(latency=nan)), 'line 1: latency must be a number from 0 to inf'),
        (json.dumps(LINE | dict(subnet=dict(width=3))), 'line 1: a subnet has exactly the fields'),
    ],
)
def test_lines_that_are_no_measurements(path, line, message):
    path.write_text(f'{line}\n{json.dumps(LINE)}\n')
    with pytest.raises(UserError, match=f'measured.jsonl, .*{message}'):
        resumed(path, never)
    with pytest.raises(UserError, match=f'measured.jsonl, .*{message}'):
        read_measured(path)
