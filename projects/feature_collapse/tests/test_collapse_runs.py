"""A whole run on made-up images: its records, report, searches and transfer."""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import safetensors.torch
import torch
from feature_collapse import edits, measure, plan, settings, training
from feature_collapse.records import FILE, Records
from mmengine.logging import MMLogger

from tas_lora import SearchSpace, Subnet, apis
from tas_lora.models.layers import expert_parameters

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
pytestmark = pytest.mark.full


@pytest.fixture(scope='module', autouse=True)
def configs_as_they_are():
    """MMEngine formats each config five times for its logs, a third of the time of these runs."""
    with pytest.MonkeyPatch.context() as patch:
        for home in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):  # the fork has the latter
            patch.setattr(f'{home}.FormatCode', lambda text, **_: (text, False), raising=False)
        yield


@pytest.fixture(autouse=True)
def fresh_loggers():
    """MMEngine keeps loggers by name and second; a reused one would write to a closed capture."""
    yield
    MMLogger._instance_dict.clear()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """600 + 100 images: the class is where the bright square is."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for name, count in (('train', 600), ('t10k', 100)):
        labels = rng.integers(10, size=count)
        pictures = rng.integers(60, size=(count, 28, 28))
        for picture, label in zip(pictures, labels, strict=True):
            row, column = divmod(int(label), 4)
            picture[7 * row + 2 : 7 * row + 6, 7 * column + 2 : 7 * column + 6] += 180
        write_idx(root / f'{name}-images-idx3-ubyte', pictures)
        write_idx(root / f'{name}-labels-idx1-ubyte', labels)
    return root


OPTIONS = [
    'train_dataloader.dataset.count=256',
    'train_dataloader.dataset.dataset.size=200',
    'heldout_dataloader.dataset.size=200',
    'train_dataloader.batch_size=64',
]


def call(script: str | Path, *arguments) -> int:
    """Run a script, of the project if it has no folder, in this process; returns its exit code."""
    argv, sys.argv = sys.argv, [*map(str, (script, *arguments))]
    try:
        runpy.run_path(str(PROJECT / script), run_name='__main__')
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = argv
    return 0


def wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def asked(data_root: Path, work: Path, *more) -> list:
    """Arguments of a short run of seed 3."""
    folders = ['--data-root', data_root, '--work-dir', work]
    return ['--quick', '--seeds', 3, *folders, *more, '--cfg-options', *OPTIONS]


@pytest.fixture(scope='module')
def whole_run(data_root, tmp_path_factory) -> Path:
    """Every kind of net, by a run that is killed behind its first record and started again."""
    work, log = tmp_path_factory.mktemp('run'), io.StringIO()
    methods = ['--methods', 'mole', 'joint', 'alone_lora', 'independent_other']
    arguments = asked(data_root, work, '--subnets', 0, 4, *methods)
    record = work / 'autoformer_seed3' / 'net.json'  # not gathered yet
    command = [sys.executable, '-W', 'ignore', PROJECT / 'run.py', *arguments]
    environment = os.environ | dict(OMP_NUM_THREADS='1')
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as first:
        wait_for(record.is_file, first)
        first.kill()
    before = json.loads(record.read_text())
    assert not (work / 'results' / FILE).exists()
    (work / 'autoformer_seed3' / 'epoch_1.pth').touch()  # as if it was killed a moment before
    with contextlib.redirect_stdout(log):
        assert call('run.py', *arguments) == 0
    assert log.getvalue().startswith('1 of 7 are there')
    gathered = Records(work / 'results').read('autoformer_seed3')
    assert before == gathered | dict(test=None)  # trained once, tested later
    assert not record.exists()
    return work


def test_whole_run_makes_one_record_for_each_net(whole_run):
    found = {r['net']: r for r in Records(whole_run / 'results').all()}
    assert set(found) == {
        'autoformer_seed3',
        'mole_seed3',
        'joint_seed3',
        *(f'{name}_{i}_seed3' for name in ('alone_lora', 'independent_other') for i in (0, 4)),
    }
    for name, record in found.items():
        count = 1 if record['subnet'] is not None else 6
        for part in ('heldout', 'test'):
            assert len(record[part]['top1']) == len(record[part]['loss']) == count
        assert record['seconds'] > 0
        assert record['iterations'] == 4 * record['epochs']
        assert not list((whole_run / name).glob('*.pth'))
    assert found['mole_seed3']['start'] == 'autoformer_seed3'
    assert found['mole_seed3']['gate_shift'] > 0
    assert len(found['mole_seed3']['curves']['delta_w']) == 3  # the start, and both epochs
    assert all(change > 0 for change in found['mole_seed3']['delta_w'])
    assert found['autoformer_seed3']['delta_w'] is None
    assert found['independent_other_0_seed3']['init_seed'] == 1003


def test_whole_run_measures_what_plain_code_measures(whole_run, data_root):
    """Top-1 and loss of one subnet again: idx files by hand, MMPretrain's predict."""
    from tas_lora import load_supernet

    cfg = settings.load('mole', str(data_root))
    model = load_supernet(cfg, whole_run / 'mole_seed3' / 'weights.safetensors')
    raw = (data_root / 't10k-images-idx3-ubyte').read_bytes()[16:]
    pictures = torch.tensor(np.frombuffer(raw, np.uint8).reshape(-1, 1, 28, 28).copy()).float()
    raw = (data_root / 't10k-labels-idx1-ubyte').read_bytes()[8:]
    labels = torch.tensor(np.frombuffer(raw, np.uint8).astype(int))
    drawn = json.loads((whole_run / 'results' / 'subnets.json').read_text())
    record = Records(whole_run / 'results').read('mole_seed3')
    for i in (0, 5):
        model.set_subnet(Subnet.from_dict(drawn[i]))
        with torch.no_grad():
            p = model((pictures - 72.9) / 90).softmax(1)
        top1 = 100 * (p.argmax(1) == labels).float().mean()
        loss = -p[range(len(labels)), labels].log().mean()
        assert record['test']['top1'][i] == pytest.approx(float(top1), abs=1e-3)
        assert record['test']['loss'][i] == pytest.approx(float(loss), abs=1e-4)


def test_wrong_experts_are_those_of_other_groups(whole_run, data_root):
    """The same with gates left alone and the experts themselves moved."""
    options = {'heldout_dataloader.dataset.size': 200}
    study = settings.Study(whole_run, whole_run, str(data_root), options=options)
    net = plan.Net('mole', 3)
    pictures, labels = training.load_images(study, 'test')
    record = Records(whole_run / 'results').read('mole_seed3')
    drawn = json.loads((whole_run / 'results' / 'subnets.json').read_text())
    found = []
    for shift in (1, 2, 3):
        model = training.restore(study, net)
        with torch.no_grad():
            for factor in expert_parameters(model):
                factor.copy_(factor.roll(-shift, 0))
        logits, _ = measure.predict(model, Subnet.coerce(drawn[2]), pictures)
        found.append(100 * float((logits.argmax(1) == labels).float().mean()))
    assert record['test']['wrong_experts'][2] == pytest.approx(mean(found), abs=1e-3)
    assert record['test']['wrong_experts'] != record['test']['top1']
    alone = Records(whole_run / 'results').read('alone_lora_0_seed3')
    assert alone['test']['wrong_experts'] is None


def test_similarity_of_nets_trained_alone_has_a_record(whole_run):
    found = Records(whole_run / 'results').all('similarity')
    assert sorted((r['family'], r['part']) for r in found) == sorted(
        product(('alone_lora', 'independent_other'), ('heldout', 'test'))
    )
    for record in found:
        assert np.shape(record['similarity']) == (2, 2)
    same = {r['family']: r['similarity'][0][1] for r in found if r['part'] == 'test'}
    # Of one start features stay alike, of different initial weights they are not.
    assert same['alone_lora'] > same['independent_other'] + 0.2


def test_similarity_is_made_anew_for_more_nets_and_kept_without_weights(
    whole_run, data_root, tmp_path, capsys
):
    work = tmp_path / 'run'
    shutil.copytree(whole_run, work)
    known = Records(work / 'results', work)
    arguments = ['--methods', 'alone_lora', '--parts', 'alone', '--subnets', 4]
    arguments = asked(data_root, work, *arguments)
    before = (work / 'results' / FILE).read_text()
    record = known.read('similarity_heldout_alone_lora_seed3', 'similarity')
    of_one = record | dict(digest=record['digest'].split('-')[0], similarity=[[1.0]])
    known.write(of_one)
    assert call('run.py', *arguments) == 0
    assert (work / 'results' / FILE).read_text() == before
    known.write(record | dict(digest='0-1'))
    assert call('run.py', *arguments) == 2
    assert 'is of another config' in capsys.readouterr().err
    known.write(of_one)
    for number in (0, 4):  # at first those that were compared, then all
        (work / f'alone_lora_{number}_seed3/weights.safetensors').unlink()
        assert call('run.py', *arguments) == 0
        assert known.read(record['net'], 'similarity') == of_one


def test_report_needs_the_records_alone(whole_run, tmp_path, capsys):
    results = tmp_path / 'results'
    for folder in (results, results / 'first_2'):  # the same as if of another condition
        folder.mkdir()
        for name in (FILE, 'subnets.json'):
            shutil.copy(whole_run / 'results' / name, folder)
    (results / 'first_3').mkdir()
    shutil.copy(results / 'subnets.json', results / 'first_3')  # nothing is trained there yet
    assert call('report.py', '--results', results) == 0
    text, of_condition = ((f / 'tables.md').read_text() for f in (results, results / 'first_2'))
    assert '| mole |' in text
    assert 'test set' in text
    assert text.startswith(of_condition)
    for name in ('gains_test', 'similarity_test', 'gains_heldout', 'curves', 'first_2/gains_test'):
        assert (results / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    assert call('report.py', '--results', results, '--seeds', 4) == 2
    assert 'has no records of the seeds [4]' in capsys.readouterr().err
    assert call('report.py', '--results', results / 'first_3') == 2
    assert 'first_3 has no records; run.py writes them' in capsys.readouterr().err


def test_records_of_another_config_are_refused(whole_run, data_root, capsys):
    arguments = asked(data_root, whole_run, '--methods', 'autoformer')
    assert call('run.py', *arguments, 'optim_wrapper.optimizer.lr=1') == 2
    assert 'is of another config' in capsys.readouterr().err


def test_lost_weights_of_a_start_are_trained_again_and_held_against_its_record(
    whole_run, data_root, tmp_path, capsys
):
    shutil.copytree(whole_run / 'results', tmp_path / 'results')
    known = Records(tmp_path / 'results', tmp_path)
    arguments = asked(data_root, tmp_path, '--methods', 'single_lora', '--parts', 'stage2')
    weights = tmp_path / 'autoformer_seed3' / 'weights.safetensors'
    record = known.read('autoformer_seed3')
    known.write(record | dict(heldout=record['heldout'] | dict(top1=[1.0] * 6)))
    assert call('run.py', *arguments) == 2
    assert 'they round in another way' in capsys.readouterr().err
    assert not weights.is_file()
    assert known.read('single_lora_seed3') is None
    known.write(record)
    weights.write_bytes((whole_run / 'mole_seed3' / 'weights.safetensors').read_bytes())
    assert call('run.py', *arguments) == 0
    stored = whole_run / 'autoformer_seed3' / 'weights.safetensors'
    assert weights.read_bytes() == stored.read_bytes()
    assert known.read('autoformer_seed3') == record
    assert not list((tmp_path / 'again').iterdir())
    found = known.read('single_lora_seed3')
    assert found['weights'] == sha256_of(tmp_path / 'single_lora_seed3' / 'weights.safetensors')
    assert f'torch {torch.__version__}' in found['numerics']


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_what_has_a_line_is_not_made_again(whole_run, data_root, tmp_path, capsys):
    """Nor its weights, if nothing starts from them."""
    shutil.copytree(whole_run / 'results', tmp_path / 'results')
    before = (tmp_path / 'results' / FILE).read_bytes()
    arguments = ['--methods', 'mole', '--parts', 'supernet', 'stage2', 'test']
    assert call('run.py', *asked(data_root, tmp_path, *arguments)) == 0
    assert capsys.readouterr().out.count('2 of 2 are there') == 2  # trained, and tested
    assert not list(tmp_path.glob('*/weights.safetensors'))
    assert (tmp_path / 'results' / FILE).read_bytes() == before


def test_images_that_are_not_there_are_said_in_one_line(tmp_path, capsys):
    folders = ['--data-root', tmp_path / 'none', '--work-dir', tmp_path]
    assert call('run.py', '--quick', *folders) == 2
    said = capsys.readouterr().err
    assert 'prepare_data.py writes them' in said
    assert str(tmp_path / 'none') in said
    assert 'Traceback' not in said


def test_prepared_data_are_the_files_unzipped(data_root, tmp_path, capsys):
    for i, path in enumerate(sorted(data_root.iterdir())):
        content = path.read_bytes()
        zipped = (f'{path.name}.gz', gzip.compress(content)) if i % 2 else (path.name, content)
        (tmp_path / zipped[0]).write_bytes(zipped[1])
    assert call('prepare_data.py', '--source', tmp_path, '--out', tmp_path / 'out') == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert written == {path.name: path.read_bytes() for path in data_root.iterdir()}
    assert '600 images, train' in capsys.readouterr().out
    assert call('prepare_data.py', '--source', tmp_path / 'none', '--out', tmp_path / 'out') == 2


def test_search_reads_what_run_wrote(whole_run, data_root, capsys):
    folders = ['--out', whole_run / 'results', '--work-dir', whole_run, '--data-root', data_root]
    folders += ['--space', 'nano', '--seeds', 3, '--searches', 1]
    assert call('search.py', *folders, '--methods', 'mole', '--cfg-options', *OPTIONS) == 0
    rows = json.loads((whole_run / 'results' / 'searches.json').read_text())
    assert len(rows) == 3 * 2
    assert {row['regret'] for row in rows} == {0}  # all of the space fits in one generation
    known = Records(whole_run / 'results')
    table, record = known.read('mole_seed3', 'scores'), known.read('mole_seed3')
    space = list(SearchSpace(**edits.SPACES['nano']))
    drawn = json.loads((whole_run / 'results' / 'subnets.json').read_text())
    places = [[s.to_dict() for s in space].index(subnet) for subnet in drawn]
    assert [table['test'][i] for i in places] == record['test']['top1']
    assert table['params'][-1] == max(table['params'])
    capsys.readouterr()
    options = ['--methods', 'dynas', '--cfg-options', *OPTIONS]
    assert call('search.py', *folders, *options) == 2
    assert 'dynas_seed3 has no record' in capsys.readouterr().err


@pytest.fixture(scope='module')
def digits_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('digits')
    assert call(ROOT / 'tools' / 'prepare_digits.py', '--out', root) == 0
    return root


def test_transfer_learns_from_exports_and_from_scratch(whole_run, data_root, digits_root, capsys):
    folders = ['--out', whole_run / 'results', '--work-dir', whole_run, '--data-root', data_root]
    folders += ['--seeds', 3, '--subnets', 4, '--methods', 'mole', '--digits', digits_root]
    short = [
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'train_dataloader.dataset.times=1',
    ]
    assert call('transfer.py', *folders, '--cfg-options', *short) == 0
    found = {record['net']: record for record in Records(whole_run / 'results').all('transfer')}
    assert set(found) == {'scratch_4_seed3', 'mole_4_seed3'}
    assert all(0 <= record[part] <= 100 for record in found.values() for part in training.SETS)
    capsys.readouterr()
    assert call('transfer.py', *folders) == 0
    assert '2 of 2 are there' in capsys.readouterr().out
    assert call('transfer.py', '--out', data_root) == 2
    assert 'subnets.json does not exist; run.py writes it' in capsys.readouterr().err


def test_transfer_starts_where_it_says(whole_run, data_root, digits_root):
    """The first weights of both kinds of training: the file's, or others."""
    transfer = runpy.run_path(str(PROJECT / 'transfer.py'))
    drawn = json.loads((whole_run / 'results' / 'subnets.json').read_text())
    subnets = tuple(map(Subnet.from_dict, drawn))
    study = settings.Study(whole_run / 'results', whole_run, str(data_root), subnets)
    exported = transfer['export'](study, plan.Net('mole', 3), 4)
    args = argparse.Namespace(
        cfg_options={}, digits=str(digits_root), work_dir=str(whole_run / 'x')
    )
    stored = safetensors.torch.load_file(exported / 'weights.safetensors')
    for start, same in (('mole', True), ('scratch', False)):
        runner = apis.prepare_training(transfer['config_of'](start, 3, exported, args))
        runner.load_or_resume()
        weight = runner.model.backbone.blocks[0].fc1.weight
        assert torch.equal(weight, stored['blocks.0.fc1.weight']) == same
