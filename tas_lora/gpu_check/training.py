"""Trainings on a device: mixed precision, DDP, exact resume, and small data sets end to end."""

import gzip
import json
import os
import runpy
import socket
import sys
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from mmengine.config import Config

from .. import apis
from ..atomic_files import write_atomic
from ..config import load_config
from ..engine.slow_options import usable_cores
from ..models.safe_load import read_state_dict
from ..packaged import CONFIGS, TOOLS
from .runs import Setting, SkippedError

FASHION = ('data/fashion_mnist', '/usr/share/datasets/fashion-mnist')
FILES = [
    f'{part}-{kind}-ubyte' for part in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1')
]
GOALS = dict(digits=95.0, fashion=80.0)  # test top-1


def syncs(setting: Setting) -> dict:
    """The part: places where the host waits for the device, in iterations of a training.

    It is that of the digits with experts, with the head and batch augmentation of T. torch does not
    report a copy from memory that is not pinned if it was asked not to wait.
    """
    cfg = _digits('moLE', setting, 'syncs')
    of_t = load_config(CONFIGS / 'autoformer_t_moLE.py').model
    cfg.model.head, cfg.model.train_cfg = of_t.head, of_t.train_cfg
    cfg.data_preprocessor.num_classes = of_t.head.num_classes
    cfg.default_hooks.logger.interval = 100  # what is logged is read back
    runner, iterations = _ready(cfg), 3
    batches = list(islice(runner.train_dataloader, 1 + iterations))
    runner.train_loop.run_iter(0, batches[0])
    if setting.device == 'cpu':
        raise SkippedError('a CPU has nothing to wait for; the iteration ran')
    places = _waits(
        lambda: [runner.train_loop.run_iter(i, b) for i, b in enumerate(batches[1:], 1)]
    )
    counts = {place: places.count(place) / iterations for place in dict.fromkeys(places)}
    found = len(places) / iterations
    target = dict(name='host synchronisations of an iteration', target='0', measured=found)
    table = dict(title='Per iteration', columns=('place', 'times'))
    return dict(
        places=counts,
        targets=[target | dict(met=found == 0)],
        tables=[table | dict(rows=[list(item) for item in counts.items()])],
    )


def _waits(job: Callable[[], object]) -> list[str]:
    """File and line of each wait for the device in ``job``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            job()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return [f'{Path(w.filename).name}:{w.lineno}' for w in caught if 'synchroniz' in str(w.message)]


def float16(setting: Setting) -> dict:
    """The part: a training in float16 with a scaled loss, against float32."""
    rows, losses = [], {}
    for amp in (False, 'float16'):
        cfg = _digits('supernet', setting, f'float16_{amp}', short=setting.quick)
        cfg.optim_wrapper.amp = amp
        runner = apis.train(cfg)
        loss = _losses(runner)
        losses[amp] = loss
        scaler = runner.optim_wrapper.scaler
        scale = scaler.get_scale() if scaler.is_enabled() else None
        bad = runner.message_hub.runtime_info.get('bad_steps', 0)
        rows.append([amp or 'float32', loss[0], loss[-1], scale, bad])
    gap = abs(losses['float16'][-1] - losses[False][-1]) / losses[False][-1]
    columns = ('precision', 'first loss', 'last loss', 'scale at the end', 'steps left out')
    half = losses['float16'][-1] / losses['float16'][0]
    targets = [
        dict(name=name, target=f'<= {most}', measured=value, met=value <= most)
        for name, value, most in (
            ('last loss in float16 off that in float32, share', gap, 0.2),
            ('last loss in float16 / first', half, 1.0 if setting.quick else 0.7),
        )
    ]
    return dict(
        targets=targets,
        tables=[dict(title='Digits, stage 1', columns=columns, rows=rows)],
    )


def ddp(setting: Setting) -> dict:
    """The part: a training in one process of NCCL, or of gloo on a CPU, against one without."""
    _be_deterministic()
    alone = _digits('moLE', setting, 'alone')
    apis.train(alone)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    os.environ.update(place, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    cfg = _digits('moLE', setting, 'ddp')
    cfg.launcher = 'pytorch'
    runner = apis.train(cfg)
    backend, wrapper = torch.distributed.get_backend(), type(runner.model).__name__
    _check_router_moved(cfg)
    largest = _largest_difference(alone, cfg)
    target = dict(name=f'weights of {wrapper} over {backend} off those of one process')
    target |= dict(target='0', measured=largest, met=largest == 0)
    return dict(backend=backend, wrapper=wrapper, targets=[target])


def exact_resume(setting: Setting) -> dict:
    """The part: a training resumed with deterministic kernels ends with the same weights."""
    _be_deterministic()
    whole, resumed = (_digits('moLE', setting, name, warmup=1) for name in ('whole', 'resumed'))
    apis.train(whole)
    apis.train(resumed, resume=f'{whole.work_dir}/epoch_1.pth')
    _check_router_moved(resumed, f'{whole.work_dir}/epoch_1.pth')
    largest = _largest_difference(whole, resumed)
    target = dict(name='weights after a resume off those of an uninterrupted run', target='0')
    return dict(targets=[target | dict(measured=largest, met=largest == 0)])


def digits(setting: Setting) -> dict:
    """The part: all three stages on the digits, by the repository's configs."""
    epochs = (1, 1) if setting.quick else (30, 12)
    seconds, start, checkpoint = {}, time.monotonic(), None
    for stage, count in zip(('supernet', 'moLE'), epochs, strict=True):
        cfg = _digits(stage, setting, f'digits_{stage}', count, short=setting.quick)
        cfg.load_from = checkpoint
        apis.train(cfg)
        checkpoint = f'{cfg.work_dir}/epoch_{count}.pth'
        seconds[stage], start = time.monotonic() - start, time.monotonic()
    evolution = dict(population=4, generations=1, parents=2, mutations=1, crossovers=1, seed=0)
    cfg = _digits('search', setting, 'digits_search')
    if setting.quick:
        cfg.val_cfg.evolution = evolution
    apis.search(cfg, checkpoint)
    seconds['search'] = time.monotonic() - start
    best = json.loads((Path(cfg.work_dir) / 'best_subnet.json').read_text())
    cfg = _digits('moLE', setting, 'digits_test')
    found = apis.evaluate(cfg, checkpoint, dict(found=best['subnet']))
    return _end_to_end('digits', found['found/accuracy/top1'], seconds, setting)


def fashion(setting: Setting) -> dict:
    """The part: a supernet on Fashion-MNIST, by the repository's config, for some epochs."""
    folder = _fashion_folder(setting)
    epochs, start = 1 if setting.quick else 3, time.monotonic()
    cfg = load_config(CONFIGS / 'fashion_supernet.py', {'train_cfg.max_epochs': epochs})
    cfg.work_dir, cfg.experiment_name = str(setting.scratch('fashion')), 'gpu-check-fashion'
    _set_data_root(cfg._cfg_dict, folder)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    if setting.quick:
        cfg.train_dataloader.dataset.size = 60_000 - 1280
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    apis.train(cfg)
    seconds = dict(supernet=time.monotonic() - start)
    cfg.test_cfg.subnets = dict(largest='largest')
    found = apis.evaluate(cfg, f'{cfg.work_dir}/epoch_{epochs}.pth')
    return _end_to_end('fashion', found['largest/accuracy/top1'], seconds, setting)


def loading(setting: Setting) -> dict:
    """The part: images that a core of this machine reads and augments as ImageNet's config does.

    JPEG files of blurred noise, 500 x 375 pixels; real ones differ by their contents. Counted in
    seconds of the processor, which other load hardly changes.
    """
    from mmengine.dataset import Compose
    from mmpretrain.registry import TRANSFORMS

    cfg = load_config(CONFIGS / 'autoformer_t_supernet.py')
    folder, count = setting.scratch('loading'), 8 if setting.quick else 64
    paths, found = [_jpeg(folder / f'{i}.jpg', i) for i in range(count)], {}
    torch.set_num_threads(1)
    for name in ('train', 'test'):
        steps = cfg[f'{name}_pipeline']
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        pipeline(dict(img_path=str(paths[0]), gt_label=0))
        start = time.process_time()
        for path in paths:
            pipeline(dict(img_path=str(path), gt_label=0))
        found[name] = count / (time.process_time() - start)
    rows = [[name, value] for name, value in found.items()]
    table = dict(title='One core', columns=('pipeline', 'images/s'), rows=rows)
    return dict(images_per_core_second=found, cores=usable_cores(), tables=[table])


def _jpeg(path: Path, seed: int) -> Path:
    """A picture of blurred noise; its file is about as large as ImageNet's mean, 110 kB."""
    import numpy as np
    from PIL import Image, ImageFilter

    noise = np.random.default_rng(seed).integers(0, 256, (375, 500, 3), np.uint8)
    picture = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))
    picture.save(path, quality=94)
    return path


def _digits(
    stage: str, setting: Setting, name: str, epochs: int = 2, short: bool = True, warmup: int = 0
) -> Config:
    """A config of the digits that writes to the scratch folder.

    ``short``: 160 images, and the router is frozen for ``warmup`` epochs; the config's two would be
    all of them.
    """
    root = Path(setting.folder) / 'scratch' / 'digits_data'
    if not root.is_dir():
        _write_digits(root)
    cfg = load_config(CONFIGS / f'digits_{stage}.py')
    _set_data_root(cfg._cfg_dict, root)
    cfg.work_dir, cfg.experiment_name = str(setting.scratch(name)), f'gpu-check-{name}'
    cfg.load_from = None
    if stage != 'search':
        cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    if stage != 'search' and short:
        cfg.train_dataloader.batch_size = 16
        cfg.train_dataloader.dataset.times = 1
        cfg.train_dataloader.dataset.dataset.size = 1437 - 160
        for hook in cfg.get('custom_hooks') or ():
            if hook.type == 'tas_lora.MoLEHook':
                hook.router_warmup_epochs = warmup
    return cfg


def _write_digits(root: Path) -> None:
    """Write the digits by the repository's tool, all of them or none.

    Raises:
        SkippedError: If scikit-learn is missing.
    """
    unfinished = root.with_name(f'{root.name}_unfinished')  # also of a run that was killed
    arguments, sys.argv = sys.argv, ['prepare_digits.py', '--out', str(unfinished)]
    try:
        runpy.run_path(str(TOOLS / 'prepare_digits.py'), run_name='__main__')
    except SystemExit as stop:
        if stop.code:
            raise SkippedError('the digits need scikit-learn: pip install scikit-learn') from stop
    finally:
        sys.argv = arguments
    unfinished.rename(root)


def _fashion_folder(setting: Setting) -> Path:
    """A folder with the four files, unzipped; copied if they are zipped.

    Raises:
        SkippedError: If they are nowhere.
    """
    places = [setting.fashion] if setting.fashion else FASHION
    out = setting.scratch('fashion_data')
    for folder in map(Path, places):
        if all((folder / name).is_file() for name in FILES):
            return folder
        if all((folder / f'{name}.gz').is_file() for name in FILES):
            for name in FILES:
                write_atomic(out / name, gzip.decompress((folder / f'{name}.gz').read_bytes()))
            return out
    raise SkippedError(
        f'no Fashion-MNIST in {" or ".join(map(str, places))}: give its folder as --fashion, such '
        'as that of the Debian package dataset-fashion-mnist'
    )


def _set_data_root(node, root: Path) -> None:
    """Point every data set below ``node`` to ``root``."""
    if isinstance(node, dict):
        if 'data_root' in node:
            node['data_root'] = str(root)
        for value in node.values():
            _set_data_root(value, root)


def _be_deterministic() -> None:
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # read by the first product
    torch.use_deterministic_algorithms(True)


def _ready(cfg: Config):
    """A runner right before its first iteration."""
    runner = apis.prepare_training(cfg)
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 100)
    for point in ('before_run', 'before_train', 'before_train_epoch'):
        runner.call_hook(point)
    return runner


def _losses(runner) -> list[float]:
    return [float(value) for value in runner.message_hub.get_scalar('train/loss').data[0]]


def _largest_difference(one: Config, other: Config) -> float:
    """Largest difference of any weight after the second epoch."""
    first, second = (read_state_dict(f'{cfg.work_dir}/epoch_2.pth') for cfg in (one, other))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def _check_router_moved(cfg: Config, before: str | None = None) -> None:
    """Raise AssertionError if the second epoch has changed no weight of the router."""
    paths = before or f'{cfg.work_dir}/epoch_1.pth', f'{cfg.work_dir}/epoch_2.pth'
    first, second = map(read_state_dict, paths)
    if not any((first[n] != second[n]).any() for n in first if n.startswith('router.')):
        raise AssertionError('the router was not trained: it would be the same in any case')


def _end_to_end(name: str, top1: float, seconds: dict, setting: Setting) -> dict:
    goal = GOALS[name]
    met = None if setting.quick else top1 >= goal
    target = dict(name=f'{name}: test top-1, %', target=f'>= {goal:g}', measured=top1, met=met)
    rows = [[stage, value] for stage, value in seconds.items()]
    table = dict(title='Time', columns=('stage', 's'), rows=rows)
    return dict(top1=top1, stage_seconds=seconds, targets=[target], tables=[table])
