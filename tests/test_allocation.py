"""Rank and number of experts by layer, from scores of importance."""

import json

import pytest
import torch
from conftest import ROOT, call_tool
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from tiny import SPACE, repeatable, tiny_config, tiny_model

from tas_lora import UserError, apis, load_supernet
from tas_lora.analysis.importance import layer_importance
from tas_lora.models.layers import allocate, fold_gates, merge_experts, slice_weight

scores = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@repeatable
@given(scores, st.integers(1, 9), st.integers(0, 5))
@example([1.0, 1000.0, 999.9999999999999, 1000.0], 3, 1)  # 1000 / 2 is as much as the third's
def test_allocation_keeps_the_mean_the_limits_and_the_order(scores, mean, room):
    counts = allocate(scores, mean, most=mean + room)
    assert sum(counts) == mean * len(scores)
    assert min(counts) >= 1
    assert max(counts) <= mean + room
    pairs = sorted(zip(scores, counts, strict=True))
    assert all(a <= b for (_, a), (_, b) in zip(pairs, pairs[1:], strict=False))


@repeatable
@given(scores, st.integers(1, 9))
def test_allocation_is_fair(scores, mean):
    """Adams' method: nobody has, per unit, less than another would if it gave one away."""
    counts = allocate(scores, mean)
    for s, c in zip(scores, counts, strict=True):
        for other, has in zip(scores, counts, strict=True):
            assert has == 1 or other / (has - 1) >= s / c * (1 - 1e-9)


def test_allocation_by_hand():
    assert allocate([1, 1, 1], 4) == [4, 4, 4]
    assert allocate([1, 2, 3], 4) == [2, 4, 6]
    assert allocate([1, 100], 3) == [1, 5]
    assert allocate([1, 100], 3, most=4) == [2, 4]


def test_folded_gates_are_summed_by_neighbours():
    gates = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    assert fold_gates(gates, 2).tolist() == pytest.approx([0.6, 0.4])
    assert fold_gates(gates, 1).tolist() == pytest.approx([1.0])
    assert fold_gates(gates, 5) is gates


def per_layer_config() -> dict:
    """Tiny supernet, 3 blocks, K = 8, whose layers differ in rank and number of experts."""
    config = tiny_config()
    config['model']['backbone']['mole'] = dict(
        num_experts=8, rank=3, layer_experts=4, importance=[[1, 2, 3, 4]] * 3
    )
    return config


def test_sizes_follow_the_scores_and_parameters_the_sizes():
    model = load_supernet(per_layer_config())
    arch = model.backbone.arch
    inner, width, hidden = 2 * 8, arch.embed_dim, arch.hidden_dims[0]
    expected = 0
    for block in model.backbone.blocks:
        layers = (block.attn.qkv, block.attn.proj, block.fc1, block.fc2)
        sizes = [tuple(layer.lora_a.shape[:2]) for layer in layers]
        assert [k for k, _ in sizes] == sorted(k for k, _ in sizes)
        assert [r for _, r in sizes] == sorted(r for _, r in sizes)
        assert sizes[0] != sizes[3]
        widths = [(width, 3 * inner), (inner, width), (width, hidden), (hidden, width)]
        expected += sum(k * r * (i + o) for (k, r), (i, o) in zip(sizes, widths, strict=True))
    found = [p.numel() for n, p in model.named_parameters() if 'lora_' in n]
    assert sum(found) == expected
    ranks = [layer.lora_a.shape[1] for layer in model.backbone.mole_layers()]
    counts = [layer.lora_a.shape[0] for layer in model.backbone.mole_layers()]
    assert (sum(ranks), sum(counts)) == (3 * 12, 4 * 12)


def test_merge_of_a_layer_with_fewer_experts():
    model = load_supernet(per_layer_config())
    layer = model.backbone.blocks[0].attn.proj
    torch.nn.init.normal_(layer.lora_b)
    K = len(layer.lora_a)
    assert 1 < K < 8
    subnet = SPACE.smallest()
    model.set_subnet(subnet)
    with torch.no_grad():
        model.merge_experts()
        gates = model.router(subnet)[0, 1]
    out, width = layer.merged.shape
    expected = slice_weight(layer.weight, out, width).clone()
    for k, gate in enumerate(gates):  # router expert k works through expert k K_l / K
        own = k * K // 8
        rank = layer.lora_a.shape[1]
        expected += gate * layer.lora_b[own, :out] @ layer.lora_a[own, :, :width] / rank
    assert (layer.merged - expected).abs().max() < 1e-5


def test_same_scores_change_nothing():
    plain, scored = tiny_model(), per_layer_config()
    scored['model']['backbone']['mole'] = dict(num_experts=8, rank=2, importance=[[2.5] * 4] * 3)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (plain, load_supernet(scored))]
    assert shapes[0] == shapes[1]
    gates = torch.rand(8)
    layer = plain.backbone.blocks[0].fc1
    layer.merge(gates, *layer.weight.shape)
    assert torch.equal(layer.merged, merge_experts(layer.weight, layer.lora_a, layer.lora_b, gates))


def test_parameters_of_the_config():
    """The scores of its 14 blocks are 1 to 14, alike in the four layers; sizes are published."""
    cfg = apis.load_config(ROOT / 'configs' / 'ablations' / 't_per_layer.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    counts = [b.fc1.lora_a.shape[0] for b in model.backbone.blocks]
    ranks = [b.fc1.lora_a.shape[1] for b in model.backbone.blocks]
    assert (sum(counts), sum(ranks)) == (8 * 14, 8 * 14)
    assert (counts, ranks) == (sorted(counts), sorted(ranks))
    assert (max(counts), ranks[0]) == (12, 2)
    inputs_and_outputs = (256 + 768) + (256 + 256) + (256 + 1024) + (1024 + 256)
    expected = inputs_and_outputs * sum(k * r for k, r in zip(counts, ranks, strict=True))
    assert sum(p.numel() for n, p in model.named_parameters() if 'lora_' in n) == expected


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(importance=[[1, 1, 1, 1]]), 'must hold 3 lists, one a block, of 4 positive numbers'),
        (dict(importance=[[1, 1, 1, 0]] * 3), 'positive numbers'),
        (dict(importance=[[1, 1, 1, float('inf')]] * 3), 'positive numbers'),
        (dict(importance=3), 'must hold 3 lists'),
        (dict(importance='nowhere.json'), 'importance nowhere.json cannot be read: No such file'),
        (dict(layer_experts=9), 'layer_experts is 9, more than num_experts, 8'),
        (dict(layer_experts=0), 'layer_experts must be a positive integer'),
        (dict(ranks=2), '^model.backbone.mole must be a dict of'),
    ],
)
def test_scores_that_make_no_sense(change, message):
    config = per_layer_config()
    config['model']['backbone']['mole'].update(change)
    with pytest.raises(UserError, match=message):
        load_supernet(config)


def test_importance_against_finite_differences():
    """Without weight w the loss changes by about -w dL/dw; here the gradient is measured."""
    model = tiny_model(mole=False).double()
    model.set_subnet(SPACE.smallest())
    torch.manual_seed(0)
    samples = [DataSample().set_gt_label(label) for label in range(4)]
    batch = dict(inputs=torch.rand(4, 1, 8, 8).double(), data_samples=samples)
    scores = layer_importance(model, batch)
    assert scores.shape == (3, 4)
    assert not scores[2].any()  # the smallest subnet has two blocks
    proj, width = model.backbone.blocks[1].attn.proj, 16

    def loss() -> float:
        with torch.no_grad():
            return float(model.parse_losses(model(**batch, mode='loss'))[0])

    total, step = 0.0, 1e-4
    with torch.no_grad():
        for o in range(width):
            for i in range(8):  # one head
                kept = proj.weight[o, i].item()
                proj.weight[o, i] = kept + step
                above = loss()
                proj.weight[o, i] = kept - step
                slope = (above - loss()) / (2 * step)
                proj.weight[o, i] = kept
                total += abs(kept * slope)
    assert scores[1, 1] == pytest.approx(total / (width * 8), rel=1e-4)


def test_scores_from_the_tool_fit_the_config(digits_root, tmp_path, capsys):
    model = load_supernet(ROOT / 'configs' / 'digits_supernet.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
    out, root = tmp_path / 'scores.json', 'train_dataloader.dataset.dataset.dataset.data_root'
    arguments = ('--batches', 8, '--out', out, '--cfg-options', f'{root}={digits_root}')
    config = ROOT / 'configs' / 'digits_supernet.py'
    tool = 'analysis/layer_importance.py'
    assert call_tool(tool, config, tmp_path / 'start.pth', *arguments) == 0
    scores = json.loads(out.read_text())
    assert [len(block) for block in scores] == [4] * 4
    options = {
        'model.backbone.mole.importance': str(out),
        'model.backbone.mole.layer_experts': 6,
    }
    cfg = apis.load_config(ROOT / 'configs' / 'digits_moLE.py', options)
    ranks = [layer.lora_a.shape[1] for layer in load_supernet(cfg).backbone.mole_layers()]
    assert sum(ranks) == 4 * 16
    assert len(set(ranks)) > 1
    assert call_tool(tool, ROOT / 'configs' / 'digits_search.py', 'x.pth', '--out', out) == 2
    assert 'has no train_cfg.space; use the config of a supernet' in capsys.readouterr().err
    few = (arguments[0], 1, *arguments[2:], 'train_cfg.space.depth=[2]')
    assert call_tool(tool, config, tmp_path / 'start.pth', *few) == 2
    assert 'blocks 2, 3 were active in no batch; raise --batches' in capsys.readouterr().err
