"""A rehearsal on a GPU that is not there: what it would start, get from the host, and wait for.

Fake CUDA tensors have shapes and a device, but no values: reading one back raises.
"""

from collections import Counter
from functools import cache
from itertools import cycle, islice

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tas_lora import SearchSpace, Subnet
from tas_lora.config import load_config
from tas_lora.costs.reference_models import StaticViT, left_unmerged
from tas_lora.engine import MoLEOptimWrapperConstructor, SupernetOptimWrapper
from tas_lora.engine.hooks import late_info_hook

BATCH, CLASSES = 2, 1000
CONFIGS = dict(
    t='autoformer_t_moLE.py',
    s='autoformer_s_moLE.py',
    b='autoformer_b_moLE.py',
    deit_s='pretrained/distilled_experts.py',
)
# What one block starts in addition to a plain network's, by kind.
TABLES = Counter(stack=1, sub=1, sum=1)  # relative to the class token
RELATIVE = TABLES + Counter(
    clone=2,  # queries and output, tokens first
    embedding=2,  # vectors of rows and columns, for queries and for the output
    bmm=2,  # products with these
    cat=3,  # of queries, keys and values, wider heads
    add=2,  # their part of the output, and the class token's
)
# What comes out of a product is reshaped without a copy; the others start nothing on a device.
NOTHING = {'aten::_unsafe_view', 'aten::empty', 'aten::lift_fresh', 'prim::device'}


class Launches(TorchDispatchMode):
    """Counts operations that would start a kernel, those that use memory of the host, and copies.

    Of the copies between host and device, ``waits`` are those that the host waits for.
    """

    def __init__(self):
        super().__init__()
        self.by_kind, self.on_host, self.copies, self.waits = (Counter() for _ in range(4))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and name not in NOTHING:
            used = tree_leaves((args, kwargs, result))
            devices = {tensor.device.type for tensor in used if isinstance(tensor, torch.Tensor)}
            self.by_kind[name.removeprefix('aten::')] += 1
            self.on_host[name] += 'cpu' in devices
            self.copies[name] += len(devices) > 1
            self.waits[name] += len(devices) > 1 and not (kwargs or {}).get('non_blocking')
        return result

    @property
    def total(self) -> int:
        return self.by_kind.total()


def attention_kernel(q, k, v, scale=None, **_):
    """What torch picks on a GPU; it asks the driver, and without one multiplies and adds."""
    if q.dtype == torch.float32:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, None, False, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


@pytest.fixture(scope='module')
def mode():
    """Tensors of one mode belong together."""
    return FakeTensorMode()


@pytest.fixture
def gpu(mode, monkeypatch):
    """CUDA tensors can be made, and autocast believes in them."""
    monkeypatch.setattr(F, 'scaled_dot_product_attention', attention_kernel)
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    with mode:
        yield


def on_gpu(make) -> nn.Module:
    """The module that ``make()`` builds, with fake parameters and buffers."""
    with unset_fake_temporarily(), torch.device('meta'):
        module = make()
    return module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device='cuda'))


def model_config(name: str) -> tuple[dict, SearchSpace]:
    config = load_config(ROOT / 'configs' / CONFIGS[name])
    config.model.router.type = 'tas_lora.MLPRouterHead'  # the LSTM's asks cuDNN
    config.model.head.num_classes = CLASSES
    return config.model, SearchSpace.coerce(config.train_cfg.space)


def built(config: dict, **backbone) -> nn.Module:
    config = dict(config, backbone=dict(config['backbone'], **backbone))
    return on_gpu(lambda: MODELS.build(config)).eval()


@pytest.fixture(scope='module')
def supernets(mode):
    """Supernet and space by name."""

    @cache
    def supernet(name: str) -> tuple[nn.Module, SearchSpace]:
        config, space = model_config(name)
        with mode:
            return built(config), space

    return supernet


def mixed(space: SearchSpace) -> Subnet:
    """A deep subnet with all choices of heads and MLPs."""
    depth, width = max(space.depth), min(space.embed_dim)
    blocks = (islice(cycle(choices), depth) for choices in (space.num_heads, space.mlp_ratio))
    return Subnet(width, *map(list, blocks), *(space.patch_size or ())[:1])


def images() -> torch.Tensor:
    return torch.empty(BATCH, 3, 224, 224, device='cuda')


def merged(model, subnet) -> tuple[Launches, Launches]:
    """Set ``subnet`` and merge; what routing and merging started."""
    model.set_subnet(subnet)
    with Launches() as routing:
        gates = model.router(subnet)
    with Launches() as merging:
        model.backbone.merge_experts(subnet, gates)
    for layer, out_features, in_features in active_layers(model):
        assert layer.merged.shape == (layer.parts * out_features, in_features)
    return routing, merging


def active_layers(model):
    for block, widths in model.backbone.active_blocks(model.subnet):
        yield from block.sliced_linears(*widths)


# The count itself


def test_kernels_are_counted_and_views_are_not(gpu):
    layer, x = on_gpu(lambda: nn.Linear(4, 6)), torch.empty(3, 5, 4, device='cuda')
    with Launches() as found:
        y = layer(x)[:, 1:].transpose(1, 2).unflatten(1, (2, 3))
        y.flatten(1).relu()
    assert found.by_kind == Counter(addmm=1, clone=1, relu=1)
    assert not found.on_host.total()


def test_copies_from_the_host_are_noticed(gpu):
    x = torch.empty(3, 4, device='cuda')
    for copy in (lambda: torch.tensor([1, 2], device='cuda'), lambda: x[[0, 2]]):
        with Launches() as found:
            copy()
        assert found.on_host.total()


def test_copies_that_the_host_waits_for_are_told_apart(gpu):
    x, y = torch.empty(3), torch.empty(3, device='cuda')
    with Launches() as found:
        x.to('cuda', non_blocking=True)
    assert (found.copies.total(), found.waits.total()) == (1, 0)
    for copy in (lambda: x.to('cuda'), lambda: y[torch.randperm(3)], lambda: y.cpu()):
        with Launches() as found:
            copy()
        assert found.copies.total() == found.waits.total() == 1


@pytest.mark.parametrize('read', [torch.Tensor.item, bool])
def test_reading_back_raises(gpu, read):
    with pytest.raises(DataDependentOutputException):
        read(torch.empty((), device='cuda'))


# What a subnet costs


@pytest.mark.parametrize('name', CONFIGS)
def test_routing_and_merging_start_few_kernels(gpu, supernets, name):
    model, space = supernets(name)
    for subnet in (space.smallest(), mixed(space)):
        routing, merging = merged(model, subnet)
        assert merging.total <= 60, merging.by_kind
        assert routing.total <= 16, routing.by_kind
        assert not (routing.on_host + merging.on_host).total()


@pytest.mark.parametrize(
    ('name', 'amp'), [*((name, False) for name in CONFIGS), ('t', True), ('deit_s', True)]
)
def test_forward_starts_what_a_plain_network_does_and_known_kernels(gpu, supernets, name, amp):
    model, space = supernets(name)
    subnet = mixed(space)
    plain = on_gpu(lambda: StaticViT(subnet, model.image_spec))
    merged(model, subnet)
    found = []
    for network in (plain, model):
        with torch.autocast('cuda', torch.float16, enabled=amp), Launches() as launches:
            assert network(images()).shape == (BATCH, CLASSES)
        found.append(launches.by_kind)
        assert not launches.on_host.total()
    assert found[1] - found[0] == known_kernels(model, amp)
    assert set(found[0] - found[1]) <= {'mean'}  # not where the class token is the feature


def known_kernels(model, amp: bool) -> Counter:
    """What the active subnet starts in addition to a plain network of its widths."""
    attention, subnet = model.backbone.blocks[0].attn, model.subnet
    known = Counter()
    if attention.has_tables:
        # Autocast casts marks, tables for each of the products, and the class token's vector.
        block = RELATIVE + Counter(_to_copy=4 * amp)
        known = Counter({kind: number * subnet.depth for kind, number in block.items()})
    if attention.qkv.bias_by_part:
        full = attention.qkv.out_features // attention.head_dim
        known['clone'] += sum(heads < full for heads in subnet.num_heads)  # slices of biases
    return known


def test_layer_scale_is_one_kernel_a_branch(gpu):
    config, space = model_config('deit_s')
    counts = []
    for scale in (None, 1e-5):
        style = dict(config['backbone']['style'], layer_scale=scale)
        model = built(config, style=style, block_order=[*range(12)][::-1])
        model.set_subnet(mixed(space))
        model.merge_experts()
        with Launches() as found:
            model(images())
        counts.append(found.by_kind)
    assert counts[1] - counts[0] == Counter(mul=2 * model.subnet.depth)


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_training_forward_stays_on_the_device(gpu, with_cp):
    """Labels are one-hot, as batch augmentation makes them."""
    config, space = model_config('t')
    model = built(config, with_cp=with_cp).train()
    samples = [DataSample() for _ in range(BATCH)]
    for sample in samples:
        sample.set_field(torch.empty(CLASSES, device='cuda'), 'gt_score')
    model.set_subnet(mixed(space))
    with Launches() as found:
        model.merge_experts()
        losses = model(images(), samples, mode='loss')
    assert losses['loss'].requires_grad
    assert not found.on_host.total()


# A training iteration. Backward needs a driver: gradients are filled in instead.


@pytest.fixture
def training(gpu, monkeypatch):
    """Makes a model, and its optimizer wrapper for training in bfloat16."""
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda: True)
    monkeypatch.setattr('tas_lora.engine.optim.supernet_optim.get_device', lambda: 'cuda')
    monkeypatch.setattr(torch, '_fused_sgd_', lambda *args, **kwargs: None)  # has no fake kernel
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)  # nor this

    def make(optimizer: dict | None = None, **wrapper):
        config, space = model_config('t')
        data = dict(num_classes=CLASSES, mean=[100.0] * 3, std=[50.0] * 3, to_rgb=True)
        model = built(dict(config, data_preprocessor=data)).train()
        model.data_preprocessor._device = torch.device('cuda')
        model.data_preprocessor._forward_pre_hooks.clear()  # looks at labels on the host
        model.set_subnet(mixed(space))
        wrapper |= dict(
            experts=dict(optimizer=dict(type='AdamW', lr=1e-3) | (optimizer or {})),
            router=dict(optimizer=dict(type='SGD', lr=0.1)),
        )
        wrapper = MoLEOptimWrapperConstructor(dict(wrapper, amp='bfloat16'))(model)
        wrapper.initialize_count_status(model, 0, 100)
        trained = [p for p in model.parameters() if p.requires_grad]

        def backward(loss, **_):
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, 'backward', backward)
        return model, wrapper

    return make


def batch() -> dict:
    """As MMEngine's loader collates it: an image is a tensor, with its label."""
    samples = [DataSample() for _ in range(BATCH)]
    for sample in samples:
        sample.set_field(torch.empty(1, dtype=torch.int64), 'gt_label')
    images = [torch.empty(3, 224, 224, dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('augmentation', [0, 1])
def test_an_iteration_waits_for_nothing(training, monkeypatch, augmentation):
    """Mixup and CutMix; images, labels and scores go to the device in one copy each."""
    model, wrapper = training()
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda t: pinned.append(tuple(t.shape)) or t)
    model.data_preprocessor.batch_augments.probs = [1 - augmentation, augmentation]
    wrapper.first.is_read_late = True
    for _ in range(2):
        with Launches() as found:
            model.merge_experts()
            losses = model.train_step(batch(), wrapper)
            model.unmerge_experts()
        assert +found.copies == {'aten::_to_copy': 3}
        assert not found.waits.total()
        assert pinned == [(BATCH,), (BATCH, CLASSES)]  # images are stacked in such memory
        pinned.clear()
        loss, is_bad = wrapper.first.take_unread()
        assert losses['loss'].device == loss.device == is_bad.device == torch.device('cuda:0')


def test_losses_of_a_gpu_are_read_back_together(gpu, monkeypatch):
    """Those of the host need no copy, and cannot be stacked with them."""
    copies = []
    monkeypatch.setattr(FakeTensor, 'tolist', lambda t: copies.append(t) or [0.5] * len(t))
    monkeypatch.setattr(FakeTensor, 'item', lambda t: 3.0)
    values = [torch.empty((), device='cuda'), torch.empty(()), 2, torch.empty(1, device='cuda')]
    assert late_info_hook._read(values) == [0.5, 3.0, 2, 0.5]
    assert [copy.shape for copy in copies] == [(2,)]


@pytest.mark.parametrize(
    ('optimizer', 'more', 'is_read_late'),
    [
        ({}, {}, False),  # no hook reads what was left out
        (dict(fused=False), {}, True),
        ({}, dict(clip_grad=dict(max_norm=1.0)), True),
    ],
)
def test_a_step_that_cannot_be_skipped_on_the_device_is_read_back(
    training, optimizer, more, is_read_late
):
    model, wrapper = training(optimizer, **more)
    wrapper.first.is_read_late = is_read_late
    with pytest.raises(DataDependentOutputException):
        model.train_step(batch(), wrapper)


@pytest.mark.parametrize(
    ('kind', 'options', 'is_fused'),
    [
        ('AdamW', {}, True),
        ('Adam', {}, True),
        ('SGD', {}, True),
        ('SGD', dict(momentum=0.9), False),
        ('AdamW', dict(foreach=True), None),
        ('AdamW', dict(fused=False), False),
        ('RMSprop', {}, None),
    ],
)
def test_optimizers_of_a_gpu_use_fused_kernels_where_they_may(gpu, kind, options, is_fused):
    parameter = nn.Parameter(torch.empty(3, device='cuda'))
    optimizer = getattr(torch.optim, kind)([parameter], lr=0.1, **options)
    wrapper = SupernetOptimWrapper(optimizer)
    assert optimizer.param_groups[0].get('fused') == (is_fused or options.get('fused'))
    assert wrapper.skips_on_device == bool(is_fused)


# Where layers cannot be merged together


@pytest.mark.parametrize(
    'mole', [dict(layer_experts=6), dict(importance=[[1.0] * 4, [3.0] * 4] * 7)]
)
def test_unequal_experts_are_merged_layer_by_layer(gpu, mole):
    config, space = model_config('t')
    model = built(config, mole=dict(config['backbone']['mole'], **mole))
    _, merging = merged(model, mixed(space))
    assert merging.by_kind['addmm'] == 4 * model.subnet.depth


def test_layers_without_experts_are_left_alone(gpu):
    config, space = model_config('t')
    model = built(config, mole=dict(config['backbone']['mole'], layers=['qkv', 'fc2']))
    model.set_subnet(mixed(space))
    model.merge_experts()
    for block, _ in model.backbone.active_blocks(model.subnet):
        assert block.attn.qkv.merged is not None
        assert block.fc2.merged is not None


def test_experts_that_the_benchmark_leaves_unmerged_stay_so(gpu):
    config, space = model_config('t')
    model = left_unmerged(built(config))
    model.set_subnet(mixed(space))
    model.merge_experts()
    K = config['backbone']['mole']['num_experts']
    assert all(layer.merged.shape == (K,) for layer, *_ in active_layers(model))
    assert model(images()).shape == (BATCH, CLASSES)
