"""Speed and memory of the sizes on a device, against networks of the same widths."""

import gc
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ..costs import benchmark
from ..costs.reference_models import loss_of, multiply_adds, optimizers_of, training_step
from ..costs.space_timing import time_evaluations
from ..costs.timing import matrix_rate, milliseconds
from ..models.layers import compile_branches
from ..search import count_params
from ..structures import SearchSpace
from .parity import size_config
from .runs import Setting

PRECISIONS = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CONTESTANTS = ('static', 'ours', 'naive', 'unmerged', 'mmpretrain', 'finetune')
TARGETS = dict(train=1.15, eval=1.15)  # T at batch 256 against static
MERGE_LAUNCHES = 60
ROUNDS = 5


def rates(setting: Setting) -> dict:
    """The part: multiply-adds a second of one large product, by precision."""
    patience = 0.02 if setting.quick else 0.5
    found = {
        name: matrix_rate(setting.device, dtype, patience=patience)
        for name, dtype in PRECISIONS.items()
    }
    table = dict(title='One large product', columns=('precision', 'TMAC/s'), rows=[])
    table['rows'] = [[name, rate / 1e12] for name, rate in found.items()]
    return dict(rates=found, tables=[table])


def size_speed(size: str, batch: int, names: tuple[str, ...], setting: Setting) -> dict:
    """The part: training and evaluation in bfloat16 at a batch size, and peak memory."""
    count = 2 if setting.quick else batch
    rate = matrix_rate(setting.device, torch.bfloat16, patience=0.02 if setting.quick else 0.2)
    config, subnet = _drawn(size, setting)
    models = benchmark.contestants(config.model, subnet, setting.device, names)
    rows = None
    with suppress(torch.OutOfMemoryError):
        rows = _at_batch(models, subnet, count, rate, setting)
    if rows is None:  # each fitted, but not after the others; the error, now gone, held tensors
        del models
        _free(setting)
        models = benchmark.contestants(config.model, subnet, setting.device, ('static', 'ours'))
        rows = _at_batch(models, subnet, count, rate, setting)
    return dict(
        rate=rate,
        batches={count: rows},
        subnet=subnet.to_dict(),
        params=count_params(subnet, **benchmark.supernet(config.model).image_spec),
        tables=[_speed_table(size, count, rows)],
        targets=_speed_targets(rows) if (size, count) == ('t', 256) else [],
    )


def compiled(setting: Setting) -> dict:
    """The part: T at batch 256 with blocks compiled, ours and static.

    Of the largest subnet, all blocks of which have the same widths: others take minutes to compile.
    """
    config = size_config('t', setting)
    subnet = SearchSpace.coerce(config.space).largest()
    if setting.quick:  # compiling takes longer than a quick check; the same code runs without
        torch.compiler.set_stance('force_eager')
    models = benchmark.contestants(config.model, subnet, setting.device, ('static', 'ours'))
    others = benchmark.contestants(config.model, subnet, setting.device, ('static', 'ours'))
    compile_branches(others['ours'].backbone.blocks)
    for block in others['static'].blocks:
        block.compile(dynamic=False)
    models |= {f'{name} compiled': model for name, model in others.items()}
    rate = matrix_rate(setting.device, torch.bfloat16, patience=0.02 if setting.quick else 0.2)
    count = 2 if setting.quick else 256
    rows = _at_batch(models, subnet, count, rate, setting)
    return dict(rate=rate, batches={count: rows}, tables=[_speed_table('t', count, rows)])


def search_speed(setting: Setting) -> dict:
    """The part: what a candidate costs, route and merge included, against static."""
    found, rows = {}, []
    for size in 'tsb':
        config, subnet = _drawn(size, setting)
        models = benchmark.contestants(config.model, subnet, setting.device, ('static', 'ours'))
        space, ours = SearchSpace.coerce(config.space), models['ours']
        count = 2 if setting.quick else 256
        images, labels = benchmark.batch_of(ours.image_spec, count, setting.device)
        hops = benchmark.measure_hops(ours, space, (images[:64], labels[:64]), _rounds(setting))
        with torch.autocast(setting.device, torch.bfloat16):
            times = time_evaluations(ours, {'drawn': subnet}, images, _rounds(setting))
        static = benchmark.measure_evaluation(
            {'static': models['static']}, images, _rounds(setting), amp=True, low=False
        )['static']
        merge, forward = (milliseconds(times[part]['drawn']) for part in ('merge', 'forward'))
        found[size] = dict(
            hops_ms={name: milliseconds(seconds) for name, seconds in hops.items()},
            merge_ms=merge,
            forward_ms=forward,
            static_ms=milliseconds(static),
            batch=count,
        )
        batches = 10_000 / count
        ours_s = (merge['median'] + batches * forward['median']) / 1e3
        static_s = batches * found[size]['static_ms']['median'] / 1e3
        rows.append([size.upper(), merge['median'], forward['median'], ours_s, ours_s / static_s])
        _free(setting)
    columns = ('size', 'route and merge, ms', 'a batch, ms', '10,000 images, s', 'against static')
    return dict(sizes=found, tables=[dict(title='A candidate', columns=columns, rows=rows)])


def memory(setting: Setting) -> dict:
    """The part: what autograd keeps, counted, and the peak of a step in float32 and bfloat16."""
    config, subnet = _drawn('t', setting)
    names = ('static', 'ours', 'naive', 'unmerged', 'finetune')
    count, rows, found = 2 if setting.quick else 64, [], {}
    for name in names:
        model = benchmark.contestants(config.model, subnet, setting.device, (name,))[name]
        batch = benchmark.batch_of(
            benchmark.supernet(config.model).image_spec, count, setting.device
        )
        kept = {
            amp: benchmark.measure_activations({name: model}, batch, amp)[name] / 2**20
            for amp in (False, True)
        }
        peaks = {amp: _peak(training_step(model, *batch, amp), setting) for amp in (False, True)}
        found[name] = dict(saved_mib=list(kept.values()), peak_mib=list(peaks.values()))
        rows.append([name, *kept.values(), *peaks.values()])
        _free(setting)
    ratio = found['ours']['saved_mib'][0] / found['static']['saved_mib'][0]
    columns = ('contestant', 'kept, float32', 'kept, bfloat16', 'peak, float32', 'peak, bfloat16')
    target = dict(name='T, activations kept / static, float32', target='<= 1.25', measured=ratio)
    return dict(
        contestants=found,
        batch=count,
        targets=[] if setting.quick else [target | dict(met=ratio <= 1.25)],
        tables=[dict(title=f'T, MiB of a step at batch {count}', columns=columns, rows=rows)],
    )


def launches(setting: Setting) -> dict:
    """The part: kernels of each piece of a step of T; on a CPU, operations."""
    counts, on_gpu = _pieces(setting), setting.device == 'cuda'
    measured = counts['merge'] if on_gpu else None
    target = dict(name='T, kernels of the merge', target=f'<= {MERGE_LAUNCHES}', measured=measured)
    table = dict(title='T', columns=('piece', 'kernels' if on_gpu else 'operations'))
    return dict(
        counts=counts,
        targets=[target | dict(met=measured <= MERGE_LAUNCHES if on_gpu else None)],
        tables=[table | dict(rows=[list(item) for item in counts.items()])],
    )


def _pieces(setting: Setting) -> dict[str, int]:
    """Kernels of each piece of a step of T, ours and static."""
    config, subnet = _drawn('t', setting)
    models = benchmark.contestants(config.model, subnet, setting.device, ('static', 'ours'))
    ours, static = models['ours'], models['static']
    batch = benchmark.batch_of(ours.image_spec, 2, setting.device)
    held, optimizers = {}, optimizers_of(ours)

    def hold(name: str, value) -> None:
        held[name] = value

    pieces = {
        'route': lambda: hold('gates', ours.router(subnet)),
        'merge': lambda: ours.backbone.merge_experts(subnet, held['gates']),
        'forward': lambda: hold('loss', loss_of(ours, *batch, True)),
        'backward': lambda: held['loss'].backward(),
        'optimizers': lambda: [optimizer.step() for optimizer in optimizers],
        'static forward': lambda: hold('static', loss_of(static, *batch, True)),
        'static step': training_step(static, *batch, True),
    }
    for job in pieces.values():  # a first call also chooses and builds kernels
        job()
    return {name: _count(job, setting) for name, job in pieces.items()}


def _drawn(size: str, setting: Setting):
    """Config of a size, and a subnet drawn from it."""
    config = size_config(size, setting)
    return config, SearchSpace.coerce(config.space).sample(np.random.default_rng(0))


def _rounds(setting: Setting) -> int:
    return 1 if setting.quick else ROUNDS


def _at_batch(
    models: dict[str, nn.Module], subnet, count: int, rate: float, setting: Setting
) -> dict[str, dict]:
    """Speed of the contestants that fit into memory, and peaks; of the others, why not."""
    spec = next(m.image_spec for m in models.values() if hasattr(m, 'image_spec'))
    batch, rows = benchmark.batch_of(spec, count, setting.device), {}
    for name in list(models):
        rows[name] = dict(out_of_memory=True)
        with suppress(torch.OutOfMemoryError):
            rows[name] = dict(peak_mib=_peak(training_step(models[name], *batch, True), setting))
        if 'out_of_memory' in rows[name]:  # outside, where no error holds tensors of the step
            models.pop(name).zero_grad()
            _free(setting)
    training = benchmark.measure_training(models, batch, _rounds(setting), amp=True)
    images, low = batch[0], False
    evaluation = benchmark.measure_evaluation(models, images, _rounds(setting), True, low)
    kinds = {name: name.removesuffix(' compiled') for name in models}
    products = {None: multiply_adds(subnet, spec)}
    products |= {name: multiply_adds(subnet, spec, kind) for name, kind in kinds.items()}
    speeds = benchmark.throughput(training, evaluation, (count, count), products, (rate, rate))
    for name, speed in speeds.items():
        rows[name] |= speed
        for what, seconds in (('train', training), ('eval', evaluation)):
            rows[name][what]['vs_static'] = benchmark.ratio(seconds[name], seconds['static'])
    return rows


def _peak(step, setting: Setting) -> float | None:
    """Peak of two steps in MiB, weights included; None on a CPU."""
    if setting.device == 'cpu':
        step()
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    return torch.cuda.max_memory_allocated() / 2**20


def _free(setting: Setting) -> None:
    gc.collect()  # models refer to themselves
    if setting.device == 'cuda':
        torch.cuda.empty_cache()


def _count(job, setting: Setting) -> int:
    """Kernels that ``job`` launches; on a CPU, operations other than views."""
    if setting.device == 'cpu':
        with _Operations() as counter:
            job()
        return counter.count
    torch.cuda.synchronize()  # kernels of what came before would be counted
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        job()
        torch.cuda.synchronize()
    return _kernels(profiler.events())


def _kernels(events: Iterable) -> int:
    """Kernels among the events of a profiler.

    Raises:
        RuntimeError: If there are none: the profiler sees nothing, and a count would be wrong.
    """
    found = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    count = sum(not event.name.startswith(('Memcpy', 'Memset')) for event in found)
    if not count:
        raise RuntimeError('the profiler sees no kernel; may it use the counters of this GPU?')
    return count


_NO_WORK = ('_unsafe_view', 'empty', 'empty_like', 'empty_strided', 'new_empty')


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func.overloadpacket.__name__ not in _NO_WORK
        return func(*args, **(kwargs or {}))


def _speed_table(size: str, count: int, rows: Mapping[str, Mapping]) -> dict:
    columns = ['contestant']
    for what in ('train', 'eval'):
        columns += [f'{what} images/s', f'{what} of the limit', f'{what} / static']
    lines = []
    for name, row in rows.items():
        line = [name]
        for what in ('train', 'eval'):
            speed = row.get(what, {})
            keys = ('images_per_second', 'share_of_limit', 'vs_static')
            line += [speed[key]['median'] if key in speed else None for key in keys]
        lines.append([*line, 'out of memory' if 'out_of_memory' in row else row['peak_mib']])
    title = f'{size.upper()}, batch {count}, bfloat16'
    return dict(title=title, columns=[*columns, 'peak MiB'], rows=lines)


def _speed_targets(rows: Mapping[str, Mapping]) -> list[dict]:
    """Whether T at batch 256 is near static."""
    targets = []
    for what, limit in TARGETS.items():
        row = rows['ours'].get(what)  # None if it was out of memory
        value = row and row['vs_static']['median']
        met = None if value is None else value <= limit
        name = f'T, batch 256, bfloat16: {what} / static'
        targets.append(dict(name=name, target=f'<= {limit}', measured=value, met=met))
    return targets


SPEED = {
    (size, batch): partial(size_speed, size, batch, CONTESTANTS)
    for size, batch in (('t', 256), ('t', 64), ('t', 1024), ('s', 256), ('b', 256))
}
