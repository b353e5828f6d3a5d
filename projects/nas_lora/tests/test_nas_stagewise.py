"""Whose turn it is, what moves in it, on which data, and after a resume."""

import copy

import pytest
import torch
from mmengine.runner import Runner
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.cells.stagewise import HeldOutBatches, alpha_turn, architecture_parameters
from stagewise_runs import BATCHES, Maps, loader, made, trained
from torch import nn


@pytest.mark.parametrize(
    ('alternate', 'expected'),
    [
        ('batch', [None] * 6 + [None, 0, None, 1, None, 2, None, 3, None, 4, None, 5]),
        ('epoch', [None] * 6 + [None] * 3 + [0, 1, 2] + [None] * 3 + [3, 4, 5]),
    ],
)
def test_the_turns_written_out(alternate, expected):
    places = [(epoch, index) for epoch in range(6) for index in range(3)]
    assert [alpha_turn(*place, 3, 2, alternate) for place in places] == expected


@pytest.mark.parametrize('alternate', ['batch', 'epoch'])
@pytest.mark.parametrize('weight_epochs', [0, 1, 10])
def test_both_have_half_of_the_batches_and_weights_come_first(alternate, weight_epochs):
    turns = [
        alpha_turn(e, i, 5, weight_epochs, alternate) for e in range(weight_epochs + 4)
        for i in range(5)
    ]  # fmt: skip
    start = 5 * weight_epochs
    assert turns[: start + 1] == [None] * (start + 1)
    alpha = [turn for turn in turns if turn is not None]
    assert alpha == list(range(10))


@pytest.mark.parametrize(
    ('alternate', 'pattern'),
    [('batch', 'wwwwww' + 'wa' * 6), ('epoch', 'wwwwww' + 'wwwaaa' * 2)],
)
def test_alpha_is_frozen_before_its_stage_and_one_moves_at_a_time(tmp_path, alternate, pattern):
    hook = dict(weight_epochs=2, alternate=alternate)
    runner, moved = trained(tmp_path, alternate, hook=hook)
    assert ''.join(moved) == pattern
    rates = {name: group[0]['lr'] for name, group in runner.optim_wrapper.param_groups.items()}
    assert rates == dict(weights=1e-4, alpha=1e-3)
    assert {type(w.optimizer) for w in runner.optim_wrapper.values()} == {torch.optim.Adam}


def test_without_a_first_stage_alpha_is_trained_from_the_second_batch_on(tmp_path):
    _, moved = trained(tmp_path, 'none', epochs=1, hook=dict(weight_epochs=0))
    assert moved == ['w', 'a', 'w']


def test_turns_step_as_two_plain_optimizers_would(tmp_path):
    """Two Adams written out beside the run, each on gradients of its own batches alone."""
    model = made()
    reference = copy.deepcopy(model)
    runner, _ = trained(tmp_path, 'turns', 3, model, hook=dict(weight_epochs=1))
    alpha = [p for n, p in reference.named_parameters() if 'alpha' in n]
    weights = [p for n, p in reference.named_parameters() if p.requires_grad and 'alpha' not in n]
    optimizers = dict(w=torch.optim.Adam(weights, lr=1e-4), a=torch.optim.Adam(alpha, lr=1e-3))
    maps = Maps(2 * BATCHES, 0.0)
    for marks, turn in zip(runner.model.model.seen, 'wwwwawawa', strict=True):
        batch = [maps[int(i)] for _, i in marks]
        data = {name: [sample[name] for sample in batch] for name in ('inputs', 'mark')}
        reference.zero_grad()
        reference(**data, mode='loss')['loss'].backward()
        optimizers[turn].step()
    for (name, found), expected in zip(
        runner.model.named_parameters(), reference.parameters(), strict=True
    ):
        assert torch.allclose(found, expected, rtol=0, atol=1e-7), name


def test_alpha_needs_a_gradient_in_its_turns_only(tmp_path):
    for epochs, needed in ((1, False), (2, False), (3, True)):  # the last batch of 3, 6, 9
        hook = dict(weight_epochs=1)
        runner, _ = trained(tmp_path, f'{epochs}', epochs, hook=hook)
        [alpha] = [p for n, p in runner.model.named_parameters() if n.endswith('alpha')]
        assert alpha.requires_grad is needed


@pytest.mark.parametrize('alternate', ['batch', 'epoch'])
def test_alpha_is_trained_on_held_out_batches_if_there_are_any(tmp_path, alternate):
    hook = dict(weight_epochs=1, alternate=alternate, held_out_dataloader=loader(4, 1.0))
    runner, moved = trained(tmp_path, alternate, epochs=5, hook=hook)
    marks = [batch[0][0] for batch in runner.model.model.seen]
    assert marks == [float(kind == 'a') for kind in moved]
    held_out = [int(i) for batch in runner.model.model.seen for mark, i in batch if mark]
    assert len(held_out) == 12
    passes = [held_out[i : i + 4] for i in range(0, 12, 4)]
    assert all(sorted(images) == [0, 1, 2, 3] for images in passes)
    assert len({tuple(images) for images in passes}) > 1  # shuffled anew


def test_held_out_batches_by_number_are_those_in_sequence():
    batches = HeldOutBatches(Runner.build_dataloader(loader(6, 1.0), seed=3))
    order = [[mark[1].item() for mark in batches[i]['mark']] for i in range(9)]
    for start in (1, 3, 5, 7):
        again = HeldOutBatches(Runner.build_dataloader(loader(6, 1.0), seed=3))
        assert [[m[1].item() for m in again[i]['mark']] for i in range(start, 9)] == order[start:]


@pytest.mark.parametrize('stop', [1, 2, 3, 5])
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path, stop):
    hook = dict(weight_epochs=2, held_out_dataloader=loader(4, 1.0))
    whole, moved = trained(tmp_path, 'whole', hook=hook)
    path = tmp_path / 'whole' / f'epoch_{stop}.pth'
    state = torch.load(path, weights_only=False)['state_dict']
    assert not any('base' in name for name in state)
    resumed, rest = trained(tmp_path, 'resumed', hook=hook, resume=str(path))
    assert rest == moved[stop * BATCHES :]
    found = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found[name]), name
    first, second = whole.optim_wrapper.state_dict(), resumed.optim_wrapper.state_dict()
    assert first.keys() == second.keys() == {'weights', 'alpha'}
    for name in first:
        for key, state in first[name]['state'].items():
            assert torch.equal(state['exp_avg'], second[name]['state'][key]['exp_avg'])


def test_optimizers_are_options(tmp_path):
    optimizers = dict(
        weights=dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1.0)),
        alpha=dict(optimizer=dict(lr=0.02)),
        amp='bfloat16',
    )
    runner, moved = trained(tmp_path, 'options', epochs=3, **optimizers)
    weights, alpha = runner.optim_wrapper['weights'], runner.optim_wrapper['alpha']
    assert type(weights.optimizer) is torch.optim.SGD
    assert alpha.optimizer.param_groups[0]['lr'] == 0.02
    assert weights.dtype == alpha.dtype == torch.bfloat16
    assert weights.clip_grad_kwargs
    assert not alpha.clip_grad_kwargs
    assert ''.join(moved) == 'wwwwwwwaw'


def test_architecture_parameters_are_each_listed_once():
    layer = NASLoRALinear(nn.Linear(6, 6), share_alpha=True)
    assert architecture_parameters(layer) == [layer.branches['q'].cell.alpha]
    assert len(architecture_parameters(NASLoRALinear(nn.Linear(6, 6)))) == 3
    assert architecture_parameters(NASLoRALinear(nn.Linear(6, 6), choice='uniform')) == []
