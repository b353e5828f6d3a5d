"""projects/example_plugin, run by MMPretrain's own tools on a folder of images."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call_tool, set_data_root
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import load_file

from tas_lora import SearchSpace, Subnet, count_params, load_supernet

PLUGIN = ROOT / 'projects' / 'example_plugin'
TOOLS = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
CLASSES = ('ash', 'beech', 'elm', 'oak')  # one more than the plugin's config says
EPOCHS = dict(supernet=3, experts=2, finetune=2)

# Tools of MMPretrain one after the other, in a process that has not imported ours.
CHAIN = """
import json, runpy, sys
assert not any(name.split('.')[0] == 'tas_lora' for name in sys.modules)
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')
"""
INFER = """
import json, sys
from mmpretrain import ImageClassificationInferencer
config, weights, *images = sys.argv[1:]
inferencer = ImageClassificationInferencer(config, pretrained=weights, device='cpu')
found = [(result['pred_class'], result['pred_scores'].tolist()) for result in inferencer(images)]
json.dump(found, open('inferred.json', 'w'))
"""


def run_tools(folder: Path, *commands: list[str]) -> None:
    """Run tools in the project's folder, with no more on the path than its README says."""
    environment = os.environ | dict(PYTHONPATH=str(folder), OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', CHAIN, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def train_command(stage: str, *options: str) -> list[str]:
    """MMPretrain's training, of fewer epochs than the config says; all checkpoints are kept."""
    epochs = [f'train_cfg.max_epochs={EPOCHS[stage]}', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    if stage == 'experts':
        epochs.append(f'load_from={weights_of(Path(), "supernet")}')
    return [f'{TOOLS}/train.py', f'configs/{stage}.py', *options, '--cfg-options', *epochs]


def evaluation_command(stage: str, out: str | None = None) -> list[str]:
    """MMPretrain's test; metrics go to ``out``. The search is one of the experts' weights."""
    weights = weights_of(Path(), 'experts' if stage == 'search' else stage)
    options = [] if out is None else ['--out', out, '--out-item', 'metrics']
    return [f'{TOOLS}/test.py', f'configs/{stage}.py', str(weights), *options]


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    """The plug-in's files in a folder of their own, with images of four classes."""
    folder = tmp_path_factory.mktemp('plugin') / 'mine'
    shutil.copytree(PLUGIN, folder, ignore=shutil.ignore_patterns('__pycache__'))
    data = folder / 'configs' / '_base_' / 'data.py'
    text, count = re.subn(r'^num_classes = 3', 'num_classes = 4', data.read_text(), flags=re.M)
    assert count == 1
    data.write_text(text)
    draw_images(folder / 'data')
    return folder


def draw_images(data: Path) -> None:
    """Noise, to which each class adds a colour."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for part, images in (('train', 16), ('val', 5)):
            (data / part / name).mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 128, (36, 44, 3), np.uint8)
                pixels[..., :label] += 127
                Image.fromarray(pixels).save(data / part / name / f'{i}.png')


@pytest.fixture(scope='module')
def searched(project) -> Path:
    """The project after supernet, experts and search."""
    first = str(weights_of(Path(), 'supernet', epoch=1))
    run_tools(
        project,
        train_command('supernet'),
        train_command('supernet', '--resume', first, '--work-dir', 'work_dirs/resumed'),
        train_command('experts'),
        evaluation_command('experts', 'tested.json'),
        evaluation_command('search'),
    )
    return project


@pytest.fixture(scope='module')
def finetuned(searched) -> Path:
    """The project after export, fine-tuning, its test, and inference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(searched)
        patch.syspath_prepend(str(searched))
        arguments = ('configs/experts.py', weights_of(searched, 'experts'))
        best = 'work_dirs/search/best_subnet.json'
        assert call_tool('export.py', *arguments, '--subnet', best, '--out', 'exported') == 0
    (searched / 'infer.py').write_text(INFER)
    images = map(str, val_images(searched))
    run_tools(
        searched,
        train_command('finetune'),
        evaluation_command('finetune', 'finetuned.json'),
        ['infer.py', 'configs/finetune.py', str(weights_of(Path(), 'finetune')), *images],
    )
    return searched


def weights_of(project: Path, stage: str, epoch: int | None = None) -> Path:
    return project / f'work_dirs/{stage}/epoch_{epoch or EPOCHS[stage]}.pth'


def state_of(project: Path, stage: str, epoch: int | None = None) -> dict:
    """Weights of a stage, read as torch reads by default."""
    return torch.load(weights_of(project, stage, epoch), weights_only=True)['state_dict']


def val_images(project: Path) -> list[Path]:
    return sorted((project / 'data' / 'val').glob('*/*.png'))


def config_of(project: Path, stage: str) -> Config:
    cfg = Config.fromfile(project / 'configs' / f'{stage}.py', import_custom_modules=False)
    set_data_root(cfg._cfg_dict, project / 'data')
    return cfg


def test_the_plugin_imports_nothing_of_ours():
    files = sorted(PLUGIN.rglob('*.py'))
    assert {path.parent.name for path in files} == {'_base_', 'configs', 'example_plugin'}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert 'tas_lora' not in ast.unparse(node)


@pytest.mark.full
def test_experts_are_trained_and_the_supernet_is_not(searched):
    supernet, experts = state_of(searched, 'supernet'), state_of(searched, 'experts')
    for name, value in supernet.items():
        assert torch.equal(experts[name], value), name
    added = experts.keys() - supernet.keys()
    assert all(name.startswith('router.') or 'lora_' in name for name in added)
    moved = [name for name in added if name.endswith('lora_b') and experts[name].any()]
    assert len(moved) == 4 * 3  # every layer; they start at 0


@pytest.mark.full
def test_the_head_has_a_class_for_each_folder(searched):
    assert state_of(searched, 'supernet')['head.fc.weight'].shape == (len(CLASSES), 48)
    checkpoint = torch.load(weights_of(searched, 'supernet'), weights_only=True)
    assert checkpoint['meta']['dataset_meta']['classes'] == CLASSES


@torch.no_grad()
def losses(project: Path, loader: str, stage: str, subnet: Subnet) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent of a subnet with experts, batch by batch."""
    cfg = config_of(project, stage)
    model = load_supernet(cfg, weights_of(project, 'experts'))
    model.set_subnet(subnet)
    logits, labels = [], []
    for batch in Runner.build_dataloader(cfg[loader], seed=0):
        batch = model.data_preprocessor(batch)
        logits.append(model(batch['inputs'], mode='tensor'))
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    logits, labels = torch.cat(logits), torch.tensor(labels)
    hits = (logits.argmax(1) == labels).float().mean()
    return float(F.cross_entropy(logits, labels)), float(hits) * 100


@pytest.mark.full
def test_the_search_finds_a_subnet_of_its_own_space(searched):
    best = json.loads((searched / 'work_dirs/search/best_subnet.json').read_text())
    subnet = Subnet.from_dict(best['subnet'])
    cfg = config_of(searched, 'search')
    assert subnet in SearchSpace(**cfg.space)
    assert best['params'] <= 60e3
    sizes = dict(img_size=32, patch_size=8, head_dim=16, max_relative_position=3)
    assert best['params'] == count_params(subnet, **sizes, num_classes=len(CLASSES))
    loss, accuracy = losses(searched, 'val_dataloader', 'search', subnet)
    assert best['cross_entropy'] == pytest.approx(loss, abs=1e-5)
    assert best['accuracy/top1'] == pytest.approx(accuracy, abs=1e-3)
    lines = (searched / 'work_dirs/search/search_history.jsonl').read_text().splitlines()
    assert len(lines) == 10 * 5


@pytest.mark.full
@pytest.mark.parametrize('name', ['smallest', 'largest'])
def test_mmpretrain_tests_the_subnets(searched, name):
    tested = json.loads((searched / 'tested.json').read_text())
    subnet = getattr(SearchSpace(**config_of(searched, 'experts').space), name)()
    _, accuracy = losses(searched, 'test_dataloader', 'experts', subnet)
    assert tested[f'{name}/accuracy/top1'] == pytest.approx(accuracy, abs=1e-3)


@pytest.mark.full
def test_a_run_is_resumed_by_mmpretrain(searched):
    resumed = searched / 'work_dirs' / 'resumed'
    assert not (resumed / 'epoch_1.pth').exists()
    found = torch.load(resumed / weights_of(searched, 'supernet').name, weights_only=True)
    for name, value in state_of(searched, 'supernet').items():
        assert torch.equal(value, found['state_dict'][name]), name


@pytest.mark.full
def test_the_found_subnet_is_fine_tuned_as_a_backbone(finetuned):
    tuned = state_of(finetuned, 'finetune')
    start = load_file(finetuned / 'exported/weights.safetensors')
    for name in ('patch_embed.weight', 'pos_embed', 'blocks.0.fc1.weight'):  # the frozen stage
        assert torch.equal(tuned[f'backbone.{name}'], start[name])
    change = (tuned['backbone.blocks.1.fc1.weight'] - start['blocks.1.fc1.weight']).abs()
    assert 0 < change.max() < 0.02  # trained on from the export, at a rate of 5e-4
    assert tuned['head.fc.weight'].shape == (len(CLASSES), start['head.weight'].shape[1])


@pytest.mark.full
def test_inference_agrees_with_the_test(finetuned):
    inferred = json.loads((finetuned / 'inferred.json').read_text())
    labels = [path.parent.name for path in val_images(finetuned)]
    hits = [found == label for (found, _), label in zip(inferred, labels, strict=True)]
    tested = json.loads((finetuned / 'finetuned.json').read_text())['accuracy/top1']
    assert tested == pytest.approx(100 * np.mean(hits), abs=1e-3)
    assert len(hits) == 20


def test_the_readme_names_every_config_and_tools_that_exist():
    text = (PLUGIN / 'README.md').read_text()
    configs = {f'configs/{path.name}' for path in (PLUGIN / 'configs').glob('*.py')}
    assert set(re.findall(r'configs/\w+\.py', text)) == configs
    named = {*re.findall(r'\$TOOLS/(\w+)\.py', text)}
    assert named == {'train', 'test'}
    assert all((TOOLS / f'{name}.py').is_file() for name in named)


@pytest.mark.full
def test_the_readme_s_backbone_gives_maps(finetuned, monkeypatch):
    monkeypatch.chdir(finetuned)
    code = re.search(r'```python\n(.*?)```', (PLUGIN / 'README.md').read_text(), re.S).group(1)
    Path('segment.py').write_text(code)
    cfg = Config.fromfile('segment.py')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    width = cfg.model.neck.embed_dim
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, width, 8, 8)] * 2
    start = load_file('exported/weights.safetensors')
    assert torch.equal(backbone.blocks[0].fc1.weight, start['blocks.0.fc1.weight'])
    assert not backbone.blocks[0].fc1.weight.requires_grad
