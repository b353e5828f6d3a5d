"""Files of version 0.1 are still read, with the same meaning; data/v0_1/README.md lists them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import call_tool
from mmengine.config import Config

from tas_lora import Subnet, UserError, load_supernet, read_subnet
from tas_lora.models.plain_vit import load_plain_vit

FILES = Path(__file__).parent / 'data' / 'v0_1'
EXPECTED = json.loads((FILES / 'expected.json').read_text())
SUBNETS = {name: Subnet.from_dict(subnet) for name, subnet in EXPECTED['subnets'].items()}
IMAGES = torch.linspace(-2, 2, 128).sin().view(2, 1, 8, 8)
LAST = dict(supernet=59, moLE=9)  # recorded epochs, each the last but one of its training


@pytest.fixture(autouse=True)
def user(digits_root, tmp_path, monkeypatch):
    """The folder of a user of 0.1, and we are in it."""
    folder = shutil.copytree(FILES, tmp_path / 'user')
    (folder / 'data').mkdir()
    (folder / 'data' / 'digits').symlink_to(digits_root)
    monkeypatch.chdir(folder)


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


def assert_logits(stage: str, epoch: int, expected: dict, tolerance: float) -> None:
    model = load_supernet(f'{stage}.py', f'runs/{stage}/epoch_{epoch}.pth')
    for name, subnet in SUBNETS.items():
        model.set_subnet(subnet)
        with torch.no_grad():
            found = model(IMAGES, mode='tensor')
        torch.testing.assert_close(
            found, torch.tensor(expected[name]), atol=tolerance, rtol=tolerance
        )


def assert_same_result(folder: str, recorded: str) -> None:
    """The same subnet, as good; the last digits of scores differ between machines."""
    found, expected = (read(f'{path}/best_subnet.json') for path in (folder, FILES / recorded))
    for name in ('subnet', 'score', 'rule', 'goals', 'params', 'flops', 'candidates'):
        assert found[name] == expected[name], name
    assert found['cross_entropy'] == pytest.approx(expected['cross_entropy'], rel=1e-5)
    fronts = [read(f'{path}/front.json') for path in (folder, FILES / recorded)]
    assert [line['subnet'] for line in fronts[0]] == [line['subnet'] for line in fronts[1]]
    gates = [read(f'{path}/gates.json') for path in (folder, FILES / recorded)]
    assert gates[0].keys() == gates[1].keys()
    for layer, shares in gates[1].items():
        assert gates[0][layer] == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize('stage', LAST)
def test_checkpoints_give_the_same_logits(stage):
    assert_logits(stage, LAST[stage], EXPECTED[stage], 1e-5)


@pytest.mark.parametrize('stage', LAST)
def test_trainings_go_on_as_they_would_have(stage):
    """The epoch that is missing is trained, and ends where 0.1 did."""
    last, expected = LAST[stage] + 1, EXPECTED[f'{stage}_trained_on']
    with pytest.raises(AssertionError):  # an epoch changes more than machines do
        assert_logits(stage, LAST[stage], expected, 1e-3)
    assert call_tool('train.py', f'{stage}.py', '--work-dir', f'runs/{stage}', '--resume') == 0
    assert_logits(stage, last, expected, 1e-3)


def test_the_seal_of_a_checkpoint_is_still_checked():
    path = Path('runs/moLE/epoch_9.pth')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match='damaged'):
        load_supernet('moLE.py', path)


def test_files_of_subnets():
    for path in ('runs/search/best_subnet.json', 'export/architecture.json'):
        assert read_subnet(path) == SUBNETS['found']
    assert read_subnet('picked.json') == SUBNETS['smallest']


def test_scores_of_importance_size_the_experts():
    config = Config.fromfile('moLE.py')
    config.model.backbone.mole.importance = 'importance.json'
    state = load_supernet(config).state_dict()
    shapes = {name: list(value.shape) for name, value in state.items() if 'lora' in name}
    assert shapes == EXPECTED['expert_shapes']


def test_an_export_is_loaded_and_takes_a_new_one():
    """Alone, as weights to start from, and as the folder that the same subnet is exported to."""
    expected = torch.tensor(EXPECTED['export'])
    config = Config.fromfile('supernet.py')
    config.model.backbone.arch = SUBNETS['found'].to_dict()
    start = load_supernet(config, 'export/weights.safetensors')
    with torch.no_grad():
        found = [load_plain_vit('export')[0](IMAGES), start(IMAGES, mode='tensor')]
        options = ('--subnet', 'runs/search/best_subnet.json', '--out', 'export')
        assert call_tool('export.py', 'moLE.py', 'runs/moLE/epoch_9.pth', *options) == 0
        found.append(load_plain_vit('export')[0](IMAGES))
    for logits in found:
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_best_of_a_budget_is_read_off():
    arguments = ('runs/search', '--max', 'params=1500', '--out', 'now.json')
    assert call_tool('pick_subnet.py', *arguments) == 0
    assert read('now.json') == read('picked.json')


@pytest.mark.parametrize(
    ('folder', 'shown'),
    [
        ('search', ['Search finished', '1.7584', '2.450 k', '40.833', '102.0%', '54a7dc9f97ca']),
        ('latency', ['Search finished', '1.8387', '2.986 k', '0.707']),
    ],
)
def test_the_page_of_a_search(folder, shown):
    """Score and parameters of the winner, and what only this search has."""
    assert call_tool('analysis/search_report.py', f'runs/{folder}') == 0
    page = Path(f'runs/{folder}/report.html').read_text()
    text = ' '.join(re.sub('<[^>]+>', ' ', page).split())
    assert [part for part in shown if part not in text] == []


# Journals of 0.1 are not read: a resumed search says so, evaluates again, and must find the same.


def resume(folder: str, *options) -> str:
    """Resume a search of 0.1; returns what it logged."""
    history = Path(folder, 'search_history.jsonl').read_text()
    where = ('--work-dir', folder, '--no-report', '--resume')
    assert call_tool('search.py', 'search.py', 'runs/moLE/epoch_9.pth', *where, *options) == 0
    assert Path(folder, 'search_history.jsonl').read_text().startswith(history)
    return next(Path(folder).glob('*/*.log')).read_text()


def test_a_finished_search_is_taken_up():
    log = resume('runs/search', '--test')
    assert 'search_journal.jsonl is missing: all of them are evaluated again' in log
    assert_same_result('runs/search', 'runs/search')
    found, recorded = (read(f'{path}/runs/search/best_subnet.json') for path in ('.', FILES))
    for name in ('test', 'baseline', 'search'):
        assert found[name] == recorded[name], name


def test_a_killed_search_ends_with_the_same_result():
    assert 'Continuing after 9 subnets that are scored' in resume('runs/killed')
    assert_same_result('runs/killed', 'runs/search')


@pytest.mark.parametrize('folder', ['search', 'latency'])
def test_a_search_is_repeated(folder):
    """Latencies are those that were measured then."""
    code = call_tool('search.py', '--replay', f'runs/{folder}/best_subnet.json', '--no-report')
    assert code in (0, 1)  # 1: other digits, or other versions of libraries
    assert_same_result(f'runs/{folder}_replay', f'runs/{folder}')
