"""What is measured as the cost of a step."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from nas_lora.cells.stagewise import alpha_turn, architecture_parameters
from nas_lora.cpu_time import cpu_seconds
from nas_lora.study import costs
from nas_lora.study.costs import ALPHA_SHARE, METHODS, SHAPES, Adapted, launches, step_of
from torch import nn

BLOCKS, WIDTH = 2, 64
TINY = replace(SHAPES['sam_base'], encoder=partial(costs._sam, WIDTH, 2, BLOCKS, 64), side=64)
HEAD = 256 * 10 + 10
CONVOLUTIONS = {c: 2 * (c * 9 + c * c) + 2 * (c * 25 + c * c) for c in (2, 3)}


@pytest.mark.parametrize(
    ('method', 'expected'),
    [
        ('head', 0),
        ('lora', 3 * (WIDTH + 3 * WIDTH)),
        ('adapter', 2 * (2 * WIDTH * 4 + WIDTH + 4)),
        ('vpt', 20 * WIDTH),
        ('nas_lora', 3 * (3 * 2 * WIDTH + CONVOLUTIONS[3] + 8)),
        ('nas_pc_lora', 3 * (3 * 2 * WIDTH + CONVOLUTIONS[2] + 8)),
        ('uniform', 3 * (3 * 2 * WIDTH + CONVOLUTIONS[3])),
    ],
)
def test_a_method_trains_its_adapters_and_the_head(method, expected):
    model = Adapted(method, TINY)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == BLOCKS * expected + HEAD


def test_full_fine_tuning_trains_everything():
    model = Adapted('full', TINY)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_step_that_is_timed_moves_what_it_is_to(method, alpha):
    torch.manual_seed(0)
    model = Adapted(method, TINY)
    searched = {id(p) for p in architecture_parameters(model)}
    if alpha and not searched:
        return
    before = {id(p): p.detach().clone() for p in model.parameters()}
    step_of(model, TINY, amp=True, alpha=alpha)[0]()
    moved = {id(p) for p in model.parameters() if not torch.equal(p, before[id(p)])}
    assert moved == searched if alpha else moved and not moved & searched


def test_the_share_of_batches_that_train_alpha_is_that_of_the_schedule():
    turns = [alpha_turn(epoch, i, 6, 10, 'batch') for epoch in range(40) for i in range(6)]
    assert sum(turn is not None for turn in turns) / len(turns) == ALPHA_SHARE


def test_views_are_no_launches():
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert launches(lambda: linear(x).view(4, 2).T) == 1
    assert launches(lambda: linear(x).relu() + 1) == 3
    assert launches(lambda: torch.empty_like(x)) == 0


def test_what_only_the_first_step_does_is_no_launch():
    step = step_of(Adapted('lora', TINY), TINY)[0]
    assert launches(step) == launches(step)


def test_jobs_take_turns():
    calls = []
    seconds = cpu_seconds({name: lambda n=name: calls.append(n) for name in 'abc'}, 3)
    assert ''.join(calls) == 'abc' + 'bca' + 'cab' + 'abc'
    assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3, c=3)
    assert min(map(min, seconds.values())) >= 0
