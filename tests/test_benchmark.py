"""The benchmark: its contestants compute the right thing, and its figures are right."""

import json

import pytest
import torch
from conftest import ROOT, call_tool
from tiny import SPACE, images, randomize, tiny_config, tiny_model

from tas_lora import Subnet
from tas_lora.config import load_config
from tas_lora.costs import benchmark, processes
from tas_lora.costs.reference_models import (
    StaticViT,
    left_unmerged,
    made_naive,
    multiply_adds,
    training_step,
)
from tas_lora.costs.timing import interleave, ratio, saved_bytes
from tas_lora.models.export import standalone_state_dict

CONFIG = tiny_config()['model']


def test_naive_and_unmerged_experts_give_our_logits_and_gradients():
    makers = (lambda model: model, made_naive, left_unmerged)
    models = [make(randomize(tiny_model(), std=0.3)) for make in makers]
    for subnet in (SPACE.smallest(), SPACE.largest()):
        logits, gradients = [], []
        for model in models:
            model.load_state_dict(models[0].state_dict())
            model.zero_grad()
            model.set_subnet(subnet)
            model.merge_experts()
            logits.append(model(images()))
            logits[-1].square().sum().backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        for other, gradient in zip(logits[1:], gradients[1:], strict=True):
            assert (other - logits[0]).abs().max() < 1e-4
            assert gradient.keys() == gradients[0].keys()
            for name, value in gradient.items():
                scale = gradients[0][name].abs().max() + 1
                assert (value - gradients[0][name]).abs().max() < 1e-4 * scale, name


def test_the_static_network_has_the_widths_of_the_subnet():
    subnet, spec = SPACE.largest(), tiny_model().image_spec
    model = StaticViT(subnet, spec)
    shapes = [tuple(p.shape) for n, p in model.named_parameters() if 'fc1.weight' in n]
    assert shapes == [(hidden, subnet.embed_dim) for hidden in subnet.hidden_dims]
    assert model(images()).shape == (2, 5)


def test_plain_contestants_are_the_same_network():
    """Slices without relative positions, given their weights, are what static computes."""
    subnets = dict(small=SPACE.smallest(), large=SPACE.largest())
    models = benchmark.plain_contestants(CONFIG, subnets, 'cpu')
    assert list(models) == ['plain small', 'static small', 'plain large', 'static large']
    for name, subnet in subnets.items():
        ours, static = randomize(models[f'plain {name}'], std=0.3), models[f'static {name}']
        state = standalone_state_dict(ours, subnet)
        static.load_state_dict({key.replace('.attn.', '.'): state[key] for key in state})
        torch.testing.assert_close(ours(images(), mode='tensor'), static(images()))
        assert not list(ours.backbone.mole_layers())
    batch = benchmark.batch_of(models['plain small'].image_spec, 4, 'cpu')
    kept = benchmark.measure_activations(models, batch, amp=False)
    assert kept['plain large'] <= 1.02 * kept['static large']


def test_a_step_trains_experts_and_router_of_ours_and_all_of_static():
    models = benchmark.contestants(CONFIG, SPACE.largest(), 'cpu')
    assert tuple(models) == benchmark.CONTESTANTS
    batch = benchmark.batch_of(models['ours'].image_spec, 4, 'cpu')
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        training_step(model, *batch)()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert not moved & frozen, name
        if name in ('ours', 'naive', 'unmerged'):
            assert {n.split('.')[0] for n in moved} == {'backbone', 'router'}, name
            assert all('lora_' in n or n.startswith('router.') for n in moved), name
        else:
            assert not frozen
            assert len(moved) > 0.8 * len(before), name


def test_contestants_take_turns_and_the_warmup_is_left_out():
    order = []
    jobs = {name: (lambda name=name: order.append(name)) for name in 'ab'}
    seconds = interleave(jobs, rounds=3)
    assert order == list('abbaabba')  # they take turns in going first
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_ratio_is_of_rounds_not_of_medians():
    found = ratio([2.0, 20.0, 3.0, 4.0], [1.0, 10.0, 1.0, 2.0])  # a slow round slows both
    assert found['median'] == 2
    assert found['spread'] == [2, 2.25]


def test_saved_bytes_against_a_count_by_hand():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(16, 8, requires_grad=True)
    # The linear keeps its input, the square its input; the weight is none of them.
    assert saved_bytes(layer, lambda: layer(x).square().sum()) == 4 * (16 * 8 + 16 * 4)


# Two blocks of heads 8 wide at 16 patches of 2 x 2 x 1 pixels: 17 tokens.
COUNTED = Subnet(16, [1, 2], [2.0, 1.5])
BY_HAND = dict(
    patches=16 * 16 * 4,
    linears=17 * 16 * (4 * 8 + 2 * 32) + 17 * 16 * (4 * 16 + 2 * 24),
    attention=2 * 17 * 17 * 8 + 2 * 17 * 17 * 16,
    head=16 * 5,
)


def test_products_of_a_forward_by_hand():
    assert multiply_adds(COUNTED, tiny_model().image_spec) == sum(BY_HAND.values())


@pytest.mark.parametrize(
    ('name', 'times', 'unneeded'),
    [
        # Output, gradient of the input, gradient of the weight; images need no gradient.
        ('static', dict(patches=2, linears=3, attention=3, head=3), 0),
        # The merged weights of ours have gradients as weights do, but not the first input.
        ('ours', dict(patches=1, linears=3, attention=3, head=2), 17 * 16 * 3 * 8),
        ('unmerged', dict(patches=1, linears=2, attention=3, head=2), 0),
    ],
)
def test_products_of_a_step_by_hand(name, times, unneeded):
    expected = sum(times[part] * count for part, count in BY_HAND.items()) - unneeded
    assert multiply_adds(COUNTED, tiny_model().image_spec, name) == expected


def test_throughput_by_hand():
    training, evaluation = {'ours': [2.0, 4.0, 8.0]}, {'ours': [1.0], 'ours_bf16': [0.5]}
    per_image = 10 + 3 * 100 + 3 * 20 + 2 * 5
    products = {None: 135, 'ours': per_image}
    found = benchmark.throughput(training, evaluation, (16, 32), products, (1e4, 4e4))
    speed = found['ours']['train']
    assert speed['images_per_second']['median'] == 4
    assert speed['images_per_second']['spread'] == pytest.approx([16 / 6, 16 / 3])
    assert speed['share_of_limit']['median'] == pytest.approx(4 * per_image / 1e4)
    assert speed['share_of_limit']['spread'] == pytest.approx(
        [16 / 6 * per_image / 1e4, 16 / 3 * per_image / 1e4]
    )
    assert found['ours']['eval']['share_of_limit']['median'] == pytest.approx(32 * 135 / 1e4)
    low = found['ours_bf16']
    assert list(low) == ['eval']
    assert low['eval']['share_of_limit']['median'] == pytest.approx(64 * 135 / 4e4)


def test_summary_has_the_promised_figures():
    models = benchmark.contestants(CONFIG, SPACE.largest(), 'cpu')
    batch = benchmark.batch_of(models['ours'].image_spec, 2, 'cpu')
    training = benchmark.measure_training(models, batch, 2, amp=False)
    evaluation = benchmark.measure_evaluation(models, batch[0], 2, amp=False)
    activations = benchmark.measure_activations(models, batch, amp=False)
    hops = benchmark.measure_hops(models['ours'], SPACE, batch, 2)
    found = benchmark.summary(training, evaluation, activations, hops)
    for key in (
        'train_step_vs_static',
        'train_step_vs_naive',
        'eval_vs_static',
        'saved_activations_vs_static',
        'merge_share_of_step',
    ):
        low, high = found[key]['spread']
        assert 0 < low <= found[key]['median'] <= high
    assert activations['naive'] > activations['ours'] > activations['static']
    assert not any(model.is_merged for model in models.values() if hasattr(model, 'is_merged'))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (['--batch', '0'], '--batch must be a positive integer, got 0'),
        (['--json', '/nowhere/x.json'], '/nowhere/x.json cannot be written'),
    ],
)
def test_mistakes_on_the_command_line(option, message, capsys):
    assert call_tool('benchmark.py', *option) == 2
    assert message in capsys.readouterr().err


def test_results_in_the_repository_are_of_the_tool():
    paths = list((ROOT / 'tools' / 'results').glob('benchmark_*.json'))
    assert paths
    for path in paths:
        report = json.loads(path.read_text())
        assert report['machine']['command'].startswith('python tools/benchmark.py')
        assert report['machine']['commit']


def test_the_tool_measures_what_options_ask_for(tmp_path):
    options = ('space.depth=[2]', 'model.backbone.img_size=32', 'model.backbone.mole.num_experts=5')
    options += ('model.router.num_experts=5', 'model.router.init=random')
    quick = ('--quick', '--contestants', 'static', '--json', tmp_path / 'found.json')
    assert call_tool('benchmark.py', *quick, '--cfg-options', *options) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert len(found['subnet']['num_heads']) == 2
    for part in ('merge', 'merge backward', 'whole step'):
        assert found['hops_ms'][part]['median'] > 0


@pytest.mark.full
def test_the_tool_measures_slicing_alone(tmp_path, capsys):
    options = ('--plain', '--quick', '--json', tmp_path / 'found.json')
    small = ('space.depth=[2]', 'model.backbone.img_size=32')
    assert call_tool('benchmark.py', *options, '--cfg-options', *small) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['full']['saved_activations_vs_static']['median'] == pytest.approx(1, abs=1e-3)
    for name in ('full', 'drawn'):
        assert found[name]['train_step_vs_static']['median'] > 0
    assert 'slicing alone, against static' in capsys.readouterr().out


def test_slicing_alone_has_contestants_of_its_own(capsys):
    assert call_tool('benchmark.py', '--plain', '--contestants', 'static') == 2
    assert '--plain measures other contestants; leave out' in capsys.readouterr().err


@pytest.mark.full
def test_peak_memory_is_of_the_contestant_and_not_of_this_process():
    """A large tensor here must not hide what two steps there take, nor be counted there."""
    held = torch.ones(2**26)  # 256 MiB
    config = autoformer_t()
    subnet = Subnet(192, [3] * 2, [3.5] * 2)
    sizes = [processes.peak_memory(config, subnet, 'static', batch) for batch in (1, 8)]
    assert held.sum() > 0
    assert 5 < sizes[0] < sizes[1] < 200


def autoformer_t() -> dict:
    return load_config(ROOT / 'configs' / 'autoformer_t_moLE.py').model.to_dict()
