"""Mistakes on the command line: one clear line, exit code 2, no traceback."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, call_tool

from tas_lora import SearchSpace, Subnet, cli, load_supernet
from tas_lora.config import load_config

CONFIGS = ROOT / 'configs'
SUPERNET, MOLE, SEARCH = (CONFIGS / f'digits_{s}.py' for s in ('supernet', 'moLE', 'search'))


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """Runs a tool that must fail as a user's mistake; returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*command) -> str:
        assert call_tool(*command) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if 'error' in line.lower()]
        assert len(lines) == 1, captured.err
        assert 'Traceback' not in captured.err + captured.out
        assert lines[0].startswith('error: ')
        return lines[0]

    return run


@pytest.fixture
def experts(tmp_path):
    """A checkpoint of the digits' model with experts."""
    path = tmp_path / 'experts.pth'
    torch.save(dict(state_dict=load_supernet(MOLE).state_dict()), path)
    return path


def write_subnet(folder, subnet: Subnet):
    path = folder / 'subnet.json'
    path.write_text(json.dumps(subnet.to_dict()))
    return path


def at(root, *loaders) -> list:
    """Options that point dataloaders of the digits to ``root``."""
    inner = dict(train='dataset.dataset.dataset', val='dataset.dataset', test='dataset')
    return [f'{name}_dataloader.{inner[name]}.data_root={root}' for name in loaders]


def test_missing_config(fails):
    assert 'config nowhere.py does not exist' in fails('train.py', 'nowhere.py')


def test_config_for_another_tool(fails, experts):
    assert 'trains nothing' in fails('train.py', SEARCH)
    assert 'is not a search config' in fails('search.py', MOLE, experts)
    assert 'base_batch_size' in fails('train.py', SUPERNET, '--auto-scale-lr')


def test_broken_config(fails, tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    assert 'was never closed' in fails('train.py', tmp_path / 'broken.py')


def test_missing_data_folder(fails):
    line = fails('train.py', SUPERNET)
    assert (
        "train_dataloader.dataset.dataset.dataset.data_root: there is no folder 'data/digits'"
        in line
    )
    assert '--cfg-options' in line


def test_unknown_option_with_the_nearest_name(fails):
    line = fails('train.py', SUPERNET, '--cfg-options', 'modle.backbone.patch_size=4')
    assert "has no 'modle' (did you mean 'model'?)" in line


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('model.backbone.pach_size=4', "ElasticViT takes no such argument (did you mean 'patch_"),
        ('train_cfg.sede=1', "SubnetSamplingTrainLoop takes no such argument (did you mean 'seed'"),
        ('model.head.clases=3', 'ElasticClsHead takes no such argument'),
        ('default_hooks.logger.intervall=3', "LoggerHook takes no such argument (did you mean 'in"),
    ],
)
def test_unknown_argument_with_its_path(fails, option, expected):
    line = fails('train.py', SUPERNET, '--cfg-options', option)
    assert expected in line
    assert option.split('=')[0] in line


def test_unknown_type(fails, digits_root):
    options = at(digits_root, 'train', 'val')
    line = fails('train.py', SUPERNET, '--cfg-options', 'model.type=tas_lora.Supernt', *options)
    assert 'tas_lora.Supernt is not in the' in line


def test_missing_checkpoint_of_the_stage_before(fails, digits_root):
    line = fails('train.py', MOLE, '--cfg-options', *at(digits_root, 'train', 'val'))
    assert 'digits_supernet/epoch_30.pth does not exist; train the previous stage' in line


def test_experts_of_another_number(fails, digits_root):
    options = ['model.backbone.mole.num_experts=5', *at(digits_root, 'train', 'val')]
    line = fails('train.py', MOLE, '--cfg-options', 'load_from=None', *options)
    assert 'num_experts is 5, but router.space has 12 groups' in line


def test_more_heads_than_the_supernet(fails, digits_root):
    options = ['train_cfg.space.num_heads=[2,8]', *at(digits_root, 'train', 'val')]
    line = fails('train.py', SUPERNET, '--cfg-options', *options)
    assert 'num_heads[0] is 8, the supernet has 3' in line


def test_checkpoint_of_another_architecture(fails, digits_root, tmp_path):
    options = ['--cfg-options', *at(digits_root, 'test')]
    small = load_supernet(SUPERNET).state_dict()
    small = {k: v for k, v in small.items() if '.blocks.3.' not in k}
    torch.save(dict(state_dict=small), tmp_path / 'small.pth')
    line = fails('test.py', SUPERNET, tmp_path / 'small.pth', *options)
    assert 'depth 3 in the checkpoint, 4 in the config' in line


def test_subnet_outside_the_supernet(fails, digits_root, tmp_path, experts):
    wide = write_subnet(tmp_path, Subnet(48, (2, 2), (2.0, 2.0)))
    options = ['--subnet', wide, '--cfg-options', *at(digits_root, 'test')]
    assert 'embed_dim is 48, the supernet has 40' in fails('test.py', MOLE, experts, *options)
    line = fails('export.py', MOLE, experts, '--subnet', wide, '--out', tmp_path / 'out')
    assert 'embed_dim is 48, the supernet has 40' in line


def test_subnet_of_no_group_names_the_choices(fails, tmp_path, experts):
    odd = write_subnet(tmp_path, Subnet(24, (2, 2), (3.0, 2.0)))
    line = fails('export.py', MOLE, experts, '--subnet', odd, '--out', tmp_path / 'out')
    assert 'belongs to no group' in line
    assert 'mlp_ratio [2.0, 4.0]' in line


def test_subnet_file_that_is_none(fails, tmp_path, experts):
    (tmp_path / 'bad.json').write_text('{"embed_dim": 24}')
    arguments = (MOLE, experts, '--out', tmp_path / 'out', '--subnet')
    assert 'exactly the fields' in fails('export.py', *arguments, tmp_path / 'bad.json')
    assert 'cannot be read' in fails('export.py', *arguments, tmp_path / 'missing.json')
    (tmp_path / 'bad.json').write_text('{')
    assert 'is not JSON' in fails('export.py', *arguments, tmp_path / 'bad.json')


def test_limits_that_no_subnet_meets(fails, digits_root, experts):
    options = ['val_cfg.constraints.params=(0,100)', *at(digits_root, 'val')]
    line = fails('search.py', SEARCH, experts, '--cfg-options', *options)
    assert 'asked for 0 to 100, the space has 13,202 to 87,554' in line


def test_converting_a_file_that_is_not_official(fails, experts, tmp_path):
    line = fails('convert_autoformer.py', experts, tmp_path / 'out.pth')
    assert 'is not an official AutoFormer checkpoint' in line


def dist_train(folder, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / 'tools' / 'dist_train.sh', *arguments],
        env=os.environ | dict(PYTHON=sys.executable, PYTHONPATH=str(ROOT)),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize('gpus', [pytest.param('2', marks=pytest.mark.full), 'two'])
def test_dist_train_says_a_mistake_once(tmp_path, gpus):
    done = dist_train(tmp_path, SUPERNET, gpus)
    assert done.returncode == 2
    assert done.stderr.count('error: ') == 1
    assert 'Traceback' not in done.stderr


def test_misspelt_section_of_a_config(fails, tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(f'_base_ = {str(SUPERNET)!r}\ntrain_cgf = dict(max_epochs=1)\n')
    assert 'train_cgf' not in fails('train.py', config)  # train_cfg is set: a variable like any
    config.write_text('model = dict()\noptim_wraper = dict()\n')
    assert "sets 'optim_wraper'; did you mean 'optim_wrapper'" in fails('train.py', config)


@pytest.mark.parametrize(
    'option',
    [
        'optim_wrapper.optimizer.lrr=1',
        'optim_wrapper.optimizer.type=Adamm',
        'optim_wrapper.optimizer.lr=-1',
        'optim_wrapper.optimizer.lr=abc',
        'param_scheduler.0.foo=1',
        'param_scheduler.7.begin=1',
        'train_dataloader.batchsize=3',
        'train_dataloader.batch_size=0',
        'train_dataloader.sampler.shufle=True',
        'data_preprocessor.meen=3',
        'randomness.sed=3',
        'train_cfg.max_epochs=abc',
        'train_cfg.max_epochs=-1',
        'train_cfg.seed=-1',
        'model.backbone.patch_size.x=3',
        'model.backbone.drop_path_rate=2',
        'model.backbone.init_std=abc',
        'model.backbone.mole=3',
        'model.head.in_channels=20',
        'val_cfg.subnets=3',
        'log_level=FOO',
        'load_from=5',
    ],
)
def test_any_mistake_in_a_config_is_one_line(fails, digits_root, option):
    fails('train.py', SUPERNET, '--cfg-options', *at(digits_root, 'train', 'val'), option)


@pytest.mark.parametrize(
    'option',
    [
        'populaton=3',
        'mutations=-5',
        'crossovers=abc',
        'gene_prob=7',
        'seed=abc',
    ],
)
def test_any_mistake_in_a_search_is_one_line(fails, digits_root, experts, option):
    options = ['--cfg-options', *at(digits_root, 'val'), f'val_cfg.evolution.{option}']
    assert option.split('=')[0] in fails('search.py', SEARCH, experts, *options)


def test_data_folder_without_data_is_not_downloaded_into(fails, tmp_path):
    (tmp_path / 'empty').mkdir()
    options = ['--cfg-options', *at(tmp_path / 'empty', 'train', 'val')]
    assert 'train-images-idx3-ubyte; MNIST needs it' in fails(
        'train.py', SUPERNET, '--check-only', *options
    )


def test_search_with_the_model_of_a_variant_and_an_option_of_it(digits_root, tmp_path):
    variant, space = tmp_path / 'gru.py', dict(population=2, generations=1, parents=1)
    variant.write_text(
        f"_base_ = {str(MOLE)!r}\nmodel = dict(router=dict(type='tas_lora.GRURouterHead'))\n"
    )
    rank = {'model.backbone.mole.rank': 2}
    model = load_supernet(load_config(variant, rank))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'gru.pth')
    options = [
        'model.backbone.mole.rank=2',
        f'val_dataloader.dataset.dataset.data_root={digits_root}',
        *(f'val_cfg.evolution.{key}={value}' for key, value in space.items()),
        'val_cfg.evolution.mutations=0',
        'val_cfg.evolution.crossovers=0',
    ]
    arguments = ('--model', variant, '--work-dir', tmp_path / 'found', '--cfg-options', *options)
    assert call_tool('search.py', SEARCH, tmp_path / 'gru.pth', *arguments) == 0
    assert (tmp_path / 'found' / 'best_subnet.json').is_file()


def test_sampled_subnets_are_of_the_space_and_seeded(tmp_path, capsys):
    drawn = []
    for folder in ('a', 'b'):
        assert call_tool('sample_subnets.py', SUPERNET, '--out', tmp_path / folder) == 0
        drawn.append([Subnet.coerce(path) for path in sorted((tmp_path / folder).glob('*.json'))])
    assert drawn[0] == drawn[1]
    space = SearchSpace.coerce(load_config(SUPERNET).space)
    assert len(drawn[0]) == 6
    assert all(subnet in space for subnet in drawn[0])


def test_check_only_with_average_weights(digits_root, tmp_path):
    """EMAHook makes its model in before_run; weights are loaded into it."""
    model = load_supernet(SUPERNET)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
    config = tmp_path / 'ema.py'
    config.write_text(f"_base_ = {str(SUPERNET)!r}\ncustom_hooks = [dict(type='EMAHook')]\n")
    options = [
        f'train_dataloader.dataset.dataset.dataset.data_root={digits_root}',
        f'val_dataloader.dataset.dataset.data_root={digits_root}',
        f'load_from={tmp_path / "start.pth"}',
    ]
    arguments = ('--check-only', '--work-dir', tmp_path, '--cfg-options', *options)
    assert call_tool('train.py', config, *arguments) == 0


def test_torn_data_file(fails, digits_root, tmp_path):
    shutil.copytree(digits_root, tmp_path / 'torn')
    images = tmp_path / 'torn' / 'train-images-idx3-ubyte'
    images.write_bytes(images.read_bytes()[:1000])
    options = ['--cfg-options', *at(tmp_path / 'torn', 'train', 'val')]
    error = fails('train.py', SUPERNET, *options)
    assert 'train_dataloader.dataset.dataset.dataset: ' in error
    assert 'has 1,000 bytes, its header says 91,984' in error


def test_weights_of_another_kind(fails, digits_root, tmp_path):
    vit = {'backbone.pos_embed': torch.zeros(1, 5, 8), 'backbone.cls_token': torch.zeros(1, 1, 8)}
    torch.save(dict(state_dict=vit), tmp_path / 'vit.pth')
    options = ['--cfg-options', *at(digits_root, 'test')]
    assert 'not weights of an ElasticViT' in fails(
        'test.py', SUPERNET, tmp_path / 'vit.pth', *options
    )
    assert 'is not a file; check the path' in fails('test.py', SUPERNET, tmp_path, *options)


def test_resuming_from_the_wrong_file(fails, digits_root, tmp_path, experts):
    options = ['--cfg-options', *at(digits_root, 'train', 'val')]
    (tmp_path / 'text.md').write_text('# hello')
    line = fails('train.py', SUPERNET, '--resume', tmp_path / 'text.md', *options)
    assert 'text.md is not a readable checkpoint' in line
    line = fails('train.py', MOLE, '--resume', experts, *options)  # weights, but no optimizer
    assert 'experts.pth holds only weights; start from it with load_from' in line


def test_outputs_that_cannot_be_written(fails, digits_root, tmp_path, experts):
    options = ['--cfg-options', *at(digits_root, 'test')]
    assert 'cannot be written' in fails('test.py', MOLE, experts, '--out', tmp_path, *options)
    assert 'cannot be written' in fails('convert_autoformer.py', experts, '/nowhere/x.pth')
    small = write_subnet(tmp_path, Subnet(24, (2, 2), (2.0, 2.0)))
    fails('export.py', MOLE, experts, '--subnet', small, '--out', experts)


def test_two_subnets_of_one_name(fails, digits_root, tmp_path, experts):
    names = []
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        names.append(write_subnet(tmp_path / folder, Subnet(24, (2, 2), (2.0, 2.0))))
    assert 'have the same name' in fails('test.py', MOLE, experts, '--subnet', *names)


def test_a_part_of_a_config(fails, experts):
    base = CONFIGS / '_base_' / 'default_runtime.py'
    assert 'has no model' in fails('search.py', base, experts)
    assert 'is not a file' in fails('train.py', CONFIGS)


@pytest.mark.parametrize(('code', 'expected'), [(None, 0), (0, 0), (75, 75), ('text', 1)])
def test_a_process_of_gloo_keeps_its_exit_code(monkeypatch, code, expected):
    ended = []
    monkeypatch.setattr(cli.torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(cli.torch.distributed, 'get_backend', lambda: 'gloo')
    monkeypatch.setattr(cli.logging, 'shutdown', lambda: None)
    monkeypatch.setattr(cli.os, '_exit', ended.append)
    with pytest.raises(SystemExit):
        cli.run(lambda: sys.exit(code))
    assert ended == [expected]


# Signals before there is anything to save


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_tool_is_imported(number):
    """-v tells how far it is; each line of it names what is being imported."""
    process = subprocess.Popen(
        [sys.executable, '-v', ROOT / 'tools' / 'train.py', MOLE],
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    next(line for line in process.stderr if line.startswith("import 'torch"))
    process.send_signal(number)
    text = process.communicate()[1]
    assert process.returncode == 75
    assert text.count('Stopped by a signal. Exit code 75: start it again') == 1
    assert 'Traceback' not in text


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_something_is_built(number, capfd):
    """What is open is closed, as that of an export's temporary folder."""
    closed = []

    def build():
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            closed.append(True)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stop:
        cli.run(build)
    assert stop.value.code == 75
    assert closed
    found = capfd.readouterr().err
    assert found.count('\n') == 1
    assert found.startswith('Stopped by a signal. Exit code 75')
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGINT in a job that a shell script starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cli.run(lambda: os.kill(os.getpid(), signal.SIGINT))


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (OSError(errno.EIO, 'Input/output error', 'a/x.json'), 'a/x.json: Input/output error (the'),
        (OSError(errno.ENOENT, 'No such file', '/nowhere/b/x'), 'there is no folder /nowhere; if'),
        (OSError('broken'), 'broken'),
        (
            torch.distributed.DistNetworkError('port: 29500, useIpv6: 0, error: EADDRINUSE\nat x'),
            'cannot meet: port: 29500, useIpv6: 0, error: EADDRINUSE; is the port free?',
        ),
    ],
)
def test_errors_of_the_system_are_one_line(error, said, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    found = capsys.readouterr().err
    assert stop.value.code == 2
    assert found.startswith('error: ')
    assert said in found
    assert '[Errno' not in found
    assert found.count('\n') == 1


@pytest.mark.full
def test_a_port_that_is_in_use_is_one_line(digits_root, tmp_path, monkeypatch):
    with socket.create_server(('', 0)) as other:
        monkeypatch.setenv('PORT', str(other.getsockname()[1]))
        arguments = ['--cfg-options', *at(digits_root, 'train', 'val')]
        done = dist_train(tmp_path, SUPERNET, '2', *arguments)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: PORT is')]
    assert len(errors) == 1
    assert 'Traceback' not in done.stderr


@pytest.mark.full
def test_skipped_blocks_in_several_processes(digits_root, tmp_path):
    arguments = ['--cfg-options', 'find_unused_parameters=False', *at(digits_root, 'train', 'val')]
    done = dist_train(tmp_path, SUPERNET, '2', *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count('find_unused_parameters is False, but must be True in several') == 1
    assert 'Traceback' not in done.stderr
