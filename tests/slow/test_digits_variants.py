"""Each variant end to end on the digits, by the commands a user types: `make variants`.

A variant is a config of a line or two on top of the demo's. Those of stage 2 start from the
demo's supernet, those of stage 1 from nothing and for fewer epochs. Each is then searched. One
line is printed for each: seconds, and the found subnet's parameters and loss on held-out images.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPERNET = ROOT / 'work_dirs' / 'digits_supernet' / 'epoch_30.pth'
ALL = "['num_heads', 'mlp_ratio', 'embed_dim', 'depth']"
GROUPING = "model = dict(router=dict(grouping=dict(type='tas_lora.{}')))"
EXPERTS = {
    'lstm': '',
    'gru': "model = dict(router=dict(type='tas_lora.GRURouterHead'))",
    'mlp': "model = dict(router=dict(type='tas_lora.MLPRouterHead'))",
    'random_init': "model = dict(router=dict(init='random'))",
    'beta_1': 'model = dict(router=dict(beta=1.0))',
    'beta_10': 'model = dict(router=dict(beta=10.0))',
    'no_warmup': "custom_hooks = [dict(type='tas_lora.MoLEHook')]",
    'heads': """model = dict(
    backbone=dict(mole=dict(num_experts=2)), router=dict(attributes=['num_heads'])
)""",
    'heads_embed': """model = dict(
    backbone=dict(mole=dict(num_experts=6)), router=dict(attributes=['num_heads', 'embed_dim'])
)""",
    'all_attributes': f"""model = dict(
    backbone=dict(mole=dict(num_experts=36)), router=dict(attributes={ALL})
)""",
    'group_random': GROUPING.format('RandomGroups'),
    'group_params': GROUPING.format('ParamCountGroups'),
    'clusters': """model = dict(
    backbone=dict(mole=dict(num_experts=8)),
    router=dict(
        grouping=dict(type='tas_lora.ArchitectureGroups', clusters=dict(embed_dim=[[24, 32], [40]]))
    ),
)""",
    'rank_1': 'model = dict(backbone=dict(mole=dict(rank=1)))',
    'rank_16': 'model = dict(backbone=dict(mole=dict(rank=16)))',
    'some_layers': "model = dict(backbone=dict(mole=dict(layers=['qkv', 'fc1'])))",
    'per_layer': """model = dict(
    backbone=dict(mole=dict(layer_experts=6, importance=[[b] * 4 for b in range(1, 5)]))
)""",
    'single_lora': """model = dict(
    backbone=dict(mole=dict(num_experts=1)),
    router=dict(_delete_=True, type='tas_lora.SingleExpertHead', space={{_base_.space}}),
)
optim_wrapper = dict(
    _delete_=True,
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
)
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', convert_to_iter_based=True)""",
}
SHORTER = """train_dataloader = dict(dataset=dict(times=3))
train_cfg = dict(max_epochs=12, val_interval=6)
param_scheduler = dict(
    _delete_=True, type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True
)
"""
STAGE_ONE = {
    'supernet': SHORTER,
    'zero_filled': SHORTER + 'optim_wrapper = dict(set_to_none=False)',
    'full_finetune': SHORTER + f'load_from = {str(SUPERNET)!r}',
    'dynas': SHORTER
    + """custom_hooks = [
    dict(type='tas_lora.ComplexityAwareLRHook', begin=2),
    dict(type='tas_lora.MomentumSeparationHook', group_by='depth'),
]""",
    # Distillation from nothing, or at the rate of labels, goes astray on the digits.
    'sandwich': SHORTER
    + 'optim_wrapper = dict(optimizer=dict(lr=4e-4))\n'
    + f'load_from = {str(SUPERNET)!r}\n'
    + "train_cfg = dict(max_epochs=5, strategy=dict(type='tas_lora.SandwichRule'))",
    'sandwich_labels': SHORTER
    + "train_cfg = dict(max_epochs=5, strategy=dict(type='tas_lora.SandwichRule', distill=False))",
}
INDEPENDENT = """
model = dict(backbone=dict(arch=dict(embed_dim=32, num_heads=[3] * 3, mlp_ratio=[2.0] * 3)))
train_cfg = dict(_delete_=True, type='tas_lora.ResumableTrainLoop', max_epochs=12, val_interval=6)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
"""


def tool(name: str, *arguments) -> str:
    """Run a tool as a user does; returns what it printed."""
    command = [sys.executable, ROOT / 'tools' / name, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def variant_of(base: str, text: str, folder: Path) -> tuple[Path, Path]:
    """Config of a variant, and the checkpoint it is trained to."""
    config, work_dir = folder / 'variant.py', folder / 'train'
    config.write_text(f'_base_ = {str(ROOT / "configs" / base)!r}\n{text}\n')
    options = []
    if 'moLE' in base:
        options = ['--cfg-options', f'load_from={SUPERNET}', 'train_dataloader.dataset.times=2']
    tool('train.py', config, '--work-dir', work_dir, *options)
    return config, Path((work_dir / 'last_checkpoint').read_text().strip())


@pytest.mark.parametrize(
    ('base', 'name'),
    [('digits_moLE.py', name) for name in EXPERTS]
    + [('digits_supernet.py', name) for name in STAGE_ONE],
)
def test_variant_is_trained_and_searched(base, name, tmp_path, capsys):
    text, start = (EXPERTS | STAGE_ONE)[name], time.time()
    config, checkpoint = variant_of(base, text, tmp_path)
    search = ('configs/digits_search.py', checkpoint, '--model', config)
    tool('search.py', *search, '--work-dir', tmp_path / 'search')
    best = json.loads((tmp_path / 'search' / 'best_subnet.json').read_text())
    seconds = time.time() - start
    with capsys.disabled():
        print(
            f'\n{name:16} {seconds:5.1f} s  params {best["params"]:6,}  '
            f'loss {best["cross_entropy"]:.4f}'
        )
    assert best['cross_entropy'] < 0.5  # chance is 2.3


def test_a_subnet_alone_is_trained_and_tested(tmp_path, capsys):
    start = time.time()
    config, checkpoint = variant_of('digits_supernet.py', SHORTER + INDEPENDENT, tmp_path)
    out = tmp_path / 'metrics.json'
    tool('test.py', config, checkpoint, '--out', out, '--work-dir', tmp_path / 'test')
    top1 = json.loads(out.read_text())['accuracy/top1']
    seconds = time.time() - start
    with capsys.disabled():
        print(f'\nindependent      {seconds:5.1f} s  top-1 {top1:.2f} on the test images')
    assert top1 > 90
