"""--check-only runs a batch through everything and writes nothing; names are checked early."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS, TRANSFORMS

from tas_lora import UserError, apis
from tas_lora.engine.search.identity import begin_search, search_identity

NAMES = 'largest/accuracy/top1, smallest/accuracy/top1'


class TripError(RuntimeError):
    pass


def trip(self, *args, **kwargs):
    raise TripError('on purpose')


@HOOKS.register_module(force=True)
class TrippingHook(Hook):
    def __init__(self, point: str):
        setattr(self, point, lambda *args, **kwargs: trip(self))


@METRICS.register_module(force=True)
class TrippingMetric(BaseMetric):
    process = compute_metrics = trip


@METRICS.register_module(force=True)
class LateTrippingMetric(BaseMetric):
    compute_metrics = trip

    def process(self, data_batch, data_samples):
        self.results += list(data_samples)


@METRICS.register_module(force=True)
class CountingMetric(BaseMetric):
    """Its score is the number of images, and it notes how many labels they have."""

    default_prefix = 'seen'
    found: list = []

    def process(self, data_batch, data_samples):
        self.results += [int(sample['gt_label']) for sample in data_samples]

    def compute_metrics(self, results):
        self.found.append(sorted(results))
        return dict(images=len(results))


@HOOKS.register_module(force=True)
class NotingHook(Hook):
    """Notes what is called, and the weights at the end."""

    calls: list = []

    def before_train(self, runner):
        self.calls.clear()
        weights = [p.detach().clone() for p in runner.model.parameters()]
        self.before = weights

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append(('train', len(data_batch['inputs'])))

    def before_save_checkpoint(self, runner, checkpoint):
        self.calls.append(('save', sorted(checkpoint)))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append(('val', len(data_batch['inputs'])))

    def after_train(self, runner):
        after = runner.model.parameters()
        moved = any(not torch.equal(a, b) for a, b in zip(self.before, after, strict=True))
        self.calls.append(('moved', moved))


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob('*'))


@pytest.mark.parametrize('options', [{}, {'optim_wrapper.accumulative_counts': 4}])
def test_a_rehearsal_takes_one_batch_of_each_and_writes_nothing(
    digits_config, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    cfg = digits_config('supernet', options=options)
    cfg.custom_hooks = [dict(type='NotingHook'), dict(type='EMAHook')]
    cfg.default_hooks.checkpoint.update(save_best='auto', interval=50, out_dir=str(tmp_path / 'x'))
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='DumpResults', out_file_path='dump.pkl')]
    before = cfg.to_dict()
    apis.check_training(cfg)
    assert files_below(tmp_path) == []
    assert cfg.to_dict() == before
    kinds = [name for name, _ in NotingHook.calls]
    assert kinds == ['train', 'save', 'val', 'val', 'save', 'save', 'moved']
    assert NotingHook.calls[0] == ('train', 16)
    assert NotingHook.calls[2] == ('val', 287)  # all that are held out, less than a batch
    assert NotingHook.calls[-1] == ('moved', True)  # also with gradient accumulation


def test_a_rehearsed_validation_sees_images_from_all_over_the_data(digits_config):
    """The first images of sorted data are all of one class, which breaks some metrics."""
    cfg = digits_config('supernet', images=400)
    cfg.val_dataloader.batch_size = 50
    cfg.val_evaluator = dict(type='CountingMetric')
    CountingMetric.found.clear()
    apis.check_training(cfg)
    assert [len(labels) for labels in CountingMetric.found] == [50, 50]
    assert len(set(CountingMetric.found[0])) == 10


def test_a_checkpoint_of_another_run_keeps_its_files(digits_config, tmp_path):
    cfg = digits_config('supernet', images=64)
    cfg.default_hooks.checkpoint.update(save_best='largest/accuracy/top1')
    apis.train(cfg)
    work = Path(cfg.work_dir)
    before = {path: path.stat().st_mtime_ns for path in files_below(work)}
    assert any('best' in path.name for path in before)
    cfg.resume, cfg.load_from = True, str(work / 'epoch_1.pth')
    apis.check_training(cfg)
    assert {path: path.stat().st_mtime_ns for path in files_below(work)} == before


def test_a_resume_that_would_be_refused_is_refused(digits_config):
    cfg = digits_config('supernet', images=64)
    cfg.train_cfg.max_epochs = 1
    apis.train(cfg)
    work = Path(cfg.work_dir)
    before = {path: path.stat().st_mtime_ns for path in files_below(work)}
    cfg.load_from, cfg.resume = None, False
    apis.check_training(cfg, resume=True)
    cfg.train_dataloader.batch_size = 8
    apis.check_training(cfg)
    with pytest.raises(UserError, match='train_dataloader.batch_size was 16, is 8 now'):
        apis.check_training(cfg, resume=True)
    cfg.resume = True
    with pytest.raises(UserError, match='train_dataloader.batch_size was 16, is 8 now'):
        apis.check_training(cfg)
    cfg.train_cfg.allow_changes = True
    apis.check_training(cfg)
    assert cfg.load_from is None
    assert {path: path.stat().st_mtime_ns for path in files_below(work)} == before


def test_a_profiler_leaves_no_trace(digits_config, tmp_path):
    cfg = digits_config('supernet', images=64)
    cfg.custom_hooks = [dict(type='ProfilerHook', json_trace_path=str(tmp_path / 'trace.json'))]
    apis.check_training(cfg)
    assert files_below(tmp_path) == []


SAVE_BEST = {'default_hooks.checkpoint.save_best': 'accuracy/top1'}
STOP = {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='accuracy/top1')]}
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='val/loss', rule='less')
MONITORED = [
    (SAVE_BEST, "default_hooks.checkpoint.save_best is 'accuracy/top1'"),
    (STOP, "custom_hooks.0.monitor is 'accuracy/top1'"),
    ({'param_scheduler': [PLATEAU]}, "param_scheduler.0.monitor is 'val/loss'"),
]


@pytest.mark.parametrize(('options', 'message'), MONITORED)
@pytest.mark.parametrize('start', [apis.check_training, apis.train])
def test_names_of_metrics_are_checked_at_the_start(digits_config, options, message, start):
    cfg = digits_config('supernet', images=64, options=options)
    if 'param_scheduler' in options:
        cfg.param_scheduler = options['param_scheduler']
    with pytest.raises(UserError) as caught:
        start(cfg)
    assert str(caught.value).startswith(message)
    assert NAMES in str(caught.value)
    assert not list(Path(cfg.work_dir).glob('*.pth'))


def test_a_score_that_is_no_number_cannot_be_saved_by(digits_config):
    cfg = digits_config('supernet', images=64)
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='ConfusionMatrix')]
    cfg.default_hooks.checkpoint.update(save_best='largest/confusion_matrix/result', rule='greater')
    with pytest.raises(UserError, match=f'the numbers that validation gives are {NAMES};'):
        apis.train(cfg)


@pytest.mark.full
def test_right_names_start_the_same_training(digits_config):
    """What a start looks at changes no weights: random states are put back."""
    states = []
    for options in ({}, {'default_hooks.checkpoint.save_best': 'largest/accuracy/top1'}):
        cfg = digits_config('supernet', images=64, options=options)
        cfg.work_dir += str(len(states))
        apis.train(cfg)
        found = torch.load(Path(cfg.work_dir) / 'epoch_2.pth', weights_only=False)
        states.append(found['state_dict'])
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


FAULTS = [
    ('custom_hooks', [dict(type='TrippingHook', point='after_val_epoch')], 'custom_hooks.0', 'val'),
    (
        'custom_hooks',
        [dict(type='TrippingHook', point='after_train_epoch')],
        'custom_hooks.0',
        'tr',
    ),
    ('val_evaluator', [dict(type='TrippingMetric')], 'val_evaluator.0', 'val'),
    ('val_evaluator', [dict(type='LateTrippingMetric')], 'val_evaluator.0', 'val'),
]


@pytest.mark.parametrize(('field', 'value', 'place', 'stage'), FAULTS)
def test_what_fails_in_a_rehearsal_is_named(digits_config, field, value, place, stage):
    cfg = digits_config('supernet', images=64)
    cfg[field] = value
    with pytest.raises(UserError) as caught:
        apis.check_training(cfg)
    stage = dict(val='the first validation', tr='the first training step')[stage]
    assert str(caught.value).startswith(f'{place}: {stage} fails: ')
    assert '\n' not in str(caught.value)


@TRANSFORMS.register_module(force=True)
class Tripping:
    def __call__(self, results):
        trip(self)


@pytest.mark.parametrize('part', ['train', 'val'])
def test_a_transform_that_fails_is_said_at_once(digits_config, part):
    cfg = digits_config('supernet', images=64)
    node = cfg[f'{part}_dataloader'].dataset
    while 'pipeline' not in node:
        node = node.dataset
    node.pipeline = [dict(type='Tripping'), dict(type='PackInputs')]
    with pytest.raises(UserError, match='TripError: on purpose'):
        apis.check_training(cfg)


@pytest.mark.full
def test_schedules_by_iteration_and_late_hooks_are_no_mistake(digits_config):
    cfg = digits_config('supernet', images=64)
    cfg.custom_hooks = [dict(type='tas_lora.ComplexityAwareLRHook', begin=1)]
    cfg.train_cfg.update(val_interval=2, val_begin=2)
    cfg.custom_hooks += [dict(type='NotingHook')]
    apis.check_training(cfg)
    assert ('val', 287) in NotingHook.calls
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=50, val_interval=50)
    cfg.val_cfg = cfg.test_cfg = dict()  # of one network
    cfg.custom_hooks = [dict(type='NotingHook')]
    apis.check_training(cfg)
    kinds = [name for name, _ in NotingHook.calls]
    assert kinds.count('train') == 1
    assert 'val' in kinds


@pytest.mark.full
def test_experts_are_rehearsed(digits_config):
    cfg = digits_config('moLE', images=64)
    cfg.custom_hooks += [
        dict(type='tas_lora.SimilarityHook', images=16, subnets=2, gate_draws=5),
        dict(type='NotingHook'),
    ]
    apis.check_training(cfg)
    assert NotingHook.calls[-1] == ('moved', True)


@pytest.fixture
def search(digits_config, tmp_path, monkeypatch):
    """Checks a search with metrics; ``search('Accuracy', ..., score=...)``."""
    monkeypatch.chdir(tmp_path)
    cfg = digits_config('search', images=64)
    weights = apis.load_supernet(cfg).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')

    def check(*metrics, test=False, **options) -> None:
        cfg.val_cfg.update(options)
        cfg.val_evaluator = [dict(type=metric) for metric in metrics]
        apis.check_search(cfg, 'weights.pth', test=test)

    check.cfg = cfg
    return check


RACE = dict(first=20, strata=1, controls=2)


def test_a_search_is_rehearsed_and_writes_nothing(search, tmp_path):
    search('tas_lora.CrossEntropy', 'Accuracy', 'ConfusionMatrix', race=RACE)
    search('tas_lora.CrossEntropy', 'Accuracy', precision='bfloat16', test=True)
    assert [path.name for path in files_below(tmp_path)] == ['weights.pth']


def test_another_search_is_not_resumed(search, tmp_path):
    """As the start would say."""
    work = Path(search.cfg.work_dir)
    work.mkdir()
    options = dict(race=RACE, resume=True)
    search('tas_lora.CrossEntropy', **options)  # nothing to resume yet
    loop = apis.prepare_search(search.cfg, 'weights.pth').val_loop
    identity = search_identity(loop.runner.cfg, 'weights.pth', loop.images.fingerprint())
    begin_search(work, identity, resume=True)
    before = (work / 'search.json').read_bytes()
    search('tas_lora.CrossEntropy', **options)
    with pytest.raises(UserError, match='is of another search: val_cfg.race.first was 20, is 30'):
        search('tas_lora.CrossEntropy', **options | dict(race=RACE | dict(first=30)))
    assert (work / 'search.json').read_bytes() == before
    (work / 'search.json').rename(work / 'search_history.jsonl')
    with pytest.raises(UserError, match=r'has search_history.jsonl, but not search.json'):
        search('tas_lora.CrossEntropy', **options)


def test_a_search_without_its_score_is_refused(search):
    with pytest.raises(UserError, match=r"score is 'cross_entropy', but .* \['accuracy/top1'\]"):
        search('Accuracy')
    with pytest.raises(UserError, match='gives no number to rank subnets by'):
        search('ConfusionMatrix', score='confusion_matrix/result', rule='greater')
    known = dict(score='cross_entropy', rule='less')
    with pytest.raises(UserError, match=r'^val_evaluator.1: .* fails: TripError: on purpose'):
        search('tas_lora.CrossEntropy', 'LateTrippingMetric', **known)
    search.cfg.test_evaluator = [dict(type='LateTrippingMetric')]
    with pytest.raises(UserError, match=r'^test_evaluator.0: the first batch of the test fails'):
        search('tas_lora.CrossEntropy', test=True, **known)


def test_the_tool_prints_one_line(digits_root, tmp_path, capsys):
    config, root = ROOT / 'configs' / 'digits_supernet.py', str(digits_root)
    options = [
        f'train_dataloader.dataset.dataset.dataset.data_root={root}',
        f'val_dataloader.dataset.dataset.data_root={root}',
        'val_evaluator.type=LateTrippingMetric',
    ]
    arguments = ('--check-only', '--work-dir', tmp_path / 'w', '--cfg-options', *options)
    assert call_tool('train.py', config, *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert line.startswith(
        'error: val_evaluator: the first validation fails: TripError: on purpose'
    )
    assert not (tmp_path / 'w').exists()


def test_matrices_go_into_the_json_of_a_test_as_lists(digits_root, tmp_path):
    config, root = ROOT / 'configs' / 'digits_supernet.py', str(digits_root)
    weights = apis.load_supernet(apis.load_config(config)).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(config)!r}\n'
        f'test_dataloader = dict(dataset=dict(data_root={root!r}))\n'
        "test_evaluator = [dict(type='Accuracy'), dict(type='ConfusionMatrix'),\n"
        "    dict(type='SingleLabelMetric', average=None, items=('support',))]\n"
    )
    options = ('--work-dir', tmp_path / 'work', '--out', tmp_path / 'out.json')
    assert call_tool('test.py', tmp_path / 'config.py', tmp_path / 'weights.pth', *options) == 0
    found = json.loads((tmp_path / 'out.json').read_text())
    matrix = found['largest/confusion_matrix/result']
    assert sum(map(sum, matrix)) == 360
    support = found['largest/single-label/support_classwise']
    assert support == [sum(row) for row in matrix]
    right = sum(row[i] for i, row in enumerate(matrix))
    assert found['largest/accuracy/top1'] == pytest.approx(100 * right / 360, abs=1e-4)
