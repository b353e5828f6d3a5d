"""Checkpoints of the digits, and the analysis tools run on them."""

import json
from pathlib import Path

import torch
from conftest import ROOT, call_tool
from tiny import randomize

from tas_lora import apis

SMALL = dict(embed_dim=24, num_heads=[2, 2], mlp_ratio=[2.0, 4.0])
WIDE = dict(embed_dim=40, num_heads=[3, 2, 3], mlp_ratio=[4.0, 4.0, 2.0])


def write_config(path: Path, stage: str, body: str = '') -> Path:
    """A config of the digits with more lines."""
    path.write_text(f"_base_ = '{ROOT}/configs/digits_{stage}.py'\n{body}\n")
    return path


def write_alone(path: Path, arch: dict) -> Path:
    """The config of one network that is trained alone."""
    return write_config(path, 'supernet', f'model = dict(backbone=dict(arch={arch}))')


def write_checkpoint(config: Path, seed: int = 0) -> Path:
    """Random weights next to a config, including experts that are not zero."""
    torch.manual_seed(seed)
    model = randomize(apis.load_supernet(config), std=0.2)
    path = config.with_suffix('.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def analyse(tool: str, config: Path, digits_root: Path, *arguments) -> int:
    """Run a tool on a config and the checkpoint next to it; results are in ``out`` next to both."""
    data = f'heldout_dataloader.dataset.dataset.data_root={digits_root}'
    where = ('--out', config.parent / 'out', '--cfg-options', data)
    checkpoint = config.with_suffix('.pth')
    return call_tool(f'analysis/{tool}.py', config, checkpoint, *where, *arguments)


def result(config: Path, name: str) -> dict:
    """The JSON that a tool wrote, in which NaN would not be allowed."""

    def refuse(constant):
        raise AssertionError(constant)

    text = (config.parent / 'out' / f'{name}.json').read_text()
    return json.loads(text, parse_constant=refuse)


def named(name: str, config: Path) -> str:
    """A config and the checkpoint next to it, as --beside and --nets accept them."""
    return f'{name}={config}:{config.with_suffix(".pth")}'
