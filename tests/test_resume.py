"""A training that was stopped and resumed ends with the weights of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import faults  # noqa: F401  registers what configs name
import psutil
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from PIL import Image

from tas_lora import UserError, apis
from tas_lora.engine.runner.resume_check import run_record
from tas_lora.engine.runner.run_files import checkpoint_folder
from tas_lora.errors import STOPPED
from tas_lora.models.safe_load import read_checkpoint, read_state_dict
from tas_lora.work_lock import LOCK

AUGMENTED = [dict(type='RandomCrop', crop_size=8, padding=1), dict(type='PackInputs')]
MIXUP = dict(augments=[dict(type='Mixup', alpha=0.8)])
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)
FINE_TUNE = dict(type='tas_lora.ResumableTrainLoop', max_epochs=2)


@pytest.fixture
def config(digits_config, tmp_path):
    """Makes a small config, augmented in all ways: 2 epochs of 4 iterations."""

    def make(stage: str, name: str, workers: int = 0, ema: bool = False, hooks=(), **train_cfg):
        cfg = digits_config('moLE' if stage == 'moLE' else 'supernet', images=64)
        cfg.train_dataloader.dataset.dataset.dataset.pipeline = AUGMENTED
        cfg.train_dataloader.num_workers = workers
        cfg.model.train_cfg = MIXUP
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), *([EMA] if ema else ()), *hooks]
        if stage == 'fine-tune':  # one network
            cfg.train_cfg = dict(FINE_TUNE)
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
            cfg.test_cfg = dict()
        cfg.train_cfg.update(train_cfg)
        cfg.custom_imports = dict(imports=['faults'])
        cfg.work_dir = str(tmp_path / name)
        return cfg

    return make


@pytest.fixture
def first(config, shared) -> Path:
    """The folder of a supernet's training that is over; it is made once and only read."""
    if not (shared / 'epoch_2.pth').exists():
        cfg = config('supernet', 'first')
        cfg.work_dir = str(shared)
        apis.train(cfg)
    return shared


def stop_at(iteration: int, **kwargs) -> list[dict]:
    return [dict(type='SignalAt', iteration=iteration, **kwargs)]


def train_and_stop(cfg) -> Path:
    with pytest.raises(SystemExit) as stopped:
        apis.train(cfg)
    assert stopped.value.code == STOPPED
    return apis.find_resumable(cfg.work_dir)


def resume(cfg, checkpoint) -> dict:
    cfg.load_from, cfg.resume = str(checkpoint), True
    apis.train(cfg)
    return final(cfg)


def final(cfg) -> dict:
    return read_checkpoint(f'{cfg.work_dir}/epoch_2.pth')


def assert_same(expected: dict, found: dict) -> None:
    """Bitwise the same weights, averaged weights, and states of optimizers and schedules."""
    assert_equal(expected['state_dict'], found['state_dict'])
    assert_equal(expected.get('ema_state_dict', {}), found.get('ema_state_dict', {}))
    assert_equal(expected['optimizer'], found['optimizer'])
    assert_equal(expected['param_schedulers'], found['param_schedulers'])


def assert_equal(expected, found, path: str = '') -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), path
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), path
        for key, value in expected.items():
            assert_equal(value, found[key], f'{path}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found), path
        for i, pair in enumerate(zip(expected, found, strict=True)):
            assert_equal(*pair, f'{path}.{i}')
    else:
        assert expected == found, path


# Stage, averaged weights or not, workers: each value is in one of these four.
FOUR = [('moLE', True, 2), ('supernet', False, 2), ('moLE', False, 0), ('fine-tune', True, 0)]
ALL = product(('supernet', 'moLE', 'fine-tune'), (False, True), (0, 2))
CASES = [
    FOUR[0],
    *(pytest.param(*case, marks=pytest.mark.full) for case in FOUR[1:]),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FOUR),
]


@pytest.mark.parametrize(('stage', 'ema', 'workers'), CASES)
def test_stopped_and_resumed_equals_undisturbed(config, stage, ema, workers):
    whole = config(stage, 'whole', workers, ema)
    apis.train(whole)
    for iteration in (1, 5):  # in the first and in the second epoch
        name = f'stopped{iteration}'
        checkpoint = train_and_stop(config(stage, name, workers, ema, stop_at(iteration)))
        assert checkpoint.name == f'stopped_iter_{iteration + 1}.pth'
        resumed = config(stage, name, workers, ema, allow_changes=True)  # its hooks are others
        assert_same(final(whole), resume(resumed, checkpoint))
        assert not checkpoint.exists()  # a later one took its place


def test_the_epoch_boundary_too(config):
    whole = config('moLE', 'whole', ema=True)
    apis.train(whole)
    found = resume(config('moLE', 'resumed', ema=True), f'{whole.work_dir}/epoch_1.pth')
    assert_same(final(whole), found)


@pytest.mark.full
def test_number_of_workers_changes_nothing(config, first):
    for workers in (1, 3):
        cfg = config('supernet', f'workers{workers}', workers)
        apis.train(cfg)
        assert_equal(read_checkpoint(first / 'epoch_2.pth')['state_dict'], final(cfg)['state_dict'])


def batches(cfg, epochs: int = 2) -> list[torch.Tensor]:
    """Images of each epoch as they are trained on, in the order of their labels and content."""
    runner = apis.prepare_training(cfg)
    seen = [[] for _ in range(epochs)]

    def spy(point, **kwargs):
        if point == 'before_train_iter':
            seen[runner.epoch].extend(kwargs['data_batch']['inputs'])
        type(runner).call_hook(runner, point, **kwargs)

    runner.call_hook = spy
    runner.train()
    return [torch.stack(images).float() for images in seen]


@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, False), (2, True)])
def test_augmentation_differs_between_epochs(config, workers, persistent):
    cfg = config('supernet', 'seen', workers)
    cfg.train_dataloader.persistent_workers = persistent
    cfg.train_dataloader.sampler.shuffle = False
    first, second = batches(cfg)
    changed = (first != second).flatten(1).any(1).float().mean()
    assert changed > 0.5  # 8 of 9 shifts are no identity


@pytest.mark.full
def test_the_seed_of_the_first_start_is_kept(config):
    """With `randomness.seed=None` every start would draw another."""
    whole = config('supernet', 'whole')
    whole.randomness = dict(seed=None, diff_rank_seed=True)
    apis.train(whole)
    resumed = config('supernet', 'resumed')
    resumed.randomness = dict(seed=None, diff_rank_seed=True)
    assert_same(final(whole), resume(resumed, f'{whole.work_dir}/epoch_1.pth'))


def test_zero_gradients_of_torch_1_are_resumed(config):
    """With set_to_none=False, blocks that were active once are moved by decay and momentum."""
    configs = [config('supernet', name) for name in ('whole', 'resumed')]
    for cfg in configs:
        cfg.optim_wrapper.set_to_none = False
    apis.train(configs[0])
    found = resume(configs[1], f'{configs[0].work_dir}/epoch_1.pth')
    assert_same(final(configs[0]), found)


CHANGES = {
    'train_cfg.max_epochs': (3, 'train_cfg.max_epochs was 2, is 3 now'),
    'train_cfg.seed': (7, 'train_cfg.seed was 0, is 7 now'),
    'train_cfg.space.depth': ([2], r'train_cfg.space.depth was \[2, 3, 4\], is'),
    'optim_wrapper.optimizer.lr': (1.0, 'optim_wrapper.optimizer.lr was 0.004, is 1.0 now'),
    'param_scheduler.1.T_max': (99, 'param_scheduler.1.T_max was 28, is 99 now'),
    'train_dataloader.batch_size': (8, 'train_dataloader.batch_size was 16, is 8 now'),
}


@pytest.mark.parametrize('field', CHANGES)
def test_another_run_is_not_resumed(config, first, field):
    value, message = CHANGES[field]
    other = config('supernet', 'other')
    other.merge_from_dict({field: value})
    with pytest.raises(UserError, match=message):
        resume(other, first / 'epoch_1.pth')


def test_changes_can_be_allowed_and_are_spelled_out(config, first, caplog):
    longer = config('supernet', 'longer', max_epochs=3, allow_changes=True)
    resume(longer, first / 'epoch_1.pth')
    log = next(Path(longer.work_dir).glob('*/*.log')).read_text()
    assert 'Changed since the checkpoint: train_cfg.max_epochs was 2, is 3' in log
    assert Path(longer.work_dir, 'epoch_3.pth').exists()


def test_speed_and_places_may_change(config, first):
    faster = config('supernet', 'faster', workers=2, val_interval=1)
    faster.model.backbone.with_cp = True
    assert_equal(
        read_checkpoint(first / 'epoch_2.pth')['state_dict'],
        resume(faster, first / 'epoch_1.pth')['state_dict'],
    )


def dist_train(cfg, file, *options) -> subprocess.CompletedProcess:
    cfg.dump(file)
    environment = os.environ | dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [ROOT / 'tools/train.py', file, '--launcher=pytorch', *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow  # run by `make nightly`
def test_two_processes_of_which_one_is_told_to_stop(config, tmp_path):
    whole = config('moLE', 'whole', workers=2, ema=True)
    done = dist_train(whole, tmp_path / 'whole.py')
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        name = f'rank{rank}'
        # The writer is slow, and must not be ended by the launcher because the other is through.
        hooks = [*stop_at(1, rank=rank), dict(type='SlowDisk', seconds=2)]
        done = dist_train(config('moLE', name, 2, True, hooks), tmp_path / 'stopped.py')
        assert 'Stopped by a signal' in done.stdout + done.stderr
        assert f'exitcode  : {STOPPED}' in done.stderr
        again = config('moLE', name, workers=2, ema=True, allow_changes=True)
        done = dist_train(again, tmp_path / 'again.py', '--resume')
        assert done.returncode == 0, done.stderr[-3000:]
        assert 'resumed epoch: 0, iter: 2' in done.stdout + done.stderr
        assert_same(final(whole), final(again))


@pytest.mark.full
@pytest.mark.skipif(sys.platform != 'linux', reason='the system tells nobody of an end')
def test_the_processes_of_a_killed_launcher_end(config, tmp_path):
    """Each is told to stop, and writes a checkpoint; the run that replaces it finds it."""
    cfg = config('supernet', 'orphans', max_epochs=1000, val_interval=1000)
    cfg.default_hooks.checkpoint.interval = 1000
    cfg.dump(tmp_path / 'config.py')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [ROOT / 'tools/train.py', tmp_path / 'config.py', '--launcher=pytorch']
    environment = os.environ | dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1')
    with open(tmp_path / 'output', 'w') as output:
        launcher = psutil.Popen(command, env=environment, stdout=output, stderr=output)
    text = ''
    while 'Epoch(train)' not in text and launcher.poll() is None:
        time.sleep(0.2)
        text = (tmp_path / 'output').read_text()
    ranks = launcher.children(recursive=True)
    assert len(ranks) >= 2, text[-3000:]
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    assert 'Stopped by a signal; ' in (tmp_path / 'output').read_text()
    assert apis.find_resumable(cfg.work_dir).name.startswith('stopped_iter_')
    assert not (Path(cfg.work_dir) / 'run.lock').exists()


def train_apart(cfg, folder: Path, **environment) -> subprocess.CompletedProcess:
    """A training by the tool in a session of its own, as a shell starts it."""
    cfg.dump(folder / 'config.py')
    variables = dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1') | environment
    return subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', folder / 'config.py'],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        start_new_session=True,
    )


@pytest.mark.full
def test_a_signal_to_all_processes_of_a_job(config, tmp_path):
    """As Slurm, systemd, a launcher and Ctrl-C send it: to the loader's workers, too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        cfg = config('supernet', number.name, 2, hooks=stop_at(5, number=int(number), group=True))
        done = train_apart(cfg, tmp_path)
        assert done.returncode == STOPPED, done.stderr[-3000:]
        assert apis.find_resumable(cfg.work_dir).name == 'stopped_iter_6.pth'


@pytest.mark.full
@pytest.mark.parametrize(('fault', 'code'), [(False, 0), (True, 1)])
def test_a_training_ends_though_its_workers_are_deaf_to_signals(config, tmp_path, fault, code):
    """Those that stay between epochs, and those of an epoch that an error breaks off."""
    cfg = config('supernet', 'ends', 2, hooks=[dict(type='FailAt', iteration=5)] if fault else ())
    cfg.train_dataloader.persistent_workers = not fault
    done = train_apart(cfg, tmp_path, TAS_LORA_DEBUG='1')
    assert done.returncode == code, done.stderr[-3000:]
    assert ('out of luck' in done.stderr) == fault


@pytest.mark.full
def test_a_killed_training_goes_on_from_the_newest_whole_file(config, first, tmp_path):
    killed = config('supernet', 'killed', hooks=stop_at(6, number=int(signal.SIGKILL)))
    assert train_apart(killed, tmp_path).returncode == -signal.SIGKILL
    checkpoint = apis.find_resumable(killed.work_dir)
    assert checkpoint.name == 'epoch_1.pth'
    resumed = config('supernet', 'killed', allow_changes=True)
    found = resume(resumed, checkpoint)['state_dict']
    assert_equal(read_checkpoint(first / 'epoch_2.pth')['state_dict'], found)


def best_of(cfg) -> list[str]:
    return [path.name for path in Path(cfg.work_dir).glob('best_*')]


def test_the_validation_a_kill_cost_is_made_up_for(config):
    configs = [config('supernet', name, val_interval=1) for name in ('whole', 'killed', 'killed')]
    for cfg in configs:
        cfg.default_hooks.checkpoint.update(save_best='largest/accuracy/top1')
    whole, killed, resumed = configs
    apis.train(whole)
    killed.custom_hooks = [dict(type='EndInValidation')]
    with pytest.raises(SystemExit):
        apis.train(killed)
    resumed.train_cfg.allow_changes = True
    checkpoint = resume(resumed, apis.find_resumable(killed.work_dir))
    history = checkpoint['message_hub']['log_scalars']['val/largest/accuracy/top1']
    expected = final(whole)['message_hub']['log_scalars']['val/largest/accuracy/top1']
    assert history.data[0].tolist() == expected.data[0].tolist()
    assert best_of(resumed) == best_of(whole)


def test_accumulated_gradients_are_stepped_before_a_stop(config):
    """Stopped in the first of two iterations that make a step."""
    configs = [config('supernet', 'whole'), config('supernet', 'stopped', hooks=stop_at(2))]
    again = config('supernet', 'stopped', allow_changes=True)
    for cfg in (*configs, again):
        cfg.optim_wrapper.accumulative_counts = 2
    apis.train(configs[0])
    checkpoint = train_and_stop(configs[1])
    assert checkpoint.name == 'stopped_iter_4.pth'
    assert_same(final(configs[0]), resume(again, checkpoint))


def test_weights_alone_cannot_be_resumed(config, tmp_path):
    cfg = config('supernet', 'first')
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=apis.load_supernet(cfg).state_dict()), weights)
    assert read_state_dict(weights)
    with pytest.raises(
        UserError, match=r'weights\.pth holds only weights; start from it with load'
    ):
        resume(cfg, weights)


def test_another_stage_cannot_be_resumed(config):
    experts = config('moLE', 'experts')
    apis.train(experts)
    with pytest.raises(UserError, match='the checkpoint holds experts, the config none'):
        resume(config('supernet', 'bare'), f'{experts.work_dir}/epoch_1.pth')


@pytest.mark.parametrize(('batch_size', 'length'), [(32, 2), (8, 8)])
def test_another_length_of_the_epoch_goes_on_from_its_start(config, first, batch_size, length):
    other = config('supernet', 'other', allow_changes=True)
    other.train_dataloader.batch_size = batch_size
    checkpoint = resume(other, first / 'epoch_1.pth')
    assert checkpoint['meta']['iter'] == 2 * length


def test_a_data_set_that_grew_is_noticed(config, first):
    grown = config('supernet', 'grown')
    grown.train_dataloader.dataset.times = 2
    with pytest.raises(UserError, match='times was 1, is 2 now; iterations of an epoch was 4'):
        resume(grown, first / 'epoch_1.pth')


def folders_config(config, root, name: str, **train_cfg):
    """A training on image files in class folders, of which a part is held out."""
    cfg = config('supernet', name, **train_cfg)
    images = dict(type='CustomDataset', data_root=str(root), pipeline=[])
    images['pipeline'] = [
        dict(type='LoadImageFromFile', color_type='grayscale'),
        dict(type='PackInputs'),
    ]
    split = dict(type='tas_lora.HeldOutSplit', part='train', size=8, dataset=images)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=split)
    cfg.train_dataloader.batch_size = 8
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


def add_image(root, label: int, name: str) -> None:
    (root / f'class{label}').mkdir(parents=True, exist_ok=True)
    Image.new('L', (8, 8), 20 * label).save(root / f'class{label}' / name)


def test_an_added_image_is_noticed(config, tmp_path):
    """It also changes which images are held out, whatever the number of iterations."""
    root = tmp_path / 'images'
    for place in range(42):  # 34 to train on, twice: 9 iterations, also with two more
        add_image(root, place % 10, f'{place}.png')
    apis.train(folders_config(config, root, 'whole'))
    checkpoint = tmp_path / 'whole' / 'epoch_1.pth'
    resume(folders_config(config, root, 'same'), checkpoint)
    (root / 'class0' / '0.png').rename(root / 'class0' / 'other.png')
    with pytest.raises(UserError, match=r'training images was 34, checksum \w+, is 34, checksum'):
        resume(folders_config(config, root, 'renamed'), checkpoint)
    add_image(root, 3, 'new.png')
    with pytest.raises(UserError, match=r'training images was 34, checksum \w+, is 35, checksum'):
        resume(folders_config(config, root, 'grown'), checkpoint)
    allowed = folders_config(config, root, 'allowed', allow_changes=True)
    resume(allowed, checkpoint)
    assert 'training images was 34' in log_of(allowed)


def log_of(cfg) -> str:
    return next(Path(cfg.work_dir).glob('*/*.log')).read_text()


def test_another_number_of_threads_is_said(config, first, monkeypatch):
    """Sums in another order: the last bits may differ, so this is no exact resume."""
    cfg = config('supernet', 'threads')
    resume(cfg, first / 'epoch_1.pth')
    assert 'torch has' not in log_of(cfg)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    cfg = config('supernet', 'more_threads')
    resume(cfg, first / 'epoch_1.pth')
    assert 'torch has 2 threads, 1 when the checkpoint was written: the last bits may' in log_of(
        cfg
    )


def train_until_killed(cfg) -> None:
    """A training that ends before its first checkpoint, as by SIGKILL."""
    cfg.custom_hooks = [*cfg.get('custom_hooks', ()), dict(type='FailAt', iteration=1)]
    with pytest.raises(RuntimeError, match='out of luck'):
        apis.train(cfg)


def test_a_new_run_in_an_old_folder_is_the_one_that_counts(config, first, tmp_path, capsys):
    """Killed before its first checkpoint, it begins again; the old one is resumed by name alone."""
    shutil.copytree(first, tmp_path / 'again')
    start = tmp_path / 'start.pth'
    torch.save(dict(state_dict=apis.load_supernet(config('supernet', 'x')).state_dict()), start)
    cfg = config('supernet', 'again')
    cfg.load_from = str(start)
    assert apis.find_resumable(cfg.work_dir).name == 'epoch_2.pth'
    train_until_killed(cfg)

    resumed = config('supernet', 'again')
    resumed.load_from = str(start)
    capsys.readouterr()
    apis.resume(resumed)
    said = ' '.join(''.join(capsys.readouterr()).split())
    assert 'not resumed, as of an earlier run: epoch_1.pth, epoch_2.pth' in said
    assert (resumed.get('resume', False), resumed.load_from) == (False, str(start))
    other = config('supernet', 'again')
    with pytest.raises(UserError, match=r'started from load_from=\S+start.pth, which is None now'):
        apis.resume(other)
    other.train_cfg.allow_changes = True
    apis.resume(other)

    resumed.train_cfg.max_epochs = 1  # it writes epoch_1.pth, beside epoch_2.pth of the old run
    apis.train(resumed)
    assert apis.find_resumable(cfg.work_dir).name == 'epoch_1.pth'
    old = config('supernet', 'again')
    apis.resume(old, tmp_path / 'again' / 'epoch_2.pth')
    assert old.resume


def test_a_run_that_went_back_counts_from_there(config, first, tmp_path):
    """Resumed from its first epoch by name, its second epoch of before is no more of this run."""
    shutil.copytree(first, tmp_path / 'back')
    cfg = config('supernet', 'back', hooks=[dict(type='FailAt', iteration=5)], allow_changes=True)
    apis.resume(cfg, tmp_path / 'back' / 'epoch_1.pth')
    with pytest.raises(RuntimeError, match='out of luck'):
        apis.train(cfg)
    assert apis.find_resumable(cfg.work_dir).name == 'epoch_1.pth'
    again = config('supernet', 'back', allow_changes=True)
    apis.resume(again)
    apis.train(again)
    assert apis.find_resumable(cfg.work_dir).name == 'epoch_2.pth'


def test_a_refused_resume_changes_nothing(config, first, tmp_path):
    shutil.copytree(first, tmp_path / 'refused')
    cfg = config('supernet', 'refused', seed=7)
    with pytest.raises(UserError, match='train_cfg.seed was 0'):
        resume(cfg, tmp_path / 'refused' / 'epoch_1.pth')
    assert apis.find_resumable(cfg.work_dir).name == 'epoch_2.pth'


DAMAGED = ['', '[]', *(f'{{"starts": {value}}}' for value in ('3', '[[1]]', '[]', '{"a": 1}'))]
DAMAGED += ['{"starts": [["a", 1e999, 0]]}', '{"starts": [["a", -1, 0]]}', '{"load_from": 3}']


@pytest.mark.parametrize('text', DAMAGED)
def test_a_damaged_record_of_the_run_hides_nothing(first, tmp_path, text):
    folder = shutil.copytree(first, tmp_path / 'copy')
    (folder / 'training.json').write_text(text)
    assert apis.find_resumable(folder).name == 'epoch_2.pth'
    for path in folder.glob('*.pth'):
        path.unlink()
    cfg = Config(dict(work_dir=str(folder), load_from='x.pth'))
    apis.resume(cfg)
    assert cfg.load_from == 'x.pth'


def test_a_config_that_resumes_without_a_file(config, first, tmp_path):
    """MMEngine would follow `last_checkpoint`, which leads to the original folder."""
    shutil.copytree(first, tmp_path / 'copy')
    (tmp_path / 'copy' / 'epoch_2.pth').unlink()
    cfg = config('supernet', 'copy')
    cfg.resume = True
    apis.train(cfg)
    assert f'Load checkpoint from {tmp_path / "copy" / "epoch_1.pth"}' in log_of_last(cfg)


def test_a_config_that_resumes_from_elsewhere(config, first, tmp_path):
    """Where its checkpoints are written, with the same lines and refusals as --resume."""
    elsewhere = shutil.copytree(first, tmp_path / 'disk' / 'work')
    cfg = config('supernet', 'work')
    cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'disk')
    (elsewhere / 'epoch_2.pth').write_bytes((elsewhere / 'epoch_2.pth').read_bytes()[:-1000])
    cfg.resume = True
    apis.train(cfg)
    log = log_of_last(cfg)
    assert f'Load checkpoint from {elsewhere / "epoch_1.pth"}' in log
    assert 'Skipped in' in log
    for path in elsewhere.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:-1000])
    again = config('supernet', 'work')
    again.resume, again.load_from = True, None
    again.default_hooks.checkpoint.out_dir = str(tmp_path / 'disk')
    with pytest.raises(UserError, match='has no intact checkpoint to resume from'):
        apis.train(again)


@pytest.mark.parametrize(
    ('out_dir', 'expected'),
    [
        (None, '/runs/first'),
        ('/runs/first', '/runs/first'),
        ('/disk', '/disk/first'),
        ('disk', 'disk/first'),
        ('s3://bucket/x', 's3://bucket/x/first'),
    ],
)
def test_where_checkpoints_are(out_dir, expected):
    """As MMEngine's hook settles it."""
    hook = CheckpointHook(out_dir=out_dir)
    assert checkpoint_folder('/runs/first/', out_dir) == expected
    assert checkpoint_folder('/runs/first', out_dir) == expected
    if '://' not in expected:
        hub = SimpleNamespace(runtime_info={})
        logger = SimpleNamespace(info=lambda text: None)
        hook.before_train(SimpleNamespace(work_dir='/runs/first', message_hub=hub, logger=logger))
        assert hook.out_dir == expected


def test_an_address_is_not_searched(config):
    cfg = config('supernet', 'work')
    cfg.default_hooks.checkpoint.out_dir = 's3://bucket/x'
    with pytest.raises(UserError, match='s3://bucket/x/work is not searched .* --resume FILE'):
        apis.resume(cfg)
    apis.resume(cfg, 'epoch_1.pth')
    assert cfg.load_from == 'epoch_1.pth'


def test_the_checkpoint_is_chosen_when_no_other_run_can_write_one(config, first, monkeypatch):
    """Inside the lock, and by the first rank; the others are told."""
    shutil.copytree(first, (cfg := config('supernet', 'work')).work_dir)
    chosen = []

    def look(work_dir, *_):
        chosen.append((Path(work_dir) / LOCK).exists())

    monkeypatch.setattr(apis, 'checkpoint_or_first_start', look)
    cfg.train_cfg.max_epochs = 1
    apis.train(cfg, resume=True)
    assert chosen == [True]
    cfg = config('supernet', 'other')
    cfg.launcher = 'pytorch'
    monkeypatch.setenv('RANK', '1')
    apis.resume(cfg)
    assert (chosen, cfg.load_from) == ([True], None)

    def told(values):
        values[:] = True, str(first / 'epoch_1.pth')

    cfg.launcher = 'none'
    runner = apis.prepare_training(cfg)
    monkeypatch.setattr('tas_lora.engine.runner.supernet_runner.broadcast_object_list', told)
    runner.load_or_resume()
    assert runner.iter == 4


def log_of_last(cfg) -> str:
    return max(Path(cfg.work_dir).glob('*/*.log')).read_text()


def test_a_work_directory_removed_while_running(config, capsys):
    """It is not made again in silence, and the error names it."""
    cfg = config('supernet', 'removed', hooks=[dict(type='RemoveWorkDir', iteration=2)])
    cfg.dump(f'{cfg.work_dir}.py')
    assert call_tool('train.py', f'{cfg.work_dir}.py') == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert len(error) == 1
    assert f'there is no folder {cfg.work_dir}; if there was one, it was moved or' in error[0]
    assert not Path(cfg.work_dir).exists()


# What torch 2.14 says, shortened.
UNUSED = (
    'Expected to have finished reduction in the prior iteration before starting a new one. This '
    'error indicates that your module has parameters that were not used in producing loss. You '
    'can enable unused parameter detection by passing the keyword argument '
    '`find_unused_parameters=True` to `torch.nn.parallel.DistributedDataParallel`, and by\n'
    'making sure all `forward` function outputs participate in calculating loss.'
)


@pytest.mark.parametrize(
    ('text', 'kind', 'said'),
    [(UNUSED, UserError, '^some parameters got no gradient.*: set'), ('x', RuntimeError, '^x$')],
)
def test_parameters_without_gradients_in_several_processes(config, monkeypatch, text, kind, said):
    def fail(*_):
        raise RuntimeError(text)

    cfg = config('fine-tune', 'unused')
    runner = apis.prepare_training(cfg)
    monkeypatch.setattr(runner.train_loop, 'run_iter', fail)
    with pytest.raises(kind, match=said):
        runner.train()


def test_a_checkpoint_that_does_not_say_its_settings(config, first, tmp_path):
    old = read_checkpoint(first / 'epoch_1.pth')
    for name in ('run_record', 'replay_seed', 'epoch_length'):
        del old['message_hub']['runtime_info'][name]
    torch.save(old, tmp_path / 'old.pth')
    resumed = config('supernet', 'resumed')
    resume(resumed, tmp_path / 'old.pth')
    assert (
        'does not say by which settings' in next(Path(resumed.work_dir).glob('*/*.log')).read_text()
    )


def test_signals_are_released_however_a_training_ends(config):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    hooks = [dict(type='SpoilInputs', iterations=[1])]
    with pytest.raises(UserError, match='the loss is nan'):
        apis.train(config('supernet', 'spoiled', hooks=hooks))
    apis.train(config('supernet', 'whole'))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_classes_in_a_config_have_the_same_name_in_every_process():
    record = run_record(dict(model=dict(type=torch.nn.Linear, f=final)), ('model',))
    assert record['model.type'] == 'torch.nn.modules.linear.Linear'
    assert '0x' not in record['model.f']


def test_checkpoints_between_epochs_by_iteration(config):
    """MMEngine's by_epoch=False with an epoch loop: resumed in the middle of an epoch."""
    configs = [config('moLE', name) for name in ('whole', 'resumed')]
    for cfg in configs:
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    apis.train(configs[0])
    cfg = configs[1]
    cfg.load_from, cfg.resume = f'{configs[0].work_dir}/iter_3.pth', True
    apis.train(cfg)
    found = [read_checkpoint(f'{cfg.work_dir}/iter_8.pth') for cfg in configs]
    assert_same(*found)
