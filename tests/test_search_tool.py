"""The search tool's commands: several goals, random search, test, replay, picking a subnet."""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, call_tool

from tas_lora import Subnet, apis, read_subnet
from tas_lora.engine import SubnetTestLoop
from tas_lora.engine.search.candidate_evaluator import CandidateEvaluator
from tas_lora.engine.search.result import front_records

EVOLUTION = dict(population=6, generations=3, parents=3, mutations=2, crossovers=2)
RACE = dict(first=60, strata=2, controls=4)
SMALL = {'val_cfg.evolution': EVOLUTION, 'val_cfg.constraints': dict(params=(20e3, 60e3))}


@pytest.fixture
def searched(digits_config, tmp_path, shared, monkeypatch):
    """Runs ``tools/search.py`` on a small config; returns exit code and work directory."""
    monkeypatch.chdir(tmp_path)
    cfg, weights = digits_config('search', options=SMALL), shared / 'weights.pth'
    cfg.pop('work_dir')
    cfg.dump(tmp_path / 'search.py')
    if not weights.exists():
        torch.save(dict(state_dict=apis.load_supernet(cfg).state_dict()), weights)
    shutil.copy(weights, tmp_path)

    def run(*options, folder: str = 'out') -> tuple[int, Path]:
        arguments = ('search.py', 'weights.pth', '--work-dir', folder, '--no-report', *options)
        return call_tool('search.py', *arguments), tmp_path / folder

    return run


@pytest.fixture
def finished(searched, shared, tmp_path) -> Path:
    """The folder ``out`` of a search without options, the test's own; it is made once."""
    if not (shared / 'out').exists():
        code, folder = searched()
        assert code == 0
        shutil.copytree(folder, shared / 'out')
    else:
        shutil.copytree(shared / 'out', tmp_path / 'out')
    return tmp_path / 'out'


def result_of(folder: Path) -> dict:
    return json.loads((folder / 'best_subnet.json').read_text())


def lines_of(folder: Path, phase: str) -> list[dict]:
    lines = map(json.loads, (folder / 'search_history.jsonl').read_text().splitlines())
    return [line for line in lines if line['phase'] == phase]


def test_several_goals_give_a_front_that_nothing_beats(searched):
    code, folder = searched('--goals', 'params', 'flops')
    assert code == 0
    front = json.loads((folder / 'front.json').read_text())
    names = ('cross_entropy', 'params', 'flops')
    points = [[record[name] for name in names] for record in front]
    lines = [[line[name] for name in names] for line in lines_of(folder, 'search')]
    assert len(lines) == 18
    for point in lines:
        beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        assert beaten  # by itself, if it is on the front
    for point in points:
        assert not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in lines
        )
    assert result_of(folder)['goals'] == ['params', 'flops']


def test_a_random_search_of_as_many_subnets_is_reported(searched, capsys):
    code, folder = searched('--baseline')
    assert code == 0
    found, random = lines_of(folder, 'search'), lines_of(folder, 'baseline')
    assert len(found) == len(random) == 18
    best = min(line['cross_entropy'] for line in random)
    assert result_of(folder)['baseline']['cross_entropy'] == best
    captured = capsys.readouterr()
    assert f'{best:.4f} of random search' in captured.out
    assert 'Logging error' not in captured.err  # the logger has its stream back
    # What both drew was evaluated once.
    subnets = {str(line['subnet']) for line in found + random}
    assert result_of(folder)['candidates'] == len(subnets)
    assert result_of(folder)['images_evaluated'] == 287 * len(subnets)


@pytest.mark.full
@pytest.mark.usefixtures('finished')
def test_a_baseline_is_added_to_a_search_that_is_over(searched):
    code, folder = searched('--baseline', '--resume')
    assert code == 0
    assert len(lines_of(folder, 'search')) == len(lines_of(folder, 'baseline')) == 18
    whole = searched('--baseline', folder='other')[1]
    for name in ('search_history.jsonl', 'front.json'):
        assert (folder / name).read_text() == (whole / name).read_text()
    assert call_tool('search.py', '--replay', folder, '--no-report') == 0


@pytest.mark.full
def test_the_test_set_is_read_once_for_what_was_chosen(searched, monkeypatch):
    runs, run = [], SubnetTestLoop.run
    monkeypatch.setattr(SubnetTestLoop, 'run', lambda self: (runs.append(1), run(self))[1])
    code, folder = searched('--test', '--baseline')
    assert code == 0
    tested = result_of(folder)['test']
    assert set(tested) == {'found', 'random'}
    cfg = apis.load_config('search.py')
    cfg.work_dir = 'alone'
    expected = apis.evaluate(cfg, 'weights.pth', dict(found=result_of(folder)['subnet']))
    assert tested['found']['accuracy/top1'] == pytest.approx(expected['found/accuracy/top1'])
    assert len(runs) == 2  # one of them here
    assert searched('--test', '--baseline', '--resume')[0] == 0
    assert len(runs) == 2
    assert result_of(folder)['test'] == tested
    assert searched('--baseline', '--resume')[0] == 0
    assert result_of(folder)['test'] == tested


def test_a_search_is_repeated_from_its_result(finished, capsys):
    assert_repeated(finished, capsys)


@pytest.mark.full
def test_a_search_that_measured_is_repeated_from_its_result(searched, capsys):
    options = ('--cfg-options', 'val_cfg.measure.rounds=1', 'val_cfg.goals=[latency]')
    code, folder = searched(*options)
    assert code == 0
    assert_repeated(folder, capsys)


def assert_repeated(folder: Path, capsys) -> None:
    result = folder / 'best_subnet.json'
    assert call_tool('search.py', '--replay', result, '--no-report') == 0
    assert 'The same result: cross_entropy' in capsys.readouterr().out
    again = Path(f'{folder}_replay')
    for name in ('search_history.jsonl', 'front.json'):
        assert (folder / name).read_text() == (again / name).read_text()


def test_a_replay_that_differs_says_so(finished, capsys):
    result = result_of(finished)
    result['cross_entropy'] += 1
    (finished / 'best_subnet.json').write_text(json.dumps(result))
    assert call_tool('search.py', '--replay', finished / 'best_subnet.json', '--no-report') == 1
    assert 'Not the same result: cross_entropy was' in capsys.readouterr().out


def test_what_cannot_be_replayed(finished, capsys, tmp_path):
    capsys.readouterr()

    def error(*arguments) -> str:
        assert call_tool('search.py', *arguments) == 2
        return capsys.readouterr().err.splitlines()[-1]

    torch.save(dict(state_dict={}), tmp_path / 'others.pth')
    assert 'does not hold the weights of that search' in error('others.pth', '--replay', finished)
    (tmp_path / 'weights.pth').unlink()
    line = error('--replay', finished)
    assert 'weights.pth does not exist; give the file as CHECKPOINT' in line
    assert 'search result nowhere cannot be read: No such file' in error('--replay', 'nowhere')
    (tmp_path / 'subnet.json').write_text(json.dumps(result_of(finished)['subnet']))
    assert 'needs checkpoint_sha256' in error('--replay', 'subnet.json')
    assert 'give CONFIG and CHECKPOINT, or --replay RESULT' in error('search.py')
    line = error('--replay', finished, '--goals', 'params')
    assert 'leave out options that change it' in line


def test_a_replay_with_a_config_needs_that_of_the_search(searched, finished, capsys, tmp_path):
    """Only a config that the user names may name parts of his own."""
    changed = ('--cfg-options', 'val_cfg.evolution.seed=1')
    assert searched('--replay', finished, *changed, folder='again')[0] == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'is not that of the search: val_cfg.evolution.seed was 0, is 1 now' in line
    code, again = searched('--replay', finished, folder='again')
    assert code == 0
    assert 'The same result: cross_entropy' in capsys.readouterr().out
    assert result_of(again)['subnet'] == result_of(finished)['subnet']
    arguments = ('search.py', '--replay', finished, '--check-only')  # weights as recorded
    assert call_tool('search.py', *arguments) == 0


def test_lines_added_to_a_finished_search_are_refused(searched, finished, capsys):
    path = finished / 'search_history.jsonl'
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1] + '\n')
    assert searched('--resume')[0] == 2
    assert 'delete the last 1 lines' in capsys.readouterr().err.splitlines()[-1]
    path.write_text(text)
    assert searched('--resume')[0] == 0


def test_the_best_of_a_budget_is_read_off(searched, capsys, tmp_path):
    folder = searched('--goals', 'params')[1]
    lines = lines_of(folder, 'search')
    capsys.readouterr()
    for limit in sorted(line['params'] for line in lines)[2::5]:
        out = tmp_path / 'picked.json'
        assert call_tool('pick_subnet.py', folder, '--max', f'params={limit}', '--out', out) == 0
        picked = json.loads(out.read_text())
        scores = [line['cross_entropy'] for line in lines if line['params'] <= limit]
        assert picked['cross_entropy'] == min(scores)
        assert read_subnet(out) == Subnet.from_dict(picked['subnet'])
    assert call_tool('pick_subnet.py', folder, '--max', 'params=1000') == 2
    assert '1,000' in capsys.readouterr().err
    assert call_tool('pick_subnet.py', tmp_path) == 2
    assert 'best_subnet.json cannot be read: No such file' in capsys.readouterr().err
    assert call_tool('pick_subnet.py', folder, '--max', 'params=few') == 2


def test_after_a_race_an_estimate_may_be_the_best_of_a_budget(searched, capsys):
    options = [f'val_cfg.race.{name}={value}' for name, value in RACE.items()]
    folder = searched('--cfg-options', *options)[1]
    path = folder / 'search_history.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    smallest = min(lines, key=lambda line: line['params'])
    smallest.update(images=60, error=0.0123)  # as of one that was dropped
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    capsys.readouterr()
    assert call_tool('pick_subnet.py', folder, '--max', f'params={smallest["params"]}') == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)['subnet'] == smallest['subnet']
    assert 'is an estimate, with a standard error of 0.012' in captured.err


@pytest.fixture
def ctrl_c():
    """As in a terminal; a test runner may have its processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('ctrl_c')
@pytest.mark.parametrize(
    'number', [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
)
def test_a_signal_ends_a_search_that_can_go_on(searched, finished, capsys, monkeypatch, number):
    predict, left = CandidateEvaluator._predict, [7]

    def predict_and_signal(self, task, evaluator):
        predict(self, task, evaluator)
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(CandidateEvaluator, '_predict', predict_and_signal)
        code, folder = searched(folder='stopped')
    assert code == 75
    assert '6 candidates are scored and on disk, continue with --resume' in capsys.readouterr().out
    assert signal.getsignal(number) == before
    assert searched('--resume', folder='stopped')[0] == 0
    for name in ('search_history.jsonl', 'front.json'):
        assert (folder / name).read_text() == (finished / name).read_text()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--goals', 'speed'], "val_cfg.goals must be some of ('params', 'flops')"),
        (['--goals', 'latency'], 'val_cfg.goals must be some of'),
        (['--cfg-options', 'val_cfg.constraints.latency=(0,1)'], 'only if val_cfg.measure is set'),
        (['--cfg-options', 'val_cfg.measure.rounds=0'], 'val_cfg.measure.rounds must be a pos'),
        (['--cfg-options', 'val_cfg.measure.runs=3'], 'val_cfg.measure must be a dict of'),
        (['--cfg-options', 'val_cfg.race.first=20'], 'val_cfg.race.first is 20: too few images'),
        (['--cfg-options', 'val_cfg.race=3'], 'val_cfg.race must be a dict or None, got 3'),
        (
            ['--cfg-options', 'val_cfg.race.first=500', 'val_cfg.score=accuracy/top1'],
            'val_cfg.race compares losses image by image',
        ),
        (
            ['--goals', 'params', '--cfg-options', 'val_cfg.surrogate=True'],
            'val_cfg.surrogate preselects by score alone',
        ),
        (['--cfg-options', 'val_cfg.surrogate=3'], 'val_cfg.surrogate must be True or False'),
        (['--test', '--cfg-options', 'test_cfg=None'], 'has no test_cfg'),
        (
            ['--work-dir', 'weights.pth'],
            'weights.pth cannot be a folder: weights.pth is a file;',
        ),
    ],
)
def test_options_that_make_no_sense(searched, capsys, options, message):
    assert searched(*options)[0] == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_test_that_cannot_be_is_refused_before_the_search(searched, tmp_path, capsys):
    text = (tmp_path / 'search.py').read_text()
    (tmp_path / 'search.py').write_text(text + "\ntest_cfg = dict(type='TestLoop')\n")
    for options in (['--test'], ['--test', '--check-only']):
        code, folder = searched(*options)
        assert code == 2
        assert '--test needs test_cfg=dict(' in capsys.readouterr().err.splitlines()[-1]
        assert not folder.exists()


def test_check_only_searches_nothing(searched):
    code, folder = searched('--check-only')
    assert code == 0
    assert not (folder / 'search.json').exists()


def test_usage_of_the_script():
    script = ROOT / 'tools' / 'dist_search.sh'
    for arguments, said in ((['a', 'b'], 'usage: '), (['a', 'b', 'two'], 'GPUS must be a number')):
        done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_tensorboard_is_written_to_unless_the_config_says_where():
    cfg = apis.load_config(ROOT / 'configs' / 'digits_search.py')
    apis._add_tensorboard(cfg)
    names = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert names == ['LocalVisBackend', 'TensorboardVisBackend']
    apis._add_tensorboard(cfg)
    assert len(cfg.visualizer.vis_backends) == 2


def test_a_subnet_too_large_for_the_device_is_on_no_front():
    """Its latency is infinite; pymoo's knees would fail on that at the end of a search."""
    base = dict(phase='search', precision='float32', error=0.0, images=9)
    costs = [
        (0.1, float('inf')),
        (0.2, 3.0),
        (0.3, 2.0),
        (0.4, 2.5),
        (0.5, 1.0),
        (0.0, float('nan')),
    ]
    lines = [dict(base, loss=loss, latency=latency) for loss, latency in costs]
    study = SimpleNamespace(lines=lines, score='loss', sign=1)
    front = front_records(study, ('latency',), 'search', 'float32')
    assert [record['loss'] for record in front] == [0.2, 0.3, 0.5]
    assert front_records(study, ('latency',), 'baseline', 'float32') == []
