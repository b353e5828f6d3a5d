"""Every config trains two steps, or searches two subnets, on made-up images."""

import gc
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import ROOT, runner_of
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from PIL import Image
from test_configs import CONFIGS
from tiny import SEARCHED

from tas_lora import load_supernet
from tas_lora.config import load_config

SPACE = {'embed_dim', 'depth', 'num_heads', 'mlp_ratio'}
BLOCKS_LESS = 9  # of 10 to 16
SMALL = dict(MNIST=(8, 8, 1), FashionMNIST=(28, 28, 1))
FULL_SIZE = ('autoformer_t_supernet', 'autoformer_t_moLE')


@DATASETS.register_module()
class MadeUpImages(BaseDataset):
    """One image under all labels: a file, or gray of a shape where the pipeline does not load."""

    def __init__(self, image, classes: int, pipeline):
        self.image, self.classes = image, classes
        super().__init__(ann_file='', pipeline=pipeline)

    def load_data_list(self) -> list[dict]:
        """As many as repeated augmentation takes at least."""
        if isinstance(self.image, str):
            image = dict(img_path=self.image)
        else:
            image = dict(img=np.full(self.image, 77, np.uint8))
        return [dict(image, gt_label=i % self.classes) for i in range(300)]


@pytest.fixture(scope='module')
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('photo') / 'x.jpg'
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def make_up(node, photo: str, classes: int) -> None:
    """Replace every data set that reads a folder, and let this process do the loading."""
    if isinstance(node, dict):
        if 'data_root' in node:
            pipeline, small = node['pipeline'], SMALL.get(node['type'], (32, 32, 3))
            loads = any(step['type'] == 'LoadImageFromFile' for step in pipeline)
            image = photo if loads else small
            node.clear()
            node.update(type='MadeUpImages', image=image, classes=classes, pipeline=pipeline)
        if node.get('type') == 'tas_lora.HeldOutSplit':
            node['size'] = 4
        if 'num_workers' in node:
            node.update(num_workers=0, persistent_workers=False, batch_size=2)
    if isinstance(node, (dict, list, tuple)):
        for value in list(node.values() if isinstance(node, dict) else node):
            make_up(value, photo, classes)


def shrunk(node):
    """``node`` with spaces and subnets an eighth as wide, heads too, and nine blocks less deep."""
    if isinstance(node, (list, tuple)):
        return [shrunk(value) for value in node]
    if not isinstance(node, dict):
        return node
    less = {}
    if isinstance(node.get('arch'), str):  # the file of a subnet
        less.update(arch=shrunk(SEARCHED['t'].to_dict()))
    if node.get('type') == 'tas_lora.ElasticViT':
        less.update(head_dim=8)
    if 'embed_dim' in node:
        less.update(embed_dim=narrower(node['embed_dim']))
    if set(node) == SPACE:
        less.update(depth=[depth - BLOCKS_LESS for depth in node['depth']])
    for field in ('num_heads', 'mlp_ratio') if set(node) == SPACE - {'depth'} else ('importance',):
        if field in node:
            less[field] = node[field][:-BLOCKS_LESS]
    return {key: shrunk(value) for key, value in node.items()} | less


def narrower(width):
    """An eighth of a width, or of each in a list."""
    return [narrower(w) for w in width] if isinstance(width, list) else width // 8


def made_up(name: str, photo: str, work_dir):
    """The config as it is, but for size and data."""
    cfg = load_config(CONFIGS[name])
    classes = cfg.get('data_preprocessor', {}).get('num_classes', 10)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        make_up(cfg.get(loader), photo, classes)
    cfg.work_dir, cfg.experiment_name, cfg.load_from = str(work_dir), work_dir.name, None
    return cfg


def original_of(cfg, file) -> str:
    """A file of weights to start from, which the teacher has where all weights are trained."""
    torch.save(dict(state_dict=load_supernet(cfg).state_dict()), file)
    return str(file)


def two_steps(runner) -> None:
    """Train; the trainable part must move, and nothing else."""
    loop, model = runner.train_loop, runner.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loader, step = loop.dataloader, 2 * runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    items = iter(loader.sampler)
    for i in range(step):
        batch = loader.collate_fn([loader.dataset[k] for k in islice(items, 2)])
        loop.run_iter(i, batch)
    assert runner.iter == step
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    moved = {n for n, v in model.named_parameters() if not torch.equal(v, before[n])}
    trainable = {n for n, v in model.named_parameters() if v.requires_grad}
    assert moved
    assert moved <= trainable
    is_frozen = model.router is not None and runner.cfg.model.get('freeze_supernet', True)
    assert ('head.fc.weight' in moved) != is_frozen


def search_two(cfg) -> None:
    cfg.val_cfg.update(constraints={}, log_interval=1)
    cfg.val_cfg.evolution = dict(population=2, generations=1, parents=1, mutations=0, crossovers=0)
    metrics = Runner.from_cfg(cfg).val()
    assert np.isfinite(metrics['cross_entropy'])


DIGITS = [name for name in CONFIGS if name.startswith('digits')]
TIERS = [pytest.param(n, marks=() if n in DIGITS else pytest.mark.full) for n in CONFIGS]


@pytest.mark.parametrize('name', TIERS)
def test_two_steps(name, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = made_up(name, photo, tmp_path)
    if name not in FULL_SIZE and not name.startswith(('digits', 'fashion', 'folder')):
        cfg = Config(shrunk(cfg.to_dict()))
    if name.endswith('search'):
        search_two(cfg)
    else:
        if cfg.train_cfg.get('strategy', {}).get('type') == 'tas_lora.ParentDistillation':
            cfg.load_from = original_of(cfg, tmp_path / 'original.pth')
        two_steps(runner_of(cfg))
    gc.collect()
