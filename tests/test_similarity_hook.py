"""The hook: its numbers match the formulas, and it does not affect training."""

import json
import random
from math import e, log
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import runner_of
from mmengine.runner import Runner

from tas_lora import SearchSpace, UserError
from tas_lora.engine.hooks import SimilarityHook
from tas_lora.models.safe_load import read_state_dict

NAMES = ('feature_similarity', 'expert_similarity', 'gate_entropy', 'dead_experts')


def with_hook(cfg, **options):
    """A config with the hook after its others."""
    options = dict(subnets=3, images=12, gate_draws=10) | options
    cfg.custom_hooks = [
        *cfg.get('custom_hooks', []),
        dict(type='tas_lora.SimilarityHook', **options),
    ]
    return cfg


def trained(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def logged(runner, name: str) -> list[float]:
    """All values of a scalar, in order."""
    return list(runner.message_hub.log_scalars[f'train/{name}'].data[0])


def held_out_inputs(cfg, seed: int, count: int) -> torch.Tensor:
    """The images, read by another way: the dataset, and a draw of its indices."""
    data = Runner.build_dataloader(dict(cfg.heldout_dataloader)).dataset
    chosen = np.random.default_rng(seed).choice(len(data), count, replace=False)
    return torch.stack([data[i]['inputs'] for i in chosen.tolist()]).float()


def reference_similarity(model, subnets, pixels) -> float:
    """From logits' inputs: mean over pairs and images of the cosine on shared channels."""
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    features = []
    for subnet in subnets:
        model.set_subnet(subnet)
        with torch.no_grad():
            features.append(model.extract_feat((pixels - mean) / std)[-1].double().numpy())
    cosines = []
    for i, a in enumerate(features):
        for b in features[:i]:
            width = min(a.shape[1], b.shape[1])
            x, y = a[:, :width], b[:, :width]
            sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosines.append(((x * y).sum(axis=1) / sizes).mean())
    return float(np.mean(cosines))


def test_numbers_are_those_of_the_trained_model(digits_config):
    cfg = with_hook(digits_config('moLE', images=64), seed=3)
    runner = trained(cfg)
    model, space = runner.model, SearchSpace(**cfg.space)
    model.eval()
    rng = np.random.default_rng(3)
    subnets = list(dict.fromkeys(space.sample(rng) for _ in range(50)))[:3]
    expected = reference_similarity(model, subnets, held_out_inputs(cfg, 3, 12))
    assert logged(runner, 'feature_similarity')[-1] == pytest.approx(expected, abs=1e-5)

    means = []
    for layer in model.backbone.mole_layers():
        up = layer.lora_b.detach().flatten(1, -2)
        products = torch.einsum('kor,kri->koi', up, layer.lora_a.detach()).flatten(1)
        means.append(torch.cosine_similarity(products[:, None], products, dim=-1))
    pairs = np.triu_indices(12, 1)
    expected = np.mean([matrix.numpy()[pairs].mean() for matrix in means])
    assert logged(runner, 'expert_similarity')[-1] == pytest.approx(expected, abs=1e-4)


def test_scalars_before_training_and_every_some_epochs(digits_config):
    cfg = with_hook(digits_config('moLE', images=32), interval=2)
    cfg.train_cfg.max_epochs = 5
    runner = trained(cfg)
    assert len(logged(runner, 'feature_similarity')) == 3  # epochs 0, 2 and 4
    assert len(logged(runner, 'expert_similarity')) == 2  # at first all are zero
    (path,) = Path(cfg.work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    curve = {x['step']: x[key] for x in lines if (key := 'similarity/feature_similarity') in x}
    assert curve == dict(zip((0, 4, 8), logged(runner, 'feature_similarity'), strict=True))
    own, other = e**3 / (e**3 + 11), 1 / (e**3 + 11)
    start = -own * log(own) - 11 * other * log(other)
    assert logged(runner, 'gate_entropy')[0] == pytest.approx(start, abs=1e-5)
    assert 0 <= logged(runner, 'dead_experts')[0] < 1


def test_a_bare_supernet_has_features_alone(digits_config):
    runner = trained(with_hook(digits_config('supernet', images=32)))
    assert len(logged(runner, 'feature_similarity')) == 3
    assert all(0 < value < 1 for value in logged(runner, 'feature_similarity'))
    assert not any(f'train/{name}' in runner.message_hub.log_scalars for name in NAMES[1:])


def test_one_expert_has_features_alone(digits_config):
    cfg = digits_config('moLE', images=32)
    cfg.model.backbone.mole.num_experts = 1
    cfg.model.router = dict(type='tas_lora.SingleExpertHead', space=cfg.space)
    cfg.optim_wrapper = dict(
        type='tas_lora.SupernetOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)
    )
    runner = runner_of(with_hook(cfg))
    assert len(logged(runner, 'feature_similarity')) == 1
    assert 'train/gate_entropy' not in runner.message_hub.log_scalars


@pytest.mark.full
def test_training_is_the_same_with_and_without(digits_config):
    weights = []
    for hook in (False, True):
        cfg = digits_config('moLE', images=32)
        cfg = with_hook(cfg, dataloader=random_images(cfg)) if hook else cfg
        cfg.work_dir += str(hook)
        trained(cfg)
        weights.append(read_state_dict(f'{cfg.work_dir}/epoch_2.pth'))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def random_images(cfg) -> dict:
    """Held-out images whose pipeline draws random numbers."""
    loader = cfg.heldout_dataloader.to_dict()
    flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
    loader['dataset']['dataset']['pipeline'] = [flip, dict(type='PackInputs')]
    return loader


def states() -> list:
    numpy = np.random.get_state()
    return [random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()]


@pytest.mark.full
def test_random_states_modes_and_subnet_stay(digits_config):
    cfg = digits_config('moLE', images=32)
    runner = runner_of(cfg)
    hook = SimilarityHook(subnets=3, images=12, dataloader=random_images(cfg))
    model = runner.model
    model.train()
    model.backbone.norm.eval()
    model.set_subnet(model.router.space.smallest())
    modes, before = [module.training for module in model.modules()], states()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hook.before_run(runner)
    hook.before_train(runner)
    hook.after_train_epoch(runner)
    assert states() == before
    assert [module.training for module in model.modules()] == modes
    assert model.subnet == model.router.space.smallest()
    assert not model.is_merged
    assert all(torch.equal(value, weights[n]) for n, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.full
def test_the_same_images_each_time(digits_config):
    cfg = digits_config('moLE', images=32)
    runner = runner_of(cfg)
    hook = SimilarityHook(subnets=3, images=12, dataloader=random_images(cfg))
    hook.before_run(runner)
    hook.before_train(runner)
    hook.after_train_epoch(runner)
    values = logged(runner, 'feature_similarity')[-2:]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(interval=0), 'SimilarityHook.interval must be a positive integer'),
        (dict(subnets=1), 'SimilarityHook.subnets must be 2 or more'),
        (dict(subnets=2.5), 'SimilarityHook.subnets must be a positive integer'),
        (dict(images=0), 'SimilarityHook.images must be a positive integer'),
        (dict(gate_draws=-1), 'SimilarityHook.gate_draws must be a positive integer'),
        (dict(seed=-1), 'SimilarityHook.seed must be an integer from 0'),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SimilarityHook(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(images=300), 'SimilarityHook.images is 300, but the dataset has 287'),
        (dict(dataloader=dict(batch_size=2)), 'SimilarityHook.dataloader cannot be built'),
    ],
)
def test_images_that_will_not_do_are_refused(digits_config, options, message):
    with pytest.raises(UserError, match=message):
        runner_of(with_hook(digits_config('moLE', images=32), **options))


def test_a_space_that_is_too_small_is_refused(digits_config):
    cfg = with_hook(digits_config('supernet', images=32), subnets=5)
    cfg.train_cfg.space = dict(embed_dim=[24], depth=[2], num_heads=[2], mlp_ratio=[2.0, 4.0])
    with pytest.raises(UserError, match='5 distinct subnets of a space of 4'):
        runner_of(cfg)


def test_one_network_alone_has_no_subnets(digits_config):
    cfg = with_hook(digits_config('supernet', images=32))
    cfg.train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=1)
    with pytest.raises(UserError, match='this config trains one network'):
        runner_of(cfg)


def test_images_must_be_told_where_there_are_none(digits_config):
    cfg = with_hook(digits_config('supernet', images=32))
    for name in ('heldout_dataloader', 'val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[name] = None
    with pytest.raises(UserError, match='set SimilarityHook.dataloader'):
        runner_of(cfg)
