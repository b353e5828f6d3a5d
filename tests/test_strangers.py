"""Records, checkpoints, exports and images of a stranger: data that names code, paths or commands.

Pickles are in test_malicious.py.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.registry import HOOKS, MODELS
from PIL import Image
from safetensors.torch import load, save_file
from test_export import trained_like
from tiny import SPACE, tiny_model

from tas_lora import UserError, apis, export_subnet
from tas_lora.engine.hooks import SafeCheckpointHook
from tas_lora.engine.runner.resume_check import make_resumable
from tas_lora.engine.search import recorded_config
from tas_lora.engine.search.recorded import _known
from tas_lora.errors import printable
from tas_lora.models import safe_load
from tas_lora.models.plain_vit import load_plain_vit
from tas_lora.models.safe_load import read_checkpoint, read_state_dict
from tas_lora.provenance import read_json, sha256
from tas_lora.search import read_history

RECORD = ROOT / 'tests/data/v0_1/runs/search/best_subnet.json'
CALLS = dict(type='subprocess.Popen', args=['touch', 'canary'])
STEER = '\x1b]0;title\x07\x9b2J\u202eevil'  # to a terminal, and for the reader


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file in the current folder that appears if a command was run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'canary'
    yield path
    assert not path.exists(), 'a command was run'


def config() -> dict:
    """The config inside an ordinary record."""
    return json.loads(RECORD.read_text())['search']['config']


def changed(place: str, value) -> dict:
    """An ordinary record's config with ``value`` at a dotted place."""
    found = config()
    *above, last = place.split('.')
    node = found
    for key in above:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    return found


# Results given to --replay


def test_an_ordinary_record_is_taken_as_it_is():
    found = recorded_config(config(), test=True)
    for section in ('model', 'val_cfg', 'val_dataloader', 'val_evaluator', 'test_dataloader'):
        assert json.loads(json.dumps(found[section])) == config()[section]
    left_out = {'default_hooks', 'env_cfg', 'digits', 'split', 'log_level', 'train_cfg'}
    assert not left_out & set(found)
    assert 'test_dataloader' not in recorded_config(config())


DATASET = 'val_dataloader.dataset.dataset'


@pytest.mark.parametrize(
    ('place', 'value', 'said'),
    [
        ('custom_hooks', [CALLS], 'custom_hooks.0.type'),
        ('custom_hooks', [dict(type='tas_lora.MoLEHook', inner=[[CALLS]])], r'inner.0.0.type'),
        ('custom_hooks', [dict(type='EMAHook', ema_type='os.system')], 'custom_hooks.0.ema_type'),
        ('custom_hooks', [dict(type='CheckpointHook')], 'custom_hooks.0.type'),
        ('custom_hooks', [dict(type=['tas_lora.MoLEHook'])], 'custom_hooks.0.type'),
        ('custom_hooks', [dict(type='tas_lora.MoLEHook.__init__')], 'custom_hooks.0.type'),
        ('custom_hooks', [dict(type='example_plugin.X')], 'custom_hooks.0.type'),
        ('model.type', 'HuggingFaceClassifier', 'model.type'),
        ('model.backbone.init_cfg', dict(type='Pretrained', checkpoint='x'), 'init_cfg.type'),
        ('model.pretrained', 'x.pth', 'model.pretrained'),
        ('model._scope_', 'evil', 'model._scope_'),
        ('model.backbone.mole.importance', 'http://evil/scores.json', 'mole.importance'),
        ('data_preprocessor.type', 'os.system', 'data_preprocessor.type'),
        ('val_cfg.type', 'subprocess.Popen', 'val_cfg.type'),
        ('val_cfg.type', 'tas_lora.SubnetTestLoop', 'val_cfg.type'),
        ('val_cfg.evolution.type', 'os.system', 'val_cfg.evolution.type'),
        ('val_evaluator', [dict(type='DumpResults', out_file_path='x')], 'val_evaluator.0.type'),
        ('val_evaluator', [dict(type='Accuracy', collect_dir='/home')], '0.collect_dir'),
        ('val_dataloader.collate_fn', dict(type='os.system'), 'collate_fn.type'),
        ('val_dataloader.worker_init_fn', dict(type='os.system'), 'worker_init_fn.type'),
        ('val_dataloader.sampler.type', 'os.system', 'sampler.type'),
        (f'{DATASET}.type', 'mmengine.fileio.load', f'{DATASET}.type'),
        (f'{DATASET}.pipeline.0.type', 'Albumentations', 'pipeline.0.type'),
        (f'{DATASET}.pipeline.0.type', 'torchvision/Lambda', 'pipeline.0.type'),
        (f'{DATASET}.ann_file', 'evil.pkl', 'ann_file'),
        (f'{DATASET}.ann_file', 'evil.YAML', 'ann_file'),
        (f'{DATASET}.data_root', 's3://bucket', 'data_root'),
        (f'{DATASET}.data_prefix', dict(img='http://evil'), 'data_prefix.img'),
        (f'{DATASET}.data_prefix', [['http://evil']], 'data_prefix'),
        (f'{DATASET}.backend_args', dict(backend='memcached', sys_path='.'), 'backend_args'),
        (f'{DATASET}.file_client_args', dict(backend='petrel'), 'file_client_args'),
    ],
)
def test_a_record_names_no_code(place, value, said):
    with pytest.raises(UserError, match=rf'{said} (of the record|may not be)') as refused:
        recorded_config(changed(place, value))
    assert 'give the config that you trust' in str(refused.value)


def test_what_a_record_may_not_say_of_the_whole_run_is_left_out():
    odd = dict(
        custom_imports=dict(imports=['evil']),
        default_hooks=dict(x=CALLS),
        runner_type='os.system',
        work_dir='/etc',
        load_from='http://evil',
        resume=True,
        randomness=dict(seed='x'),
        visualizer=CALLS,
        default_scope='evil',
    )
    record = config() | odd
    record['val_cfg'] |= dict(ray=dict(address='evil:6379'), measured='/x', resume=True)
    cfg = recorded_config(record)
    assert cfg.val_cfg == config()['val_cfg']
    assert set(cfg) & set(odd) == {'visualizer', 'default_scope'}
    assert (cfg.visualizer.type, cfg.default_scope) == ('UniversalVisualizer', 'mmpretrain')
    assert recorded_config(config()).randomness == config()['randomness']


def test_a_record_downloads_nothing():
    """MMPretrain's data sets do by default, to where the record says."""
    record = config()
    inner = record['val_dataloader']['dataset']['dataset']
    del inner['download']
    for content in (record, changed(f'{DATASET}.download', True)):
        assert recorded_config(content).val_dataloader.dataset.dataset.download is False


def test_all_parts_that_a_record_may_name_are_there():
    parts = _known()
    assert [name for name, part in parts.items() if part is None] == []
    assert {'tas_lora.ElasticViT', 'MNIST', 'mmpretrain.MNIST', 'torchvision/Resize'} <= set(parts)
    assert 'mmpretrain.datasets.mnist.MNIST' in parts  # as a pure Python config is recorded


@pytest.mark.parametrize('options', [(), ('--check-only',)])
def test_a_strangers_result_runs_nothing(canary, capsys, options):
    result = json.loads(RECORD.read_text())
    result['search']['config']['custom_hooks'] = [CALLS]
    Path('weights.pth').write_bytes(b'any')
    result['search']['checkpoint_sha256'] = sha256('weights.pth')
    Path('best_subnet.json').write_text(json.dumps(result))
    arguments = ('weights.pth', '--replay', 'best_subnet.json', *options)
    assert call_tool('search.py', *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "custom_hooks.0.type of the record is 'subprocess.Popen'; a record is data" in line
    HOOKS.build(dict(CALLS)).wait()  # this is what MMEngine does with it
    assert canary.exists()
    canary.unlink()


def test_a_record_nested_deep_is_refused_in_one_line(tmp_path, capsys):
    deep = []
    for _ in range(900):
        deep = [deep]
    result = json.loads(RECORD.read_text())
    result['search']['config']['custom_hooks'] = deep
    path = tmp_path / 'best_subnet.json'
    path.write_text(json.dumps(result))
    (tmp_path / 'weights.pth').write_bytes(b'any')
    assert call_tool('search.py', tmp_path / 'weights.pth', '--replay', path) == 2
    assert 'nested more than 50 deep' in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match=r'best_subnet\.json is not JSON: nested more than 50'):
        read_json(path)


# Checkpoints


A, B = ['a', 0, 0], ['b', 0, 0]  # starts of two runs


def of_run(path: Path, *starts: list, place: tuple = (1, 4)) -> Path:
    """A checkpoint that names the starts of its run; without any, one of 0.1."""
    path.parent.mkdir(exist_ok=True)
    info = dict(starts=json.dumps(starts)) if starts else {}
    meta = dict(epoch=place[0], iter=place[1])
    torch.save(dict(meta=meta, message_hub=dict(runtime_info=info), state_dict={}), path)
    return path


def resumed(tmp_path, known: dict, out_dir=None, at: str = 'work') -> tuple[dict, str]:
    """The message hub's values after the check, and what was logged."""
    logged, work = [], tmp_path / 'work'
    work.mkdir(exist_ok=True)
    runner = SimpleNamespace(
        work_dir=str(work),
        hooks=[SafeCheckpointHook(out_dir=out_dir)],
        logger=SimpleNamespace(warning=logged.append),
    )
    checkpoint = dict(
        meta=dict(epoch=1, iter=4, config='evil'),
        optimizer={},
        message_hub=dict(runtime_info=dict(known)),
    )
    make_resumable(checkpoint, runner, str(tmp_path / at / 'epoch_1.pth'))
    assert 'config' not in checkpoint['meta']
    return checkpoint['message_hub']['runtime_info'], ' '.join(logged)


def test_only_files_of_the_work_directory_count_as_best(tmp_path):
    others, best = tmp_path / 'others', 'best_top1_epoch_1.pth'
    for folder in (others, tmp_path / 'work'):
        folder.mkdir()
        for name in (best, 'epoch_1.pth'):
            of_run(folder / name)
    of_run(others / 'best_x.pth')
    own = str(tmp_path / 'work' / best)
    for named in (own, others / best, f'{own}/', f'elsewhere/../{best}'):
        known, _ = resumed(tmp_path, dict(best_ckpt=str(named), best_score=0.5))
        assert known == dict(best_ckpt=own, best_score=0.5)
    for named in (others / 'best_x.pth', others / 'epoch_1.pth', 'epoch_1.pth', '..', '', 3, None):
        found = {'best_ckpt': named, 'best_score': 0.5}
        found = {k: str(v) if isinstance(v, Path) else v for k, v in found.items()}
        known, logged = resumed(tmp_path, found)
        assert known == {}
        assert 'the best from now on is kept' in logged
    several = {'best_ckpt_a/b': '/x/best_a.pth', 'best_score_a/b': 1.0, 'best_score_c': 2.0}
    assert resumed(tmp_path, several)[0] == {'best_score_c': 2.0}
    last = str(others / 'epoch_1.pth')
    assert resumed(tmp_path, dict(last_ckpt=last))[0]['last_ckpt'].startswith(str(tmp_path))
    assert resumed(tmp_path, dict(last_ckpt='/x/gone.pth'))[0] == {}


@pytest.mark.parametrize('kept', ['abc', ['../../x'], [1, '2'], [True], {1: 2}, [1.5]])
def test_numbers_of_checkpoints_to_delete_are_numbers(tmp_path, kept):
    for number in (1, 2):
        of_run(tmp_path / 'work' / f'epoch_{number}.pth')
    assert resumed(tmp_path, dict(keep_ckpt_ids=kept))[0] == {}
    assert resumed(tmp_path, dict(keep_ckpt_ids=[1, 2]))[0] == dict(keep_ckpt_ids=[1, 2])


NAMED = dict(keep_ckpt_ids=[1], best_ckpt='best_x_epoch_1.pth', best_score=0.5)


@pytest.mark.parametrize(
    ('files', 'place', 'starts', 'at', 'is_own'),
    [
        ([A], (1, 4), [A], 'elsewhere', True),
        ([A], (1, 4), [A, ['c', 1, 4]], 'work', True),
        ([B], (1, 4), [A], 'work', False),  # of an earlier run in the folder
        ([A], (1, 5), [A], 'work', False),  # from after the checkpoint
        ([A], (2, 8), [A, ['c', 1, 4]], 'work', False),  # left by a run that went back
        ([A], (1, 4), [], 'work', False),
        ([], (1, 4), [], 'work', True),  # both of 0.1
        ([], (1, 4), [], 'elsewhere', False),  # a stranger's: nothing says whose they are
        ([], (1, 4), [[None, 0, 0]], 'elsewhere', False),
    ],
)
def test_only_files_of_the_same_run_may_be_deleted(tmp_path, files, place, starts, at, is_own):
    for name in ('epoch_1.pth', 'best_x_epoch_1.pth'):
        of_run(tmp_path / 'work' / name, *files, place=place)
    known = NAMED | (dict(starts=json.dumps(starts)) if starts else {})
    found, _ = resumed(tmp_path, known, at=at)
    found.pop('starts', None)
    best = str(tmp_path / 'work' / 'best_x_epoch_1.pth')
    assert found == (NAMED | dict(best_ckpt=best) if is_own else {})


def test_nothing_is_deleted_that_cannot_be_looked_at(tmp_path):
    assert resumed(tmp_path, NAMED, out_dir='s3://bucket/runs')[0] == {}


@pytest.mark.full
def test_a_checkpoint_deletes_no_others_of_its_work_directory(digits_config, tmp_path):
    """By numbers to keep, of which MMEngine deletes those too many; its settings unknown."""
    cfg = digits_config('supernet', images=64)
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=2)
    apis.train(cfg)
    work = Path(cfg.work_dir)
    checkpoint = read_checkpoint(work / 'epoch_1.pth')
    info = checkpoint['message_hub']['runtime_info']
    del info['run_record'], info['starts']
    info['keep_ckpt_ids'] = [7, 8, 9, 10]
    torch.save(checkpoint, tmp_path / 'evil.pth')
    for number in (7, 8):
        shutil.copy(work / 'epoch_2.pth', work / f'epoch_{number}.pth')
    apis.train(cfg, tmp_path / 'evil.pth')
    assert {'epoch_2.pth', 'epoch_7.pth', 'epoch_8.pth'} <= {p.name for p in work.glob('*.pth')}


DEEP = '[' * 100_000 + ']' * 100_000


@pytest.mark.parametrize('starts', [DEEP, '[["a", 1e999, 0]]', '[["a", -1, 0]]', '[[{}, 1, 0]]', 3])
def test_starts_of_any_content_are_no_traceback(tmp_path, starts):
    found, _ = resumed(tmp_path, NAMED | dict(starts=starts))
    assert found == dict(starts=starts)
    path = of_run(tmp_path / 'work' / 'epoch_1.pth')
    checkpoint = read_checkpoint(path)
    checkpoint['message_hub']['runtime_info']['starts'] = starts
    torch.save(checkpoint, path)
    assert apis.find_resumable(tmp_path / 'work') == path


@pytest.mark.parametrize(
    'change',
    [dict(meta=3), dict(meta=dict(epoch='1', iter=1)), dict(message_hub=[]), dict(meta={})],
)
def test_a_checkpoint_of_another_form_is_refused(change):
    whole = dict(meta=dict(epoch=1, iter=1), optimizer={}, message_hub=dict(runtime_info={}))
    runner = SimpleNamespace(work_dir='.', hooks=[], logger=None)
    make_resumable(deepcopy(whole), runner, 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth'):
        make_resumable(whole | change, runner, 'x.pth')


@pytest.mark.full
def test_resuming_a_copy_leaves_the_original_alone(digits_config, tmp_path):
    victim = tmp_path / 'thesis.tex'
    victim.write_text('years of work')

    def run(folder: str, resume: Path | None = None):
        cfg = digits_config('supernet', images=64)
        cfg.default_hooks.checkpoint.update(save_best='largest/accuracy/top1', rule='less')
        cfg.work_dir = str(tmp_path / folder)
        if resume is not None:
            cfg.load_from, cfg.resume = str(resume), True
        apis.train(cfg)
        return [path.name for path in Path(cfg.work_dir).glob('best_*')]

    best = run('old')
    first = tmp_path / 'old' / 'epoch_1.pth'
    before = {path.name: path.read_bytes() for path in (tmp_path / 'old').glob('*.pth')}
    checkpoint = read_checkpoint(first)
    assert len(best) == 1
    # Any next score is lower, so that the best so far is to be replaced.
    checkpoint['message_hub']['runtime_info'].update(best_score=1e9, best_ckpt=str(victim))
    torch.save(checkpoint, tmp_path / 'evil.pth')
    checkpoint['message_hub']['runtime_info']['best_ckpt'] = str(tmp_path / 'old' / best[0])
    torch.save(checkpoint, tmp_path / 'copy.pth')
    for name in ('evil', 'copy'):
        assert len(run(name, tmp_path / f'{name}.pth')) == 1
    assert victim.read_text() == 'years of work'
    now = {path.name: path.read_bytes() for path in (tmp_path / 'old').glob('*.pth')}
    assert now == before


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('replay_seed', 'x'),
        ('epoch_length', -1),
        ('bad_steps', None),
        ('bad_images', 'x'),
        ('bad_images', [1]),
        ('run_record', '[' * 100_000),
        ('run_record', '3'),
        ('run_record', 3),
    ],
)
def test_counters_in_a_checkpoint_are_checked(digits_config, tmp_path, key, value):
    cfg = digits_config('supernet', images=64)
    runner = apis.prepare_training(cfg)
    runner._resume = True
    runner.message_hub.update_info(key, value)
    with pytest.raises(UserError, match=r'in the checkpoint'):
        runner.train_loop.run()


# Exports, and texts that reach a terminal


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('export')
    return Path(export_subnet(trained_like(tiny_model()), SPACE.smallest(), folder))


@pytest.fixture
def export(exported, tmp_path) -> Path:
    """An export of the test's own, and an image to predict."""
    shutil.copytree(exported, tmp_path / 'export')
    Image.new('L', (8, 8), 99).save(tmp_path / 'image.png')
    return tmp_path / 'export'


def with_classes(export: Path, names: list[str]) -> None:
    path = export / 'architecture.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(classes=names)))


def predict(export: Path, *options) -> int:
    return call_tool('predict.py', export, export.parent / 'image.png', *options)


def test_class_names_cannot_steer_the_terminal(export, capsys):
    with_classes(export, [STEER, '\x1b[31mb', 'c', 'd', 'e'])
    assert predict(export) == 0
    shown = capsys.readouterr().out
    assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', shown)
    assert r'\x1b]0;title\x07\x9b2J\u202eevil' in shown.replace('\n', '')


def test_halves_of_characters_are_refused(export, capsys):
    with_classes(export, ['\ud800', 'b', 'c', 'd', 'e'])
    assert predict(export) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'architecture.json cannot be read' in line
    assert 'surrogates not allowed' in line
    (export / 'subnet.json').write_text('{"a": "\\udc00"}')
    with pytest.raises(UserError, match='is not JSON: .*surrogates not allowed'):
        read_json(export / 'subnet.json')


@pytest.mark.parametrize('name', ['weights.safetensors', 'architecture.json'])
@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_pipes_and_devices_are_not_read(export, capsys, name, kind):
    (export / name).unlink()
    if kind == 'pipe':
        os.mkfifo(export / name)
    else:
        (export / name).symlink_to('/dev/zero')
    assert predict(export) == 2
    assert f'{name} cannot be read: it is not a file' in capsys.readouterr().err
    for read in (read_json, read_history):
        with pytest.raises(UserError, match='a pipe or a device, not a file'):
            read(export / name)
    with pytest.raises(UserError, match='is not a file; check the path'):
        read_state_dict(export / name)


def test_weights_of_another_size_are_not_loaded(export, monkeypatch):
    """A sparse file may claim more than there is memory: the header is looked at first."""
    weights = load((export / 'weights.safetensors').read_bytes())
    save_file(weights | {'more': torch.zeros(10)}, export / 'weights.safetensors')
    monkeypatch.setattr('tas_lora.models.plain_vit.load_file', None)
    with pytest.raises(ValueError, match='SHA-256 differs'):
        load_plain_vit(export)
    path = export / 'architecture.json'
    content = json.loads(path.read_text())
    content.pop('weights_sha256')
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='differ in 1 tensors, the first more'):
        load_plain_vit(export)


def test_large_json_is_not_read(tmp_path):
    with (tmp_path / 'large.json').open('wb') as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(UserError, match='cannot be read: it has more than 100 MB'):
        read_json(tmp_path / 'large.json')
    with pytest.raises(UserError, match='cannot be read: .*it does not fit in memory'):
        read_history(tmp_path / 'large.json')


def test_what_is_not_printable_is_escaped():
    fine = 'Ünïcødé 猫\n\tفارسی\u200cها 👩\u200d🚀'
    assert printable(fine) == fine
    assert printable('\x1b[2J\x07\r\x9b\ud800\u202e') == r'\x1b[2J\x07\r\x9b\ud800\u202e'
    assert printable(printable(STEER)) == printable(STEER)
    assert str(UserError(f'must be {STEER}', 'x')) == f'x must be {printable(STEER)}'


def test_logs_cannot_steer_the_terminal(digits_config, capsys):
    runner = apis.prepare_training(digits_config('supernet', images=64))
    capsys.readouterr()
    runner.logger.warning('class %s', STEER)
    shown = capsys.readouterr()
    assert r'class \x1b]0;title\x07\x9b2J\u202eevil' in shown.out + shown.err


def test_tools_print_through_the_escape():
    """A later line that forgets it is found here. The demo shows what other tools printed."""
    bare = re.compile(r'(?<![\w.`])(print\((?!\*?\(?printable\()|Console\()')
    assert bare.search('print(name)')
    assert [path for path in sources('demo.py') if bare.search(path.read_text('utf-8'))] == []


def test_tools_write_beside_and_rename():
    """So that a link is not followed and a full disk leaves the old file.

    An export's formats and the emoji are written in a temporary folder; the logs of the demo and of
    the parts of a GPU check grow line by line, and a lock's file is empty.
    """
    plain = re.compile(
        r"\.write_(text|bytes)\(|\bopen\(('w|[^()]*, 'w)|(savefig|save)\((args|folder|.*args\.)"
    )
    assert plain.search('Path(args.out).write_text(text)')
    assert plain.search("path.open('wb')")
    found = [
        path.name
        for path in sources('demo.py')
        if path.parent != ROOT / 'tas_lora' / 'export' and plain.search(path.read_text('utf-8'))
    ]
    assert sorted(found) == ['emoji.py', 'processes.py', 'progress.py', 'runs.py']


def sources(*without: str) -> list[Path]:
    """The toolkit's Python files and the projects', without tests."""
    folders = [ROOT / name for name in ('projects', 'tas_lora', 'tools')]
    paths = (path for folder in folders for path in folder.rglob('*.py'))
    return sorted(path for path in paths if path.name not in without and 'tests' not in path.parts)


# Images


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
"""


@pytest.fixture
def ghostscript(canary, monkeypatch):
    """A program that Pillow would start for EPS."""
    program = canary.parent / 'bin' / 'gs'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch {canary}\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')
    return program


@pytest.mark.usefixtures('ghostscript')
def test_eps_under_any_name_starts_no_program(export, canary, capsys):
    (export.parent / 'image.png').write_bytes(EPS)
    assert predict(export) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'image.png cannot be read: UnidentifiedImageError: it is none of BMP' in line
    code = 'from PIL import Image; Image.open("image.png").load()'
    subprocess.run([sys.executable, '-c', code], cwd=export.parent, capture_output=True)
    assert canary.exists()  # this is what Pillow does with it
    canary.unlink()


@pytest.mark.usefixtures('ghostscript')
@pytest.mark.parametrize('context', ['fork', pytest.param('spawn', marks=pytest.mark.full)])
def test_eps_in_a_data_folder_starts_no_program(canary, context):
    code = f"""
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tas_lora.datasets.replay import readable
if __name__ == '__main__':
    init_default_scope('mmpretrain')
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    data = dict(type='CustomDataset', data_root='data', pipeline=[load, dict(type='PackInputs')])
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=1, num_workers=1, dataset=data, sampler=sampler)
    loader['multiprocessing_context'] = {context!r}
    for batch in Runner.build_dataloader(readable(loader)):
        print(batch)
"""
    folder = canary.parent / 'data' / 'a'
    folder.mkdir(parents=True)
    (folder / 'x.png').write_bytes(EPS)
    Path('run.py').write_text(code)
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, 'run.py'], env=environment, capture_output=True, text=True
    )
    assert 'x.png: UnidentifiedImageError' in done.stdout, done.stderr


@pytest.mark.parametrize('name', ['a.bmp', 'a.gif', 'a.jpg', 'a.png', 'a.ppm', 'a.tif', 'a.webp'])
def test_usual_formats_are_opened(export, name):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(export.parent / name)
    assert call_tool('predict.py', export, export.parent / name) == 0


# Downloads


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """An address whose server sends these bytes and then stalls, or closes the connection."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(safe_load, '_PATIENCE', 0.5)
    server, open_ones = socket.create_server(('127.0.0.1', 0)), []

    def serve(content: bytes, stall: bool = False) -> str:
        def answer():
            connection = server.accept()[0]
            open_ones.append(connection)
            connection.recv(10_000)
            connection.sendall(content)
            if not stall:
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        return f'http://127.0.0.1:{server.getsockname()[1]}/weights.pth'

    yield serve
    for each in (*open_ones, server):
        each.close()


def left_in(tmp_path) -> list[str]:
    return [path.name for path in (tmp_path / 'home').rglob('*') if path.is_file()]


def test_a_download_that_is_cut_leaves_nothing(answers, tmp_path):
    torch.save(dict(state_dict=dict(x=torch.zeros(9))), tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    head = b'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n' % len(good)
    half = len(good) // 2
    with pytest.raises(UserError, match=rf'cannot be downloaded: .*cut after {half:,} of'):
        read_state_dict(answers(head + good[:half]))
    assert left_in(tmp_path) == []
    assert torch.equal(read_state_dict(answers(head + good))['x'], torch.zeros(9))
    assert len(left_in(tmp_path)) == 1


@pytest.mark.parametrize('sent', [b'', b'HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nabc'])
def test_a_server_that_stalls_is_left(answers, tmp_path, sent):
    with pytest.raises(UserError, match='cannot be downloaded: .*timed out'):
        read_state_dict(answers(sent, stall=True))
    assert left_in(tmp_path) == []


def test_a_damaged_download_is_named(answers, tmp_path):
    """Such as the half of a file that 0.1 left, or one whose server does not tell its length."""
    address = answers(b'HTTP/1.0 200 OK\r\n\r\nhalf')
    for _ in range(2):  # also from the cache
        with pytest.raises(UserError) as refused:
            read_state_dict(address)
        (file,) = (tmp_path / 'home').rglob('*.pth')
        assert f'{address}, downloaded to {file}, is not a readable' in str(refused.value)
        assert 'delete the file to download it again' in str(refused.value)


def test_each_row_of_the_security_page_has_its_tests():
    rows = [
        line for line in (ROOT / 'docs/security.md').read_text().splitlines() if line[:1] == '|'
    ]
    known = {path.stem for path in (ROOT / 'tests').glob('test_*.py')}
    known |= {path.stem for path in (ROOT / 'projects').glob('*/tests/test_*.py')}
    assert len(rows) > 20
    for row in rows[2:]:
        named = re.findall(r'`(\w+)`', row.split(' | ')[-1])
        assert named, row
        assert set(named) <= known, row


def test_mmengine_imports_what_a_type_names():
    """Else the tests of records would prove nothing."""
    assert MODELS.get('subprocess.Popen') is subprocess.Popen


def test_a_link_in_place_of_the_config_is_not_written_through(digits_config, tmp_path):
    cfg = digits_config('supernet', images=64)
    victim, link = tmp_path / 'victim', Path(cfg.work_dir) / Path(cfg.filename).name
    victim.write_text('mine')
    link.parent.mkdir()
    link.symlink_to(victim)
    apis.prepare_training(cfg)
    assert victim.read_text() == 'mine'
    assert not link.is_symlink()
    assert 'SupernetClassifier' in link.read_text()
