"""Who installs the wheel in an empty folder has commands, configs and models by name."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from base64 import urlsafe_b64encode
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from mmengine.config import Config
from mmpretrain import get_model, list_models

import tas_lora
from tas_lora import UserError, __main__
from tas_lora.config import load_config
from tas_lora.packaged import configs, find_config, find_tool, tools

SOURCES = ('tas_lora', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE')
SOURCES += ('MANIFEST.in', 'model-index.yml')
OURS = re.compile('tas_lora|__editable__|__pycache__|.*[.]pth$')
# Bases of 0.1 under their former names, which the wheel leaves out.
FORMER = {f'autoformer_{size}_{kind}' for size in 'tsb' for kind in ('moLE', 'subnet')}


def run(*command, cwd=None) -> str:
    """Run a command without this checkout on the path; returns what it prints."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    env |= dict(OMP_NUM_THREADS='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ('--quiet', '--no-deps', '--no-build-isolation', '--no-index')
    run(sys.executable, '-m', 'pip', 'wheel', *options, '-w', source / 'dist', source)
    return next((source / 'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """Programs of an environment with the wheel, and with all of this one but us."""
    root = tmp_path_factory.mktemp('environment')
    venv.create(root / 'env', symlinks=True)
    (root / 'others').mkdir()
    for path in Path(sysconfig.get_path('purelib')).iterdir():
        if not OURS.match(path.name):
            (root / 'others' / path.name).symlink_to(path)
    site = Path(sysconfig.get_path('purelib', vars=dict(base=str(root / 'env'))))
    (site / 'others.pth').write_text(f'{root / "others"}\n')
    python = root / 'env' / 'bin' / 'python'
    options = ('--quiet', '--no-deps', '--no-index')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', *options, wheel)
    return python.parent


def metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        name = next(n for n in file.namelist() if n.endswith('.dist-info/METADATA'))
        return message_from_bytes(file.read(name))


def required(wheel: Path) -> tuple[set[str], set[str]]:
    """Names of what is always required, and of what extras require."""
    lines = metadata(wheel).get_all('Requires-Dist')
    always, extra = set(), set()
    for line in lines:
        name = re.match('[A-Za-z0-9-]+', line).group().lower()
        (extra if 'extra ==' in line else always).add(name)
    return always, extra


def imported(path: Path) -> tuple[set[str], set[str]]:
    """Top-level packages that a file imports when it is imported, and only later."""
    tree = ast.parse(path.read_text('utf-8'))
    found = set(), set()
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        found[node not in tree.body].update(name.partition('.')[0] for name in names)
    return found


@pytest.mark.full
def test_the_wheel_holds_package_configs_and_tools_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {re.split('[/-]', name)[0] for name in names} == {'tas_lora'}
    packed = {name.removeprefix('tas_lora/.mim/') for name in names if '/.mim/' in name}
    listed = run('git', 'ls-files', 'configs', 'tools', 'model-index.yml', cwd=ROOT).split()
    left_out = {f'configs/_base_/models/{name}.py' for name in FORMER}
    left_out |= {name for name in listed if name.startswith('tools/results/')}
    assert packed == {name for name in listed if (ROOT / name).exists()} - left_out
    assert not [name for name in names if '__pycache__' in name or name.endswith('.pyc')]
    assert metadata(wheel)['Version'] == tas_lora.__version__


@pytest.mark.full
def test_the_wheel_requires_what_it_imports(wheel):
    always, extra = required(wheel)
    where = packages_distributions()
    files = [*(ROOT / 'tas_lora').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]
    for path in files:
        for names, allowed in zip(imported(path), (always, always | extra), strict=True):
            if 'export' in path.parts:  # formats are imported when one is asked for
                allowed = always | extra
            for name in names - sys.stdlib_module_names - {'tas_lora'}:
                owners = {o.lower().removeprefix('onedl-') for o in where.get(name, [name])}
                assert owners & allowed, f'{path} imports {name}, of {owners}'


@pytest.mark.full
def test_train_search_and_export_in_another_folder(installed, digits_root, tmp_path):
    def command(*arguments) -> str:
        return run(installed / 'tas-lora', *arguments, cwd=tmp_path)

    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'digits').symlink_to(digits_root)
    few = ['train_dataloader.batch_size=400', 'train_cfg.max_epochs=1']
    few += ['train_dataloader.dataset.times=1', 'default_hooks.logger.interval=1']
    assert '[1][2/2]' in command('train', 'digits_supernet', '--cfg-options', *few)
    checkpoint = 'work_dirs/digits_supernet/epoch_1.pth'
    small = dict(population=4, generations=2, parents=2, mutations=1, crossovers=1)
    options = [f'val_cfg.evolution.{key}={value}' for key, value in small.items()]
    model = ('--model', 'digits_supernet', '--work-dir', 'found', '--no-report')
    command('search', 'digits_search', checkpoint, *model, '--cfg-options', *options)
    recorded = json.loads((tmp_path / 'found' / 'search.json').read_text())['command']
    assert recorded[:3] == ['tas-lora', 'search', 'digits_search']
    subnet = ('--subnet', 'found/best_subnet.json')
    command('export', 'configs/digits_supernet.py', checkpoint, *subnet, '--out', 'exported')
    assert (tmp_path / 'exported' / 'weights.safetensors').is_file()


@pytest.mark.full
def test_names_are_known_to_mmengine_in_either_order_of_import(installed, tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'tas_lora::ablations/t_joint.py'\nmine = 1\n")
    first, second = 'import tas_lora', 'from mmengine.config import Config'
    for lines in ([first, second], [second, first]):
        code = '\n'.join(
            [
                *lines,
                "assert '.mim' in Config.fromfile('tas_lora::autoformer_t_moLE.py').filename",
                "cfg = Config.fromfile('mine.py')",
                'print(cfg.mine, cfg.model.type)',
            ]
        )
        said = run(installed / 'python', '-c', code, cwd=tmp_path)
        assert said.strip().endswith('1 tas_lora.SupernetClassifier')


@pytest.mark.full
def test_shell_scripts_come_along(installed, tmp_path):
    done = subprocess.run(
        [installed / 'tas-lora', 'dist_train'], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith('usage: tas-lora dist_train CONFIG GPUS')


@pytest.mark.parametrize(
    'name',
    [
        't_joint',
        'ablations/t_joint',
        'ablations/t_joint.py',
        'configs/ablations/t_joint.py',
        'tas_lora::ablations/t_joint.py',
        'tas_lora::t_joint',
        ROOT / 'configs' / 'ablations' / 't_joint.py',
    ],
)
def test_a_config_has_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(ROOT / 'configs' / 'ablations' / 't_joint.py')


def test_a_file_comes_before_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('digits_moLE.py').write_text('model = dict()')
    assert find_config('digits_moLE.py') == Path('digits_moLE.py')
    assert find_config('digits_moLE').is_absolute()


@pytest.mark.parametrize('name', ['digits_mole', 'configs/digits_mole.py', 'digit_moLE.py'])
def test_an_unknown_config_names_the_nearest(name):
    with pytest.raises(UserError, match=f'config {name} does not exist; nearest: digits_moLE, '):
        load_config(name)


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, 'argv', ['tas-lora', *arguments])
    try:
        __main__.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [('trian', 'train'), ('Search', 'search'), ('rankings', 'analysis/ranking')],
)
def test_an_unknown_command_names_the_nearest(name, nearest, monkeypatch, capsys):
    assert call(monkeypatch, name) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: there is no command '{name}'; nearest: {nearest}")
    assert line.count('\n') == 1


def test_help_lists_every_tool_with_what_it_does(monkeypatch, capsys):
    assert call(monkeypatch, '--help') == 0
    lines = capsys.readouterr().out.splitlines()
    files = [p for p in (ROOT / 'tools').rglob('*.*') if p.suffix in ('.py', '.sh')]
    names = {p.relative_to(ROOT / 'tools').with_suffix('').as_posix() for p in files}
    described = {line.split()[0] for line in lines if re.match(r'  \S+  +\S.*[.]$', line)}
    assert described >= names


def test_a_tool_has_several_names():
    train, ranking = ROOT / 'tools' / 'train.py', ROOT / 'tools' / 'analysis' / 'ranking.py'
    paths = ('train', 'train.py', 'tools/train.py', './tools/train.py', str(train))
    assert all(find_tool(name).samefile(train) for name in paths)
    assert all(find_tool(name).samefile(ranking) for name in ('ranking', 'analysis/ranking'))
    assert find_tool('prepare-digits').samefile(ROOT / 'tools' / 'prepare_digits.py')


def test_help_of_a_tool_says_how_it_was_called(tmp_path):
    call = [sys.executable, '-m', 'tas_lora', 'analysis/search_report', '--help']
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    said = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=env).stdout
    assert said.startswith('usage: tas-lora search_report [-h]')


@pytest.mark.parametrize('name', sorted(FORMER))
def test_former_names_of_bases_warn(name):
    former = ROOT / f'configs/_base_/models/{name}.py'
    with pytest.warns(DeprecationWarning, match=f'{name}.py is '):
        found = Config.fromfile(former)
    size, kind = name.split('_')[1:]
    now = Config.fromfile(former.with_name(f'{kind.replace("moLE", "mole")}_{size}.py'))
    assert found.to_dict() == now.to_dict()


def test_mim_finds_each_name_once():
    """It looks for the name of a file, in all folders: parts of configs need other names."""
    for names in (configs(), tools()):
        shorts = [name.rpartition('/')[2] for name in names]
        assert len(shorts) == len(set(shorts))
    bases = {path.stem for path in (ROOT / 'configs' / '_base_').rglob('*.py')} - FORMER
    assert not bases & {name.rpartition('/')[2] for name in configs()}


def published() -> dict[str, dict]:
    models = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
    return {model['Config']: model for model in models}


@pytest.mark.parametrize('path', published())
def test_figures_are_those_of_the_configs_marked_as_published(path):
    model = published()[path]
    ((name, top1),) = model['Results'][0]['Metrics'].items()
    assert name == 'Top 1 Accuracy (published by the authors, not run here)'
    assert 'Weights' not in model
    row = next(
        line for line in (ROOT / 'configs' / 'README.md').read_text().splitlines()
        if line.startswith(f'| `{path.removeprefix("configs/")}` ')
    )  # fmt: skip
    cells = [cell.strip() for cell in row.split('|')]
    assert cells[3].split(' ')[0] == f'{top1:.1f}'
    assert cells[4] == 'not run'


def test_mmpretrain_builds_a_model_by_name():
    assert set(list_models('autoformer_t')) == {'autoformer_t_mole', 'autoformer_t_supernet'}
    model = get_model('autoformer_t_supernet')
    assert type(model).__name__ == 'SupernetClassifier'
    # Largest subnet of AutoFormer-T's supernet, by its official code: see test_complexity.
    expected = load_config('autoformer_t_supernet').model.backbone.arch
    assert model._config.model.backbone.arch == expected


def test_other_packages_configs_are_left_to_mmengine(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'nobody::folder/config.py'")
    with pytest.raises(AssertionError, match='does not support to load nobody config'):
        Config.fromfile(tmp_path / 'mine.py')
    with pytest.raises(FileNotFoundError):
        Config.fromfile('nobody::folder/config.py')


@pytest.mark.full
def test_the_fork_comes_with_all_else_that_is_required(wheel):
    lines = metadata(wheel).get_all('Requires-Dist')
    ours = {line.replace(' ', '') for line in lines if 'extra ==' not in line}
    listed = (ROOT / 'requirements' / 'fork.txt').read_text().splitlines()
    missing = {re.match('[a-z-]+', line).group() for line in ours - set(listed)}
    assert missing == {'mmengine', 'mmpretrain', 'mmcv-lite'}


@pytest.mark.parametrize('name', ['onedl-mmengine', 'onedl-mmpretrain'])
def test_the_fork_is_intact(name):
    """Where it is installed, each file is as its wheel has it, and no MMEngine lies over it."""
    try:
        files = distribution(name).files
    except PackageNotFoundError:
        pytest.skip(f'{name} is not installed')
    with pytest.raises(PackageNotFoundError):
        distribution(name.removeprefix('onedl-'))
    for file in files:
        if file.hash and file.suffix == '.py':
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            assert urlsafe_b64encode(digest).rstrip(b'=').decode() == file.hash.value, file
