"""What autograd keeps of a training step, and that products which keep less compute the same."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import SPACE, images, randomize, tiny_model

from tas_lora import SearchSpace
from tas_lora.config import load_config
from tas_lora.costs import benchmark
from tas_lora.costs.timing import saved_bytes
from tas_lora.models.layers import (
    ElasticAttention,
    ElasticLinear,
    MoLELinear,
    merge_experts,
    token_index,
)
from tas_lora.models.layers.gathered import gathered_product

B, H, N, W, D, ROWS = 2, 3, 5, 4, 6, 7
FORMULA = {False: 'bhnw,nwd->bhnd', True: 'bhnd,nwd->bhnw'}


def inputs(transposed: bool) -> tuple:
    """Operand, table and index, in which some rows are used often and one never."""
    torch.manual_seed(0)
    x = torch.randn(B, H, N, D if transposed else W).double().requires_grad_()
    table = torch.randn(ROWS, D).double().requires_grad_()
    return x, table, torch.randint(ROWS - 1, (N, W))


# Products with gathered vectors


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('frozen', [False, True])
def test_gathered_product_is_the_sum_over_gathered_vectors(transposed, frozen):
    x, table, index = inputs(transposed)
    table.requires_grad_(not frozen)
    wanted = [x] if frozen else [x, table]
    expected = torch.einsum(FORMULA[transposed], x, table[index])
    found = gathered_product(x, table, index, transposed)
    assert (found - expected).abs().max() < 1e-10
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((y * weights).sum(), wanted) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert other.any()
        assert (one - other).abs().max() < 1e-9


@pytest.mark.parametrize('transposed', [False, True])
def test_gathered_product_has_first_and_second_gradients(transposed):
    x, table, index = inputs(transposed)

    def product(x, table):
        return gathered_product(x, table, index, transposed)

    assert torch.autograd.gradcheck(product, (x, table))
    assert torch.autograd.gradgradcheck(product, (x, table))


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
def test_gathered_product_under_autocast(transposed, dtype, low):
    """Of an operand that was cast before, or is cast inside; the table stays in float32."""
    x, table, index = inputs(transposed)
    exact = torch.einsum(FORMULA[transposed], x, table[index])
    expected = torch.autograd.grad(exact.square().sum(), (x, table))
    dtype = low if dtype == torch.bfloat16 else dtype
    cast = [x.detach().to(dtype).requires_grad_(), table.detach().float().requires_grad_()]
    with torch.autocast('cpu', low):
        y = gathered_product(*cast, index, transposed)
    assert y.dtype == low
    found = torch.autograd.grad(y.float().square().sum(), cast)
    assert [gradient.dtype for gradient in found] == [dtype, torch.float32]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize('transposed', [False, True])
def test_gathered_product_keeps_no_gathered_vectors(transposed):
    """A frozen table: itself. One that is trained: the operand, too."""
    x, table, index = inputs(transposed)
    layer = torch.nn.Module()
    layer.register_buffer('index', index)
    sizes = []
    for values in (table.detach(), table):
        sizes.append(saved_bytes(layer, lambda t=values: gathered_product(x, t, index, transposed)))
    assert sizes == [8 * table.numel(), 8 * (table.numel() + x.numel())]


# The layers they are in


def attention(trained_tables: bool) -> ElasticAttention:
    torch.manual_seed(0)
    layer = ElasticAttention(16, 2, 8, 2, lambda kind, *s, parts=1: ElasticLinear(*s, parts))
    for table in (layer.rel_pos_k, layer.rel_pos_v):
        table.requires_grad_(trained_tables)
    return randomize(layer)


@pytest.mark.parametrize('trained_tables', [False, True])
@pytest.mark.parametrize('amp', [False, True])
def test_attention_is_one_graph_of_the_same_gradients(trained_tables, amp):
    """``fullgraph``: what would break the graph raises."""
    layer, index = attention(trained_tables), token_index(3, 2, 8)
    compiled = torch.compile(lambda x: layer(x, 2, index), backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 10, 16).requires_grad_()
    wanted, found = [x, *(p for p in layer.parameters() if p.requires_grad)], []
    for run in (lambda x: layer(x, 2, index), compiled):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            y = run(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), wanted)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= (0.02 if amp else 1e-6) * other.norm()


@pytest.mark.parametrize('grad', [False, True])
def test_the_elastic_network_becomes_a_program(grad):
    model = randomize(tiny_model(mole=False, arch=SPACE.largest()), std=0.3).eval()
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model.backbone, (images(),))
    assert torch.equal(program.module()(images(2))[0], model.backbone(images(2))[0])


@pytest.mark.parametrize('features', [(16, 24), (24, 16), (16, 16)])
def test_merging_keeps_one_factor_where_it_can(features):
    """The up projections side by side are a copy; scaled down projections are another one."""
    wide, high = features
    layer = randomize(MoLELinear(wide, high, num_experts=3, rank=2))
    layer.weight.requires_grad_(False)
    gates = torch.full((3,), 1 / 3, requires_grad=True)

    def merged():
        return merge_experts(layer.weight, layer.lora_a, layer.lora_b, gates)

    factors = high + (wide if high >= wide else 0)
    assert saved_bytes(layer, merged) == 4 * (3 * 2 * factors + 3)  # and a factor for each expert


@pytest.mark.full
def test_a_step_keeps_at_most_five_quarters_of_a_plain_network():
    """AutoFormer-T at batch 16: the target, with the subnet of docs/speed.md."""
    config = load_config(ROOT / 'configs' / 'autoformer_t_moLE.py')
    subnet = SearchSpace.coerce(config.space).sample(np.random.default_rng(0))
    models = benchmark.contestants(config.model, subnet, 'cpu', ('static', 'ours'))
    batch = benchmark.batch_of(models['ours'].image_spec, 16, 'cpu')
    kept = benchmark.measure_activations(models, batch, amp=False)
    assert kept['static'] > plain_bytes(subnet, models['ours'].image_spec, batch=16)
    assert kept['ours'] <= 1.25 * kept['static']


def plain_bytes(subnet, spec: dict, batch: int) -> int:
    """Of a plain network by hand: what its large products and norms, GELU and attention keep."""
    tokens = (spec['img_size'] // spec['patch_size']) ** 2 + 1
    heads = [spec['head_dim'] * number for number in subnet.num_heads]
    width = 4 * subnet.embed_dim * subnet.depth  # two norms, and what comes out of them
    return 4 * batch * tokens * (width + 4 * sum(heads) + 2 * sum(subnet.hidden_dims))
