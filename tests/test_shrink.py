"""tools/shrink.py from a tiny timm network to a smaller one: results, kills, refusals."""

import dataclasses
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import toy_vit
from conftest import ROOT, call_tool
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.datasets import CustomDataset
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tiny import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tas_lora import SearchSpace, Subnet, UserError
from tas_lora.costs.deployed import Deployed
from tas_lora.engine import slow_options
from tas_lora.export import formats
from tas_lora.models.plain_vit import load_plain_vit
from tas_lora.search import count_flops
from tas_lora.shrink import Request, shrink, stages
from tas_lora.shrink.configs import config, schedules
from tas_lora.shrink.images import ImageFolder
from tas_lora.shrink.ledger import Ledger
from tas_lora.shrink.progress import Meter
from tas_lora.shrink.request import WAYS, read_limits
from tas_lora.shrink.stages import scoring
from tas_lora.shrink.work import Work
from tas_lora.work_lock import held

SMALL = dict(
    limits=dict(macs=0.6),
    way='experts',
    epochs=2,
    finetune_epochs=3,
    batch_size=12,
    multiple=8,
    population=6,
    generations=2,
    sizes=2,
    workers=0,
    formats=['safetensors'],
)
ORIGINAL = Subnet(32, (4, 4), (4.0, 4.0))
STAGES = ['original', 'order', 'train', 'search', 'polish', 'export', 'scratch', 'compare']


@pytest.fixture(scope='module')
def toys(tmp_path_factory) -> Path:
    """Weights and pictures."""
    root = tmp_path_factory.mktemp('toys')
    toy_vit.write_weights(root / 'vit.pth')
    toy_vit.draw(root / 'pictures', train=24, test=8)
    return root


def request_of(toys: Path, out: Path, **changes) -> Request:
    own = dict(source=f'timm:{toy_vit.NAME}', checkpoint=str(toys / 'vit.pth'), out=str(out))
    return Request(**(own | dict(data=str(toys / 'pictures')) | SMALL | changes))


def run(*arguments, console: Console | None = None, **changes) -> Path:
    return shrink(request_of(*arguments, **changes), console or Console(file=StringIO())).parent


def options_of(toys: Path, out: Path, **changes) -> list[str]:
    """The command line of the same request."""
    named = dict(data=toys / 'pictures', checkpoint=toys / 'vit.pth', out=out) | SMALL
    del named['limits']
    named |= dict(limit='macs=0.6', formats='safetensors') | changes
    pairs = [(f'--{name.replace("_", "-")}', str(value)) for name, value in named.items()]
    return [f'timm:{toy_vit.NAME}', *(text for pair in pairs for text in pair)]


@pytest.fixture(scope='module')
def whole(toys, tmp_path_factory) -> Path:
    """A shrink in one go, on a terminal."""
    console = Console(file=StringIO(), force_terminal=True, width=100)
    folder = run(toys, tmp_path_factory.mktemp('whole'), console=console)
    shown = console.file.getvalue()
    assert re.search(r'3/8 train .* 0:\d\d:\d\d left', shown)
    assert all(f'{i}/8 {stage}: ' in shown for i, stage in enumerate(STAGES, 1))
    return folder


def result(folder: Path) -> dict:
    return json.loads((folder / 'compare.json').read_text())


def pictures(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes (N, 3, 8, 8) and labels of the test, read by Pillow."""
    files = [(file, i) for i, c in enumerate(toy_vit.CLASSES) for file in (root / c).iterdir()]
    images = torch.tensor(np.stack([np.asarray(Image.open(file)) for file, _ in files]))
    return images.permute(0, 3, 1, 2).float(), torch.tensor([label for _, label in files])


@torch.no_grad()
def top1(net, images, labels, mean, std) -> float:
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return float((net((images - mean) / std).argmax(1) == labels).float().mean() * 100)


def best_of(found: dict) -> dict:
    return next(size for size in found['sizes'] if size['name'] == 'found')


def test_the_export_is_what_was_asked_for(toys, whole):
    """Its top-1 and its MACs, measured from outside."""
    found = result(whole)
    net, description = load_plain_vit(whole / 'export')
    data, preprocess = pictures(toys / 'pictures/test'), description['preprocess']
    measured = top1(net, *data, preprocess['mean'], preprocess['std'])
    assert measured == pytest.approx(found['alone']['polish'], abs=0.01)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 8, 8))
    assert counter.get_total_flops() / 2 == best_of(found)['macs']
    assert best_of(found)['macs'] <= 0.6 * found['original']['macs']
    assert description['classes'] == list(toy_vit.CLASSES)


def test_all_sizes_are_compared(whole):
    found = result(whole)
    assert {size['name'] for size in found['sizes']} == {
        *('found', 'smallest', 'largest', 'random_1', 'random_2')
    }
    macs = [size['macs'] for size in found['sizes']]
    assert macs == sorted(macs)
    assert macs[-1] == found['original']['macs']
    largest = found['sizes'][-1]['top1']  # experts, with the original as it is
    assert set(largest.values()) == {found['original']['top1']}
    page = (whole / 'index.html').read_text()
    assert '<svg' in page
    assert f'{found["alone"]["scratch"]:.2f}' in page
    assert f'{found["alone"]["polish"]:.2f} %' in page


def test_the_configs_run_by_hand(whole, tmp_path):
    """By the commands that they name, to the same results, and without harm to the shrink."""
    before, out = contents(whole), tmp_path / 'metrics.json'

    def run_by_hand(name: str, *more):
        command = re.search('^python tools/(.*)$', (whole / name).read_text(), re.M)[1]
        assert call_tool(*command.split(), *more) == 0

    try:
        for name in ('order.py', 'polish.py', 'search.py'):
            run_by_hand(name)
        run_by_hand('compare.py', '--out', out)
        for path in ('ordered/ordered.pth', 'polish/epoch_2.pth'):
            one, other = (weights_in(whole / at) for at in (path, path.replace('/', '_by_hand/')))
            assert all(torch.equal(value, other[name]) for name, value in one.items())
        one, other = (
            json.loads((whole / folder / 'best_subnet.json').read_text())
            for folder in ('search', 'search_by_hand')
        )
        assert one['subnet'] == other['subnet']
        assert before.items() <= contents(whole).items()
    finally:
        for folder in whole.glob('*_by_hand'):
            shutil.rmtree(folder)
    expected = best_of(result(whole))['top1']['trained']
    assert json.loads(out.read_text())['found/accuracy/top1'] == pytest.approx(expected)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def weights_in(path: Path) -> dict:
    return torch.load(path, weights_only=False)['state_dict']


def assert_polished(folder: Path, way: str) -> None:
    """The found subnet was trained alone, from the weights of all sizes, by the right teacher."""
    train, polish = (Config.fromfile(folder / f'{name}.py') for name in ('train', 'polish'))
    strategy = polish.train_cfg.strategy
    found = json.loads((folder / 'search/best_subnet.json').read_text())['subnet']
    assert Subnet.from_dict(strategy.pop('subnets')) == Subnet.from_dict(found)
    teacher = str(folder / 'ordered/ordered.pth') if way in ('all', 'both') else None
    assert strategy.pop('checkpoint', None) == teacher
    assert strategy == train.train_cfg.strategy
    assert polish.load_from == str(folder / 'train/epoch_2.pth')
    for name in ('optim_wrapper', 'custom_hooks', 'param_scheduler'):  # of as many epochs here
        assert polish.get(name) == train.get(name)
    before, after = (weights_in(folder / f'{name}/epoch_2.pth') for name in ('train', 'polish'))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    adapters = {name for name in changed if '.lora_' in name or 'router' in name}
    assert bool(adapters) == (way != 'all')
    assert bool(changed - adapters) == (way in ('all', 'both'))


def test_the_found_subnet_is_trained_alone(whole):
    assert_polished(whole, 'experts')


def test_the_better_one_is_exported(whole):
    """Of the weights before and after polishing, on held-out images; the card has its metrics."""
    record = json.loads((whole / 'shrink.json').read_text())['stages']['polish']['result']
    before = json.loads((whole / 'search/best_subnet.json').read_text())['accuracy/top1']
    assert bool(record['unpolished']) == ('polish' not in record['weights'])
    card = (whole / 'export/MODEL_CARD.md').read_text()
    if record['unpolished']:
        assert f'- accuracy/top1: {before:g}, on the images of the search' in card
    else:
        assert record['top1'] >= before
        assert f'- accuracy/top1: {record["top1"]:g}, on the images of the search' in card
        assert 'cross_entropy: ' not in card


# In each stage: at the start, amid the work, and before what was done is recorded. Renames of a
# whole run: 16, 9, 12, 17, 8, 11, 8 and 6.
KILLS = dict(
    early=['original renames 4', 'order renames 1', 'train renames 3', 'search renames 1']
    + ['polish renames 2', 'export renames 1', 'scratch renames 2', 'compare renames 2'],
    amid=['original images 200', 'order renames 5', 'train images 300', 'search images 50']
    + ['polish images 200', 'export renames 7', 'scratch images 200', 'compare images 300'],
    late=['original renames 15', 'order renames 8', 'train renames 11', 'search renames 16']
    + ['polish renames 7', 'export renames 10', 'scratch renames 7', 'compare renames 6'],
)


@pytest.mark.full
@pytest.mark.parametrize('when', KILLS)
def test_killed_by_the_system(toys, whole, tmp_path, when):
    """SIGKILL in every stage, one after the other: nothing is cleaned up, locks included."""
    for kill in KILLS[when]:
        assert exit_code(toys, tmp_path, kill) == -signal.SIGKILL, kill
        record = json.loads((tmp_path / 'shrink.json').read_text())
        assert list(record['stages'])[-1] == kill.split()[0]
    assert exit_code(toys, tmp_path) == 0
    assert 'the last of 2 starts' in (tmp_path / 'index.html').read_text()
    assert_same(tmp_path, whole)


def exit_code(toys: Path, out: Path, kill: str | None = None) -> int:
    """That of a process of its own, forked from one that has imported what it needs."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['toy_vit', 'timm', 'tas_lora.shrink'])
    request = dataclasses.asdict(request_of(toys, out))
    process = context.Process(target=toy_vit.shrink_until, args=(request, kill))
    process.start()
    process.join(600)
    return process.exitcode


@pytest.mark.slow
def test_killed_with_a_worker(toys, whole, tmp_path):
    """The tool itself, in a training whose images another process reads."""
    command = [sys.executable, 'tests/toy_vit.py', 'tools/shrink.py']
    command += options_of(toys, tmp_path, workers=1)
    killed = os.environ | dict(PYTHONPATH=str(ROOT), KILL_AT='train images 300')
    done = subprocess.run(command, cwd=ROOT, env=killed, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    del killed['KILL_AT']
    done = subprocess.run(command, cwd=ROOT, env=killed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, whole)


def assert_same(folder: Path, whole: Path) -> None:
    """The same network, bit for bit, and the same numbers."""
    for name in ('original', 'sizes', 'alone'):
        assert result(folder)[name] == result(whole)[name], name
    one, other = (load_file(each / 'export/weights.safetensors') for each in (folder, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.full
def test_a_head_for_these_classes_stays(toys, tmp_path):
    """The original is then timm's network, untrained by us."""
    weights = toy_vit.write_weights(tmp_path / 'vit.pth', toys / 'pictures/train')
    console = Console(file=StringIO(), width=500)
    changes = dict(checkpoint=str(weights), sizes=1, way='all', scratch=False, amp=True)
    folder = run(toys, tmp_path / 'out', console=console, **changes)
    assert 'it has a head of 3, and ' in console.file.getvalue()
    vit = timm.create_model(toy_vit.NAME, num_classes=3)
    vit.load_state_dict(torch.load(weights))
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    expected = top1(vit.eval(), *pictures(toys / 'pictures/test'), mean, std)
    assert result(folder)['original']['top1'] == pytest.approx(expected, abs=0.01)
    assert not (folder / 'original/epoch_3.pth').exists()
    assert Config.fromfile(folder / 'train.py').optim_wrapper.amp == 'bfloat16'


@pytest.mark.slow
def test_a_folder_of_transformers(toys, tmp_path):
    """Its images are normalised as its settings say."""
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    labels = dict(enumerate(toy_vit.CLASSES))
    own = transformers.ViTConfig(image_size=8, patch_size=4, id2label=labels, **sizes)
    torch.manual_seed(0)
    vit = transformers.ViTForImageClassification(own).eval()
    for value in vit.parameters():
        torch.nn.init.normal_(value, std=0.2)
    vit.save_pretrained(tmp_path / 'vit')
    settings = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], do_normalize=True)
    (tmp_path / 'vit/preprocessor_config.json').write_text(json.dumps(settings))
    source = f'hf:{tmp_path / "vit"}'
    folder = run(toys, tmp_path / 'out', source=source, checkpoint=None, sizes=1)
    mean, std = ([255 * v for v in settings[name]] for name in ('image_mean', 'image_std'))
    images, labels = pictures(toys / 'pictures/test')
    expected = top1(lambda x: vit(x).logits, images, labels, mean, std)
    assert result(folder)['original']['top1'] == pytest.approx(expected, abs=0.01)


@pytest.mark.full
def test_a_signal_stops_it(toys, whole, tmp_path):
    """With a line that says how to continue."""
    command = [sys.executable, 'tests/toy_vit.py', 'tools/shrink.py']
    command += options_of(toys, tmp_path, epochs=1000)
    own = dict(cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **own)
    log = tmp_path / 'shrink.log'
    while 'Epoch(train)' not in (log.read_text() if log.exists() else ''):
        time.sleep(0.2)
    process.terminate()
    assert 'start the same command again' in process.communicate(timeout=100)[0]
    assert process.returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize('way', ['all', 'one_lora', 'both'])
def test_other_ways(toys, tmp_path, way):
    assert_polished(run(toys, tmp_path, way=way, amp=way == 'both', scratch=False), way)


@pytest.mark.slow
def test_scratch_may_follow_and_latency_is_measured(toys, tmp_path):
    limits = dict(macs=0.9, latency=1000.0)
    found = result(run(toys, tmp_path, limits=limits, scratch=False))
    assert 'scratch' not in found['alone']
    assert 0 < best_of(found)['latency'] < 1000
    search = Config.fromfile(tmp_path / 'search.py').val_cfg
    assert set(search.constraints) == {'flops', 'latency'}
    again = result(run(toys, tmp_path, limits=limits))
    out, weights = tmp_path / 'metrics.json', tmp_path / 'scratch/epoch_4.pth'
    at = '--work-dir', tmp_path / 'scratch_by_hand', '--out', out
    assert call_tool('test.py', tmp_path / 'scratch.py', weights, *at) == 0
    tested = json.loads(out.read_text())['accuracy/top1']
    assert again['alone']['scratch'] == pytest.approx(tested)
    assert best_of(again)['top1'] == best_of(found)['top1']
    assert 'from scratch' in (tmp_path / 'index.html').read_text()


def test_validation_images_of_ones_own(toys, tmp_path):
    root = toy_vit.draw(tmp_path / 'pictures', train=24, val=9, test=8)
    images = ImageFolder.read(root, 12)
    assert (images.trained, images.held_out, images.tested) == (72, 27, 24)
    images = ImageFolder.read(toys / 'pictures', 12)
    assert (images.trained, images.held_out, images.tested) == (58, 14, 24)
    folder = run(toys, tmp_path / 'out', data=str(root), scratch=False)
    assert json.loads((folder / 'search/best_subnet.json').read_text())['images'] == 27
    assert result(folder)['data']['images'] == 24


@pytest.mark.parametrize('way', WAYS)
def test_schedules_are_the_packaged_ones(way, tmp_path):
    """At as many epochs as these have."""
    (tmp_path / '_base_').mkdir()
    for source in schedules(way):
        shutil.copy(source, tmp_path / '_base_')
    (tmp_path / 'ordered').mkdir()
    space = dict(embed_dim=[384], depth=[12], num_heads=[6], mlp_ratio=[2.0, 4.0])
    (tmp_path / 'ordered/ordered.py').write_text(f'space = {space}\nmodel = dict()\n')
    values = dict(path='', title='', work_dir='', way=way, epochs=30, seed=0)
    text = config('train', amp=False, **values)
    (tmp_path / 'train.py').write_text(text)
    ours, packaged = Config.fromfile(tmp_path / 'train.py'), Config.fromfile(schedules(way)[-1])
    (tmp_path / 'train.py').write_text(config('train', amp=True, **values))
    fast = Config.fromfile(tmp_path / 'train.py').optim_wrapper
    assert fast == packaged.optim_wrapper | dict(amp='bfloat16')
    for name in ('optim_wrapper', 'param_scheduler', 'custom_hooks'):
        assert ours.get(name) == packaged.get(name), name
    assert ours.train_cfg.strategy == packaged.train_cfg.strategy
    own = Config.fromfile(ROOT / f'configs/pretrained/distilled_{way}.py').model
    theirs, made = own.get('router', {}), ours.model.get('router', {})
    assert (theirs.get('type'), theirs.get('shared')) == (made.get('type'), made.get('shared'))
    assert own.get('freeze_supernet', True) == ours.model.get('freeze_supernet', True)


def test_the_rate_of_a_new_head(whole):
    """Fifty times that of the body, as in the project's own fine-tuning in plain PyTorch."""
    model = tiny_model(False, Subnet(24, (2, 2, 2), (2.0, 2.0, 2.0)))
    wrapper = build_optim_wrapper(model, Config.fromfile(whole / 'original.py').optim_wrapper)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        rate = 2e-3 if name.startswith('head.') else 4e-5
        assert groups[id(parameter)]['lr'] == pytest.approx(rate), name
    assert groups[id(model.backbone.norm.weight)]['weight_decay'] == 0
    assert groups[id(model.backbone.blocks[0].fc1.weight)]['weight_decay'] == 0.05


# What is refused, by the tool: one line and exit code 2


def fails(capsys, *arguments: str) -> str:
    toy_vit.register()
    capsys.readouterr()
    assert call_tool('shrink.py', *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith('error: ')]) == 1
    return lines[-1]


def test_odd_folders(toys, tmp_path, capsys):
    def refused(**changes) -> str:
        return fails(capsys, *options_of(toys, tmp_path / 'out', data=root, **changes))

    root = tmp_path / 'nothing'
    assert 'has no folder train' in refused()
    root = toy_vit.draw(tmp_path / 'pictures', train=24, test=8)
    assert 'has 58 images to train on (of 72' in refused(batch_size=30)
    assert 'two batches have 60; give --batch-size 29 or fewer' in refused(batch_size=30)
    (root / 'test/red').rename(root / 'test/rot')
    assert "test has 'rot' and lacks 'red', unlike train" in refused()
    for name in ('blue', 'green'):
        shutil.rmtree(root / 'train' / name)
    assert "train has 1 class ('red'); a classifier needs two or more" in refused()
    root = toy_vit.draw(tmp_path / 'few', train=1, test=1)
    assert 'have 24; add images' in refused()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(limit='macs=0.01'), 'limits from'),
        (dict(limit='macs=1e12'), 'limits from'),
        (dict(limit='params=5'), 'to 1 of the original); change it'),
        (dict(limit='latency=1e-6'), 'ms can be met; change it'),
        (dict(limit='weight=0.5'), '--limit: weight is unknown; choose from macs, params'),
        (dict(limit='macs'), "such as macs=0.5 or latency=20, got 'macs'"),
        (dict(limit='macs=-1'), 'must be a positive number, got -1.0'),
        (dict(epochs=1), 'epochs must be 2 or more, as the first one warms up'),
        (dict(finetune_epochs=1), 'finetune_epochs must be 2 or more'),
        (dict(checkpoint='none.pth'), 'none.pth is not a file'),
        (dict(formats='tensorrt'), '--formats must be all or some of'),
        (dict(img_size=10), 'img_size is 10; a supernet has a multiple of the patch, 4, such as 8'),
    ],
)
def test_odd_requests(toys, tmp_path, capsys, changes, message):
    assert message in fails(capsys, *options_of(toys, tmp_path / 'out', **changes))
    assert not (tmp_path / 'out/original').exists()


def test_a_folder_of_another_shrink(toys, whole, capsys, tmp_path):
    """Nothing of it changes."""
    before = {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()}
    assert 'with epochs=2, and now it is 3' in fails(capsys, *options_of(toys, whole, epochs=3))
    other = toy_vit.draw(tmp_path / 'pictures', train=25, test=8)
    assert 'with data=' in fails(capsys, *options_of(toys, whole, data=other))
    weights = toy_vit.write_weights(tmp_path / 'vit.pth', num_classes=5)
    assert 'with checkpoint=' in fails(capsys, *options_of(toys, whole, checkpoint=weights))
    picture = toys / 'pictures/train/red/new.png'
    shutil.copy(toys / 'pictures/train/red/0.png', picture)
    try:
        assert 'with images=' in fails(capsys, *options_of(toys, whole))
    finally:
        picture.unlink()
    assert before == {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()}


@pytest.mark.parametrize(
    'file',
    [
        *('data.py', 'train.py', '_base_/distill_all.py', 'original/supernet.pth'),
        *('ordered/space.json', 'train/epoch_2.pth', 'search/best_subnet.json'),
        *('export/weights.safetensors', 'compare.json'),
    ],
)
def test_what_a_stage_wrote_is_edited_or_gone(toys, whole, capsys, file):
    path = whole / file
    before = path.read_bytes()
    try:
        path.write_bytes(before + b'\n')
        line = fails(capsys, *options_of(toys, whole))
        assert f'{file} is not as the stage' in line
        assert 'give another --out' in line
        path.unlink()
        assert f'{file} of the stage' in fails(capsys, *options_of(toys, whole))
    finally:
        path.write_bytes(before)


def test_what_no_stage_wrote(toys, tmp_path, capsys):
    (tmp_path / 'ordered').mkdir()
    (tmp_path / 'ordered/ordered.pth').write_text('dear')
    with pytest.raises(UserError, match='ordered is there, but no stage of this shrink wrote it'):
        run(toys, tmp_path)
    assert (tmp_path / 'ordered/ordered.pth').read_text() == 'dear'
    (tmp_path / 'shrink.json').write_text('{}')
    assert 'is not as tools/shrink.py wrote it' in fails(capsys, *options_of(toys, tmp_path))
    assert 'is a file' in fails(capsys, *options_of(toys, tmp_path / 'shrink.json'))


def test_a_refused_limit_may_be_corrected(toys, tmp_path, capsys):
    """Nothing was written that depends on it."""
    for limit in ('macs=0.01', 'macs=0.02'):
        assert 'limits from' in fails(capsys, *options_of(toys, tmp_path, limit=limit))


def test_the_record_is_edited(toys, whole, capsys):
    """A limit in it would decide what is exported."""
    path = whole / 'shrink.json'
    before = path.read_text()
    try:
        path.write_text(before.replace('"macs": 0.6', '"macs": 0.7'))
        assert 'is not as tools/shrink.py wrote it' in fails(capsys, *options_of(toys, whole))
    finally:
        path.write_text(before)


def test_an_unreadable_test_image(toys, tmp_path, capsys):
    """It is found before any training."""
    root = shutil.copytree(toys / 'pictures', tmp_path / 'pictures')
    image = root / 'test/red/0.png'
    image.write_bytes(image.read_bytes()[:60])
    assert f'{image}: ' in fails(capsys, *options_of(toys, tmp_path / 'out', data=root))
    assert not list((tmp_path / 'out').glob('original/epoch*'))


@pytest.mark.parametrize('place', ['', 'train/out', 'test/red/out'])
def test_output_among_the_images(toys, capsys, place):
    out = toys / 'pictures' / place
    assert 'is among the images' in fails(capsys, *options_of(toys, out))
    assert not (out / 'shrink.json').exists()


def test_two_starts_at_once(toys, whole, capsys):
    """The second is refused by name."""
    with held(whole):
        line = fails(capsys, *options_of(toys, whole))
    assert f'{whole} is in use by process {os.getpid()} ' in line


def test_a_precision_that_is_slow_here(toys, tmp_path, monkeypatch):
    """It is refused before anything is written that would bind the folder to it."""
    monkeypatch.setattr(slow_options, 'slowdown', lambda dtype: (10.0, 1e5))
    for _ in range(2):
        with pytest.raises(UserError, match='--amp is .bfloat16.*leave it out, to train in float'):
            run(toys, tmp_path, amp=True)
    assert not (tmp_path / 'original').exists()


def test_other_workers_are_used(toys, whole):
    """Although the configs stay as they are."""
    request = request_of(toys, whole, workers=3)
    work = Work(request, None, None, None)
    assert work.load('train.py').train_dataloader.num_workers == 3


def test_classes_that_the_score_would_not_see(tmp_path):
    """Of 20 classes with 2 images each, next to one with 400, few are in a batch."""
    counts = dict(many=400) | {f'class_{i}': 2 for i in range(20)}
    files = {name: [(str(i), 1) for i in range(count)] for name, count in counts.items()}
    images = ImageFolder(tmp_path, dict(train=files, test=files))
    assert images.unseen(40) == pytest.approx(20 * (1 - 2 / 440) ** 40)
    options = dict(source='timm:x', data='', limits=dict(macs=0.5), out='', batch_size=40)
    assert scoring(Request(**options, batches=1), images) == (1, 'tas_lora.OutputScore')
    even = ImageFolder(tmp_path, dict(train=dict.fromkeys(files, files['many']), test=files))
    assert scoring(Request(**options, batches=1), even) == (1, 'tas_lora.TaylorScore')


def test_limits_are_read():
    assert read_limits(['macs=0.5', 'latency=20']) == dict(macs=0.5, latency=20.0)
    with pytest.raises(UserError, match='given twice'):
        read_limits(['macs=0.5', 'macs=0.4'])


def test_time_left():
    """From work that is done, in this start and before."""
    meter = Meter(Console(file=StringIO()), dict(a=10.0, b=30.0), {})
    assert meter.left() is None
    meter = Meter(Console(file=StringIO()), dict(a=10.0, b=30.0), dict(a=5.0))
    assert meter.left() == pytest.approx(15, abs=0.1)
    with meter.stage('b', 2):
        meter.advance('b', 1000.0)  # no more than planned
        assert meter.left() == 0
    meter = Meter(Console(file=StringIO()), dict(a=10.0, b=30.0), dict(a=5.0))
    meter.skip('b', 20.0)  # done by an earlier start, whose seconds are not known
    assert meter.left() == pytest.approx(5, abs=0.1)


class ReachedError(Exception):
    """The stage that a test ends at."""


def stop_at(monkeypatch, name: str) -> None:
    def stop(work):
        raise ReachedError

    at = [stage.name for stage in stages.STAGES].index(name)
    last = dataclasses.replace(stages.STAGES[at], run=stop)
    monkeypatch.setattr(stages, 'STAGES', (*stages.STAGES[:at], last, *stages.STAGES[at + 1 :]))


def test_time_that_does_not_follow_the_work(toys, tmp_path, monkeypatch):
    """The space goes down until a subnet is fast enough, before any training."""
    seen = {}

    def latency(deployed, subnet):  # half of it is the same for all
        work, full = (count_flops(s, **deployed.image_spec) for s in (subnet, ORIGINAL))
        seen[subnet] = 5 + 5 * work / full
        return dict(latency=seen[subnet])

    monkeypatch.setattr(Deployed, 'latency', latency)
    stop_at(monkeypatch, 'train')
    with pytest.raises(ReachedError):
        run(toys, tmp_path, limits=dict(latency=6.4))
    space = json.loads((tmp_path / 'ordered/space.json').read_text())
    assert seen[SearchSpace.coerce(space['space']).smallest()] <= 6.4
    assert float(re.search(r'macs=(\S+)', (tmp_path / 'order.py').read_text())[1]) < 0.64


@pytest.mark.full
def test_time_that_cannot_be_met_any_more(toys, tmp_path, monkeypatch):
    """As on a machine that has become busy."""
    monkeypatch.setattr(stages, '_latency', lambda work, subnet: 2000.0)
    stop_at(monkeypatch, 'train')
    with pytest.raises(UserError, match='latency=1000: the smallest subnet takes 2,?000'):
        run(toys, tmp_path, limits=dict(latency=1000.0, macs=0.14))


@pytest.mark.full
def test_the_original_may_win(toys, tmp_path, monkeypatch):
    """With experts nothing of it is left to be trained alone."""

    def full_size(cfg, *_, **__):
        path = Path(cfg.work_dir, 'best_subnet.json')
        record = json.loads(path.read_text()) | dict(subnet=ORIGINAL.to_dict())
        path.write_text(json.dumps(record))

    search = stages.apis.search
    monkeypatch.setattr(
        stages.apis, 'search', lambda *own, **more: (search(*own, **more), full_size(*own))
    )
    folder = run(toys, tmp_path, limits=dict(macs=1.0), scratch=False)
    found = result(folder)
    assert found['alone']['polish'] == found['original']['top1']
    assert not list(folder.glob('polish/epoch*'))
    assert 'the original, which stays as it is' in (folder / 'index.html').read_text()


@pytest.mark.full
def test_what_did_not_work_is_named(toys, tmp_path, monkeypatch):
    """Polishing that made it worse, and formats that failed; one that was named is refused."""
    tested = Work.tested

    def worse(work, *own, held_out=False, **more):
        found = tested(work, *own, held_out=held_out, **more)
        return dict.fromkeys(found, 0.0) if held_out else found

    def fail(source, folder):
        raise RuntimeError('no such operator')

    broken = tuple(
        dataclasses.replace(each, write=fail) if each.name == 'torch_export' else each
        for each in formats.FORMATS
        if each.name in ('safetensors', 'torch_export')
    )
    monkeypatch.setattr(formats, 'FORMATS', broken)
    monkeypatch.setattr(Work, 'tested', worse)
    console, own = Console(file=StringIO(), width=500), dict(scratch=False)
    folder = run(toys, tmp_path, console=console, formats=['all'], **own)
    assert 'so it is exported as it was' in console.file.getvalue()
    assert 'safetensors; torch_export FAILED' in console.file.getvalue()
    found, page = result(folder), (folder / 'index.html').read_text()
    assert found['alone']['polish'] == best_of(found)['top1']['trained']
    assert 'did not help on held-out images' in page
    assert 'RuntimeError: no such operator' in page
    with pytest.raises(UserError, match='torch_export FAILED.*start again with other --formats'):
        run(toys, tmp_path, formats=['torch_export'], **own)
    run(toys, tmp_path, formats=['safetensors'], **own)
    assert 'no such operator' not in (folder / 'index.html').read_text()


def test_a_head_at_chance(toys, tmp_path, capsys, monkeypatch):
    """It is another's: a new one is made if that is asked for."""
    weights = toy_vit.write_weights(tmp_path / 'vit.pth', num_classes=3)
    line = fails(capsys, *options_of(toys, tmp_path / 'out', checkpoint=weights))
    assert 'is for 3 classes, as many as there are, but it is at chance' in line
    stop_at(monkeypatch, 'order')
    with pytest.raises(ReachedError):
        run(toys, tmp_path / 'new', checkpoint=str(weights), new_head=True)
    assert (tmp_path / 'new/original/epoch_3.pth').exists()


def test_images_behind_links(toys, tmp_path):
    """They are listed as the data set finds them, and no output goes among them."""
    real = shutil.copytree(toys / 'pictures', tmp_path / 'real')
    root = tmp_path / 'pictures'
    for split in ('train', 'test'):
        (root / split).mkdir(parents=True)
        for name in toy_vit.CLASSES:
            (root / split / name).mkdir()
            (root / split / name / 'more').symlink_to(real / split / name)
    images = ImageFolder.read(root, 12)
    dataset = CustomDataset(data_root=str(root), data_prefix='train')
    assert images.trained + images.held_out == len(dataset) == 72
    shutil.rmtree(root / 'train/red')
    (root / 'train/red').symlink_to(real / 'train/red')
    with pytest.raises(UserError, match='is among the images'):
        ImageFolder.read(root, 12).check_out(real / 'train/red/out')


def test_a_folder_that_cannot_be_read(toys, monkeypatch, capsys, tmp_path):
    scandir, closed = os.scandir, toys / 'pictures/train/red'

    def refuse(path='.'):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert f'{closed}: Permission denied' in fails(capsys, *options_of(toys, tmp_path / 'out'))


def test_scratch_may_be_given_up(toys, tmp_path):
    """Although it has begun."""
    images = ImageFolder.read(toys / 'pictures', 12)
    request = request_of(toys, tmp_path, scratch=False)
    ledger = Ledger(tmp_path, request.identity() | dict(images=images.digest()))
    ledger.begin('scratch')
    assert 'scratch' not in [stage.name for stage in stages._stages(request, ledger)]
