"""Training from a pretrained network: the original as a frozen teacher, and kept as it is."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import runner_of
from PIL import Image

from tas_lora import Subnet, UserError, apis, load_supernet
from tas_lora.analysis.gates import layer_gates
from tas_lora.costs.benchmark import supernet
from tas_lora.engine import MoLEHook, SupernetRunner
from tas_lora.engine.hooks.compile_warmup_hook import covering_subnets, run_once
from tas_lora.engine.runner import distillation
from tas_lora.engine.search.result import winner_gates
from tas_lora.models.export import export_subnet
from tas_lora.models.plain_vit import load_plain_vit
from tas_lora.models.safe_load import read_checkpoint

DISTILL = 'tas_lora.ParentDistillation'
MAP = dict(optimizer=dict(type='SGD', lr=0.1))


@pytest.fixture
def config(digits_config, digits_root, tmp_path):
    """Makes a small config that starts from the weights of another run; SGD, constant rates."""

    def make(stage: str = 'moLE', strategy: dict | None = None, images: int = 64, **model):
        cfg = digits_config(stage, images)
        original = tmp_path / 'original.pth'
        if not original.exists():
            torch.manual_seed(1)
            bare = load_supernet(digits_config('supernet', images))
            with torch.no_grad():
                for parameter in bare.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            torch.save(dict(state_dict=bare.state_dict()), original)
        cfg.load_from = str(original)
        cfg.train_cfg.strategy = dict(type=DISTILL) | (strategy or {})
        cfg.model.merge(model)
        cfg.param_scheduler = None
        if stage == 'supernet':
            cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
        else:
            cfg.custom_hooks[0].router_warmup_epochs = 0
            cfg.optim_wrapper.experts = dict(optimizer=dict(type='SGD', lr=0.1))
            if model.get('feature_map'):
                cfg.optim_wrapper.feature_map = MAP
        return cfg

    return make


def loaded(cfg) -> SupernetRunner:
    """A runner right before its first iteration, its weights loaded."""
    runner = runner_of(cfg, SupernetRunner)
    runner.load_or_resume()
    return runner


def started(cfg) -> SupernetRunner:
    """The same, its experts not zero."""
    runner = loaded(cfg)
    for layer in runner.model.backbone.mole_layers():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    return runner


def plain_network(cfg, runner):
    """The original, built anew from its file, without experts."""
    bare = deepcopy(cfg)
    bare.model.router = None
    bare.model.backbone.mole = None
    bare.model.keep_parent = bare.model.feature_map = False
    teacher = load_supernet(bare, cfg.load_from)
    teacher.set_subnet(teacher.backbone.arch)
    return teacher


@torch.no_grad()
def logits_of(model, images, subnet) -> torch.Tensor:
    model.eval()
    model.set_subnet(subnet)
    return model(images, mode='tensor')


def expected_loss(student, teacher, images, labels, temperature, weights, distance):
    """The loss of a batch by the formulas of its parts, on networks given."""
    own, other = student(images, mode='tensor'), teacher(images, mode='tensor').detach()
    soft = (other / temperature).softmax(-1)
    divergence = F.kl_div((own / temperature).log_softmax(-1), soft, reduction='sum') / len(images)
    features = student.extract_feat(images, 'pre_logits')
    original = teacher.extract_feat(images, 'pre_logits').detach()[:, : features.shape[1]]
    if distance == 'mse':
        apart = ((features - original) ** 2).sum() / features.numel()
    else:
        lengths = features.norm(dim=1) * original.norm(dim=1)
        apart = (1 - (features * original).sum(1) / lengths).sum() / len(images)
    losses = temperature**2 * divergence, apart, F.cross_entropy(own, labels)
    return [weight * loss for weight, loss in zip(weights, losses, strict=True)]


@pytest.mark.parametrize(('stage', 'distance'), [('moLE', 'cosine'), ('supernet', 'mse')])
def test_the_loss_and_its_gradient_by_hand(config, stage, distance):
    weights = dict(logits=0.7, features=2.0, labels=0.3)
    strategy = dict(**weights, temperature=3.0, distance=distance)
    cfg = config(stage, strategy)
    runner = started(cfg)
    loop, model, batch = runner.train_loop, runner.model, next(iter(runner.train_dataloader))
    student, teacher = deepcopy(model), plain_network(cfg, runner)
    data = model.data_preprocessor(deepcopy(batch), training=True)
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
    student.set_subnet(loop.draw(0)[0])
    teacher.train()
    parts = expected_loss(student, teacher, data['inputs'], labels, 3.0, weights.values(), distance)
    sum(parts).backward()
    outputs = watch(runner)
    loop.run_iter(0, batch)
    for name, part in zip(weights, parts, strict=True):
        assert outputs[0][f'loss_{name}'] == pytest.approx(part.item(), rel=1e-4)
    assert outputs[0]['loss'] == pytest.approx(sum(parts).item(), rel=1e-4)
    before = dict(student.named_parameters())
    moved = 0
    for name, value in model.named_parameters():
        gradient = before[name].grad
        expected = before[name] - (0 if gradient is None else 0.1 * gradient)
        assert (value - expected).abs().max() < 1e-5, name
        moved += gradient is not None
    assert moved


def watch(runner) -> list[dict]:
    """What each iteration returns to be logged, as it comes."""
    seen, call_hook = [], runner.call_hook

    def spy(point, **kwargs):
        if point == 'after_train_iter':
            seen.append({name: float(value) for name, value in kwargs['outputs'].items()})
        call_hook(point, **kwargs)

    runner.call_hook = spy
    return seen


def test_the_sum_over_a_sandwich(config):
    """Gradients of all its subnets are of one batch and one teacher."""
    runner = started(config('moLE', dict(subnets='sandwich', num_random=1)))
    loop, model, batch = runner.train_loop, runner.model, next(iter(runner.train_dataloader))
    subnets = loop.draw(0)
    assert subnets[:2] == [loop.space.largest(), loop.space.smallest()]
    student = deepcopy(model)
    images = model.data_preprocessor(deepcopy(batch), training=True)['inputs']
    with torch.no_grad():
        teacher = student.parent_outputs(images)[0].softmax(-1)
    for subnet in subnets:
        student.set_subnet(subnet)
        own = student(images, mode='tensor').log_softmax(-1)
        (F.kl_div(own, teacher, reduction='sum') / len(images)).backward()
    outputs = watch(runner)
    loop.run_iter(0, batch)
    assert set(outputs[0]) == {
        'loss', 'loss_largest_logits', 'loss_smallest_logits', 'loss_random0_logits'
    }  # fmt: skip
    before = dict(student.named_parameters())
    for name, value in model.named_parameters():
        if 'lora_' in name and before[name].grad is not None:
            assert (value - (before[name] - 0.1 * before[name].grad)).abs().max() < 1e-5, name


def test_one_subnet_alone_is_trained(config, tmp_path):
    space = config('supernet').train_cfg.space
    subnet = Subnet(
        embed_dim=min(space['embed_dim']),
        num_heads=[min(space['num_heads'])] * min(space['depth']),
        mlp_ratio=[min(space['mlp_ratio'])] * min(space['depth']),
    )
    file = tmp_path / 'found.json'
    file.write_text(json.dumps(dict(subnet=subnet.to_dict())))
    runner = started(config('supernet', dict(subnets=str(file))))
    assert runner.train_loop.draw(0) == runner.train_loop.draw(7) == [subnet]
    before = deepcopy(runner.model.state_dict())
    outputs = watch(runner)
    runner.train_loop.run_iter(0, next(iter(runner.train_dataloader)))
    assert set(outputs[0]) == {'loss', 'loss_logits'}
    moved = {n: before[n] != value for n, value in runner.model.state_dict().items()}
    width, hidden = subnet.embed_dim, subnet.hidden_dims[0]
    weights = moved['backbone.blocks.0.fc1.weight']
    assert weights[:hidden, :width].any()
    assert not weights[hidden:].any()
    assert not weights[:, width:].any()
    assert not moved[f'backbone.blocks.{subnet.depth}.fc1.weight'].any()


def test_the_teacher_is_run_once_without_a_graph(config):
    runner = started(config('moLE', dict(subnets='sandwich', num_random=2)))
    model, seen = runner.model, []
    original = model.parent_outputs

    def spied(inputs):
        merged = [layer.merged for layer in model.backbone.mole_layers()]
        outputs = original(inputs)
        seen.append((outputs, torch.is_grad_enabled()))
        after = [layer.merged for layer in model.backbone.mole_layers()]
        assert all(a is b for a, b in zip(merged, after, strict=True))
        return outputs

    model.parent_outputs = spied
    model.train()
    runner.train_loop.run_iter(0, next(iter(runner.train_dataloader)))
    assert len(seen) == 1
    assert all(output.grad_fn is None and not output.requires_grad for output in seen[0][0])
    assert model.training


def test_the_teacher_drops_no_paths(config):
    cfg = config('moLE')
    cfg.model.backbone.drop_path_rate = 0.5
    runner = started(cfg)
    images = torch.randn(4, 1, 8, 8)
    teacher = plain_network(cfg, runner).eval()
    runner.model.train()
    logits, features = runner.model.parent_outputs(images)
    assert torch.equal(logits, teacher(images, mode='tensor'))
    assert torch.equal(features, teacher.extract_feat(images, 'pre_logits'))


def test_all_weights_trained_keep_the_file_as_teacher(config, tmp_path):
    """The copy does not move with the weights, and has no parameter in the optimizer."""
    cfg = config('supernet', dict(features=1.0))
    runner = started(cfg)
    strategy, batch = runner.train_loop.strategy, next(iter(runner.train_dataloader))
    images = torch.randn(4, 1, 8, 8)
    before = strategy._teacher.parent_outputs(images)[0]
    assert torch.equal(before, runner.model.parent_outputs(images)[0])
    for i in range(3):
        runner.train_loop.run_iter(i, batch)
    assert torch.equal(before, strategy._teacher.parent_outputs(images)[0])
    assert not torch.equal(before, runner.model.parent_outputs(images)[0])
    assert not any(p.requires_grad for p in strategy._teacher.parameters())


@pytest.mark.parametrize('shared', [0, 1])
def test_the_parent_comes_out_to_the_last_bit(config, tmp_path, shared):
    """After large steps, through a checkpoint, and as an exported network."""
    cfg = config('moLE', dict(features=1.0), keep_parent=True)
    cfg.model.router.shared = shared
    cfg.model.backbone.mole.num_experts += shared
    cfg.optim_wrapper.experts.optimizer = dict(type='AdamW', lr=0.5)
    cfg.default_hooks.checkpoint.interval = 2
    arch = Subnet.coerce(cfg.model.backbone.arch)
    images = torch.randn(5, 1, 8, 8)
    before = load_supernet(cfg, cfg.load_from)
    small = Subnet(24, [2, 3], [2.0, 4.0])
    parent, other = (logits_of(before, images, subnet) for subnet in (arch, small))
    assert torch.equal(parent, plain_network(cfg, None)(images, mode='tensor'))
    apis.train(cfg)
    checkpoint = Path(cfg.work_dir) / 'epoch_2.pth'
    after = load_supernet(cfg, checkpoint)
    for layer in after.backbone.mole_layers():
        assert layer.lora_b.abs().max() > 0.1
    assert torch.equal(logits_of(after, images, arch), parent)
    assert not torch.allclose(logits_of(after, images, small), other, atol=1e-2)
    after.set_subnet(arch)
    exported, original = (
        load_plain_vit(export_subnet(model, arch, tmp_path / name))[0].eval()
        for name, model in (('exported', after), ('original', plain_network(cfg, None)))
    )
    assert torch.equal(exported(images), original(images))
    torch.testing.assert_close(exported(images), parent)
    with torch.no_grad():  # as an evaluation's hook does
        after.merge_experts()
    assert not after.is_merged
    assert torch.equal(after(images, mode='tensor'), parent)


def test_a_strategy_that_samples_the_parent_alone_is_one_line(config):
    loop = started(config('moLE', keep_parent=True)).train_loop
    loop.strategy.draw = lambda space, rng: [space.largest()]
    with pytest.raises(UserError, match='is ParentDistillation, which samples only the full size'):
        loop.draw(0)


def test_an_iteration_never_draws_a_parent_that_is_kept(config):
    cfg = config('moLE', keep_parent=True)
    space = dict(embed_dim=[32, 40], depth=[4], num_heads=[3], mlp_ratio=[4.0])
    cfg.train_cfg.space = cfg.model.router.space = space
    cfg.model.backbone.mole.num_experts = 2
    loop = started(cfg).train_loop
    assert {loop.draw(i)[0].embed_dim for i in range(20)} == {32}
    loop.strategy.subnets = 'sandwich'
    assert [s.embed_dim for s in loop.draw(0)][0] == 32


@pytest.mark.parametrize('resumes', [False, True])
def test_a_batch_norm_and_averaged_weights_leave_the_parent(config, tmp_path, resumes):
    neck = dict(type='LinearNeck', in_channels=40, out_channels=40)  # with a BatchNorm1d
    cfg = config('moLE', dict(labels=1.0), keep_parent=True, neck=neck)
    for part in (cfg.train_cfg, cfg.model.router, cfg.val_cfg):
        part.space = dict(part.space, embed_dim=[40])
    cfg.model.backbone.mole.num_experts = 4
    cfg.custom_hooks.append(dict(type='EMAHook'))
    before, images = load_supernet(cfg), torch.randn(5, 1, 8, 8)
    cfg.load_from = str(tmp_path / 'start.pth')
    torch.save(dict(state_dict=before.state_dict()), cfg.load_from)
    arch = before.backbone.arch
    runner = apis.train(deepcopy(cfg))
    if resumes:
        Path(cfg.work_dir, 'epoch_2.pth').unlink()
        runner = apis.train(deepcopy(cfg), resume=True)
    averaged = load_supernet(cfg, Path(cfg.work_dir) / 'epoch_2.pth')
    for after in (runner.model, averaged):
        assert any(layer.lora_b.any() for layer in after.backbone.mole_layers())
        assert torch.equal(logits_of(after, images, arch), logits_of(before, images, arch))


@pytest.mark.parametrize('shared', [0, 2])
def test_a_kept_parent_uses_no_expert(config, shared):
    cfg = config('moLE', keep_parent=True)
    cfg.model.router.shared = shared
    cfg.model.backbone.mole.num_experts += shared
    cfg.model.backbone.block_order = [2, 0, 3, 1]
    model = load_supernet(cfg)
    arch = model.backbone.arch
    assert model.routed_gates(arch).shape == (4, 4, 12)
    assert model.routed_gates(arch).abs().sum() == 0
    assert winner_gates(model, arch) is None
    smaller = Subnet(40, [3, 2], [4.0] * 2)
    gates = winner_gates(model, smaller)
    assert {name.split()[1] for name in gates} == {'0', '2'}  # the two best blocks
    assert gates.keys() == layer_gates(model, smaller).keys()
    for name, row in layer_gates(model, smaller).items():
        assert gates[name] == pytest.approx(row, abs=1e-6)
        assert sum(row) == pytest.approx(1)
    # Another ratio of the same width is the same network.
    assert model.keeps(Subnet(40, [3] * 4, [4.0 + 1e-9] * 4))


def test_a_search_scores_the_parent_as_it_was(digits_config, config, tmp_path):
    """Next to subnets whose experts are merged in the turns between."""
    cfg = config('moLE', keep_parent=True)
    runner = started(cfg)
    torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'trained.pth')
    space = dict(embed_dim=[32, 40], depth=[4], num_heads=[3], mlp_ratio=[4.0])
    scores = []
    for stage, file in (('search', tmp_path / 'trained.pth'), ('supernet', cfg.load_from)):
        search = digits_config('search')
        search.work_dir = str(tmp_path / stage)
        search.val_cfg.update(space=space, constraints=dict(params=(None, 1e6)), race=None)
        search.val_cfg.evolution = dict(population=2, generations=1, mutations=0, crossovers=0)
        search.model.keep_parent = True
        if stage == 'supernet':
            search.model.router = search.model.backbone.mole = None
            search.model.keep_parent = False
        apis.search(search, file)
        lines = (tmp_path / stage / 'search_history.jsonl').read_text().splitlines()
        found = {r['subnet']['embed_dim']: r for r in map(json.loads, lines) if 'subnet' in r}
        scores.append({width: record['cross_entropy'] for width, record in found.items()})
    assert scores[0][40] == scores[1][40]
    assert scores[0][32] != scores[1][32]


def test_costs_and_compilation_of_a_space_with_the_parent(config):
    cfg = config('moLE', keep_parent=True)
    assert not supernet(cfg.model).keep_parent  # its largest subnet is timed as one that is trained
    assert supernet(cfg.model, experts=False).router is None
    runner = started(cfg)
    space, model = runner.train_loop.space, runner.model
    assert model.keeps(space.largest())
    for subnet in covering_subnets(space, model.keeps):
        run_once(runner, subnet)  # its backward fails for a parent that is kept
    assert all(parameter.grad is None for parameter in model.parameters())


# The map of features


def test_the_map_begins_as_the_identity_and_is_trained(config):
    cfg = config('moLE', dict(logits=0.0, features=1.0), feature_map=True)
    runner = started(cfg)
    model = runner.model
    images = torch.randn(3, 1, 8, 8)
    narrow = Subnet(24, [2, 2], [2.0, 2.0])
    model.set_subnet(narrow)
    mapped, features = model(images, mode='distill')[1], model.extract_feat(images, 'pre_logits')
    assert mapped.shape == (3, 40)
    assert torch.equal(mapped[:, :24], features)
    assert not mapped[:, 24:].any()
    runner.train_loop.run_iter(0, next(iter(runner.train_dataloader)))
    assert not torch.equal(model.feature_map.weight, torch.eye(40))
    assert torch.equal(model.backbone.norm.weight, plain_network(cfg, None).backbone.norm.weight)


def test_checkpoints_with_and_without_a_map(config, tmp_path):
    cfg = config('moLE', dict(features=1.0), feature_map=True)
    model = load_supernet(cfg, cfg.load_from)  # the bare supernet has none
    assert torch.equal(model.feature_map.weight, torch.eye(40))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'mapped.pth')
    del cfg.model.feature_map
    assert load_supernet(cfg, tmp_path / 'mapped.pth').feature_map is None


def test_weights_are_trained_in_bfloat16_too(config):
    cfg = config('moLE', dict(features=1.0), feature_map=True, freeze_supernet=False)
    cfg.optim_wrapper.amp = 'bfloat16'
    cfg.optim_wrapper.supernet = dict(optimizer=dict(type='SGD', lr=0.1))
    runner = started(cfg)
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    subnet = runner.train_loop.draw(0)[0]
    runner.train_loop.run_iter(0, next(iter(runner.train_dataloader)))
    moved = {n for n, v in runner.model.named_parameters() if not torch.equal(v, before[n])}
    assert {f'backbone.blocks.{i}.fc1.weight' for i in range(subnet.depth)} <= moved
    assert {'backbone.patch_embed.weight', 'head.fc.weight', 'feature_map.weight'} <= moved


@pytest.mark.parametrize('stage', ['supernet', 'moLE'])
def test_layer_decay(config, stage):
    """Rates fall by a quarter for each block further down, as MMPretrain's constructor does it."""
    cfg = config(stage, freeze_supernet=False)
    decay = dict(
        optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.75, flat_decay_mult=0.0),
    )
    if stage == 'supernet':
        cfg.optim_wrapper.update(decay, constructor='LearningRateDecayOptimWrapperConstructor')
    else:
        cfg.optim_wrapper.supernet = decay
    runner = loaded(cfg)
    wrapper = runner.optim_wrapper if stage == 'supernet' else runner.optim_wrapper['supernet']
    found = {p: group for group in wrapper.optimizer.param_groups for p in group['params']}
    names = {n: p for n, p in runner.model.named_parameters() if p in found}
    assert {'head.fc.weight', 'backbone.norm.weight', 'backbone.cls_token'} < set(names)
    for name, parameter in names.items():
        block = re.match(r'backbone\.blocks\.(\d)', name)
        last = name.startswith(('head.', 'backbone.norm.'))
        below = 0 if last else 4 - int(block.group(1)) if block else 5
        assert found[parameter]['lr'] == pytest.approx(1e-2 * 0.75**below), name
        assert found[parameter]['weight_decay'] == (0.1 if parameter.ndim > 1 else 0), name


# One expert to start from


@pytest.mark.parametrize(
    ('shared', 'router'),
    [
        (0, dict(type='tas_lora.SingleExpertHead')),
        (1, dict(type='tas_lora.MLPRouterHead', init='random', num_experts=1)),
    ],
)
def test_experts_start_as_copies_of_one_lora(config, tmp_path, shared, router):
    single = config('moLE')
    single.model.backbone.mole = dict(num_experts=1, rank=4)
    single.model.router = dict(router, space=single.train_cfg.space)
    one = load_supernet(single, single.load_from)
    for layer in one.backbone.mole_layers():
        torch.nn.init.normal_(layer.lora_b, std=0.5)
    torch.save(dict(state_dict=one.state_dict()), tmp_path / 'one.pth')
    cfg = config('moLE')
    cfg.load_from = str(tmp_path / 'one.pth')
    cfg.model.router.shared = shared
    cfg.model.backbone.mole.num_experts += shared
    runner = loaded(cfg)
    images = torch.randn(4, 1, 8, 8)
    for subnet in (Subnet(24, [2, 3], [2.0, 4.0]), one.backbone.arch):
        expected = logits_of(one, images, subnet)
        torch.testing.assert_close(logits_of(runner.model, images, subnet), expected)
    layer = next(runner.model.backbone.mole_layers())
    assert [bool(up.any()) for up in layer.lora_b] == (
        [True] + [False] * 12 if shared else [True] * 12
    )


# Data, resuming and refusals


def without_labels(cfg, folder: Path):
    """Train on a folder of images that has no labels."""
    folder.mkdir()
    for i in range(32):
        Image.new('L', (8, 8), i).save(folder / f'{i}.png')
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset',
        data_root=str(folder),
        with_label=False,
        pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='PackInputs')],
    )
    return cfg


@pytest.mark.parametrize('augments', [None, [dict(type='Mixup', alpha=0.8)]])
def test_data_without_labels(config, tmp_path, augments):
    cfg = without_labels(config('moLE', dict(features=1.0)), tmp_path / 'images')
    cfg.model.train_cfg = augments and dict(augments=augments)
    runner = apis.train(cfg)
    assert runner.iter == 4
    assert runner.message_hub.log_scalars['train/loss_features'].current() > 0
    cfg.train_cfg.strategy.labels = 1.0
    refused(cfg, 'train_dataloader: its images have no labels')


@pytest.mark.parametrize('stage', ['moLE', 'supernet'])
def test_stopped_and_resumed_equals_undisturbed(config, stage):
    strategy = dict(features=1.0, subnets='sandwich', num_random=1)
    whole = config(stage, strategy)
    apis.train(deepcopy(whole))
    expected = read_checkpoint(f'{whole.work_dir}/epoch_2.pth')['state_dict']
    (Path(whole.work_dir) / 'epoch_2.pth').unlink()
    resumed = apis.train(deepcopy(whole), resume=True)
    assert resumed.cfg.load_from.endswith('epoch_1.pth')
    found = read_checkpoint(f'{whole.work_dir}/epoch_2.pth')['state_dict']
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_another_file_in_the_place_of_the_teacher(config):
    cfg = config('supernet')
    apis.train(deepcopy(cfg))
    (Path(cfg.work_dir) / 'epoch_2.pth').unlink()
    state = torch.load(cfg.load_from)
    state['state_dict']['head.fc.bias'] += 1
    torch.save(state, cfg.load_from)
    with pytest.raises(UserError, match='original.pth is not the file that this training began'):
        apis.train(deepcopy(cfg), resume=True)


def test_a_rehearsed_resume_has_the_teacher_of_the_run(config, monkeypatch):
    cfg, seen, load = config('supernet'), [], distillation.load_teacher
    apis.train(deepcopy(cfg))
    Path(cfg.work_dir, 'epoch_2.pth').unlink()

    def spied(cfg, file: str, needs_logits: bool):
        seen.append(file)
        return load(cfg, file, needs_logits)

    monkeypatch.setattr(distillation, 'load_teacher', spied)
    apis.check_training(cfg, resume=True)
    assert seen == [cfg.load_from]


def test_later_processes_take_the_teacher_that_the_first_one_names(config, monkeypatch):
    """They do not know yet that it resumes, and from what it started."""
    cfg = config('supernet')
    cfg.load_from, told = 'elsewhere.pth', [cfg.load_from]
    monkeypatch.setattr(distillation, 'broadcast_object_list', lambda x: x.__setitem__(0, told[0]))
    assert loop_of(cfg).strategy._to_note == told[0]
    told[0] = None
    with pytest.raises(UserError, match='checkpoint is missing'):
        loop_of(cfg)


def loop_of(cfg):
    return SupernetRunner.from_cfg(deepcopy(cfg)).train_loop


def test_a_run_resumed_elsewhere_does_not_take_its_own_weights_for_the_original(config, tmp_path):
    cfg = config('supernet')
    apis.train(deepcopy(cfg))
    checkpoint, original = Path(cfg.work_dir) / 'epoch_1.pth', cfg.load_from
    cfg.work_dir = str(tmp_path / 'elsewhere')
    cfg.resume, cfg.load_from = True, str(checkpoint)
    refused(cfg, 'checkpoint is missing: all weights are trained')
    cfg.train_cfg.strategy.checkpoint = original
    cfg.train_cfg.allow_changes = True  # this field is another
    apis.train(cfg)
    assert (tmp_path / 'elsewhere' / 'epoch_2.pth').exists()


def other_classes(cfg):
    state = torch.load(cfg.load_from)
    state['state_dict']['head.fc.weight'] = torch.zeros(3, 40)
    state['state_dict']['head.fc.bias'] = torch.zeros(3)
    torch.save(state, cfg.load_from)


REFUSED = {
    'no loss': (dict(logits=0), 'logits is 0, as are features and labels'),
    'draw': (dict(subnets='all'), "subnets must be 'uniform', 'sandwich', or a subnet as a dict"),
    'draw nothing': (dict(subnets=3), "subnets must be 'uniform', 'sandwich', or a subnet as a"),
    'half a subnet': (dict(subnets=dict(embed_dim=32)), 'subnets: .*num_heads'),
    'no subnet file': (dict(subnets='nowhere.json'), 'subnets: .*nowhere.json'),
    'distance': (dict(distance='l1'), "distance must be 'cosine' or 'mse', got 'l1'"),
    'weight': (dict(features=-1), 'features must be a number from 0'),
    'temperature': (dict(temperature=0), 'temperature must be a positive number'),
    'checkpoint': (dict(checkpoint=3), 'checkpoint must be a file, got 3'),
    'no file': (dict(checkpoint='nowhere.pth'), 'nowhere.pth'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_in_the_strategy_is_one_line(config, case):
    strategy, message = REFUSED[case]
    refused(config('supernet', strategy), message)


HIDDEN = dict(type='VisionTransformerClsHead', num_classes=10, hidden_dim=16)
CHANGES = {
    'no teacher': (lambda cfg: cfg.merge_from_dict(dict(load_from=None)), 'checkpoint is missing'),
    'classes': (other_classes, 'teacher .*num_classes 3 in the checkpoint'),
    'no head': (lambda cfg: cfg.model.update(head=None), 'logits must be 0, and labels'),
    'map': (lambda cfg: cfg.model.update(feature_map=True), 'features is 0, so that .*feature_map'),
    'accumulation': (
        lambda cfg: (
            cfg.optim_wrapper.update(accumulative_counts=2),
            cfg.train_cfg.strategy.update(subnets='sandwich'),
        ),
        'accumulative_counts',
    ),
    'parent': (lambda cfg: cfg.model.update(keep_parent=True), 'keep_parent is True, but'),
    'hidden layer': (
        lambda cfg: (
            cfg.model.update(feature_map=True),
            setattr(cfg.model, 'head', dict(HIDDEN)),
        ),
        'feature_map is True, but the neck or the head makes features 16 wide of .* 40',
    ),
    'neck': (
        lambda cfg: cfg.model.update(
            neck=dict(type='LinearNeck', in_channels=40, out_channels=24), feature_map=True
        ),
        'the head makes features 24 wide of',
    ),
}


@pytest.mark.parametrize('case', CHANGES)
def test_what_does_not_go_together_is_one_line(config, case):
    change, message = CHANGES[case]
    cfg = config('supernet')
    change(cfg)
    refused(cfg, message)


def test_experts_that_do_not_go_together(config):
    cfg = config('moLE', keep_parent=True)
    cfg.train_cfg.strategy = dict(type='tas_lora.SandwichRule')
    refused(cfg, 'SandwichRule, which trains the largest subnet')
    cfg = config('moLE', keep_parent=True)
    space = dict(embed_dim=[40], depth=[4], num_heads=[3], mlp_ratio=[4.0])
    cfg.train_cfg.space = cfg.model.router.space = space
    cfg.model.backbone.mole.num_experts = 1
    refused(cfg, 'space has only the full size')
    cfg = config('moLE', dict(features=1.0), feature_map=True)
    del cfg.optim_wrapper.feature_map
    refused(cfg, 'feature_map goes with model.feature_map=True')
    cfg = config('moLE')
    cfg.model.router.shared = 1
    refused(cfg, '12 groups .* and 1 shared; set it to 13')
    cfg.model.backbone.mole = dict(num_experts=13, rank=4, layer_experts=6)
    refused(cfg, 'router.shared is 1, but a layer has 6 of the 13 experts')
    cfg.model.router.shared = -1
    refused(cfg, 'shared must be an integer from 0')


def refused(cfg, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        apis.prepare_training(deepcopy(cfg))
    assert len(str(error.value).splitlines()) == 1


def test_hook_logs_what_a_kept_parent_leaves(config):
    """The largest has no experts, so that the smallest is looked at."""
    cfg = config('moLE', keep_parent=True)
    runner = started(cfg)
    runner.call_hook('before_train')
    assert runner.message_hub.get_scalar('train/delta_w').current() > 0
    assert any(isinstance(hook, MoLEHook) for hook in runner.hooks)
