"""``--cfg-options``: a value arrives as it was typed, or the option is refused by name."""

import inspect
import re

import pytest
from conftest import ROOT, call_tool
from mmengine.config import DictAction
from mmengine.runner import Runner

from tas_lora import UserError, cli
from tas_lora.cfg_options import read_value
from tas_lora.config import _READ, load_config

SEARCH, FOLDER = (str(ROOT / 'configs' / f'{name}.py') for name in ('digits_search', 'folder_moLE'))


def loaded(config: str, *options: str):
    args = cli.config_parser('').parse_args([config, '--cfg-options', *options])
    return load_config(config, args.cfg_options)


def refused(config: str, *options: str) -> str:
    with pytest.raises(UserError) as error:
        loaded(config, *options)
    return str(error.value)


@pytest.mark.parametrize(
    'text',
    [
        '/x/my data',
        '/x/my,data',
        '2024',
        '1e3',
        'True',
        'a, b',
        '/x/(1)',
        '/x/a(b,c',
        ' x',
        '[a,b]',
    ],
)
def test_text_fields_get_the_text(text):
    root = 'test_dataloader.dataset.data_root'
    assert loaded(SEARCH, f'{root}={text}').test_dataloader.dataset.data_root == text
    assert loaded(SEARCH, f'work_dir={text}').work_dir == text  # the config has none
    assert loaded(SEARCH, f'load_from={text}').load_from == text
    options = (f'val_cfg.measured={text}',)  # a string or None, not in the config
    assert loaded(SEARCH, *options).val_cfg.measured == text


def test_names_of_classes_stay_names():
    place = 'val_dataloader.dataset.dataset.metainfo'
    found = loaded(FOLDER, f'{place}.classes=[01,2,a b,True]')
    assert found.val_dataloader.dataset.dataset.metainfo.classes == ['01', '2', 'a b', 'True']


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_cfg=None', None),
        ('load_from=None', None),
        ('val_dataloader.batch_size=7', 7),
        ('val_cfg.constraints.params=(None, 100e3)', (None, 100e3)),
        ('val_cfg.goals=[params,flops]', ['params', 'flops']),
        ('val_cfg.space.depth=2,3', [2, 3]),
        ('val_cfg.baseline=true', True),
        ('test_evaluator.topk=(1, 5)', (1, 5)),
        ('work_dir="2024"', '2024'),
        ('default_hooks.checkpoint.save_best=[a b,c]', ['a b', 'c']),
        ('default_hooks.checkpoint.out_dir=2024', '2024'),
    ],
)
def test_other_values_are_read_as_before(option, value):
    found = loaded(SEARCH, option)
    for name in option.partition('=')[0].split('.'):
        found = found[name]
    assert (found, type(found)) == (value, type(value))


def test_values_as_mmengine_reads_them():
    for text in (
        '1',
        '-2.5',
        'abc',
        '1,2',
        '[[1,2],(3,a)]',
        '()',
        '',
        'None',
        'false',
        '[(1,2),a]',
    ):
        assert read_value(text) == DictAction._parse_iterable(text)
    assert read_value('[a b, (c d, 1)]') == ['a b', ('c d', 1)]


@pytest.mark.parametrize(
    ('config', 'option', 'fields'),
    [
        (SEARCH, 'space.depth=[2]', ['val_cfg.space.depth', 'model.router.space.depth']),
        (SEARCH, 'split.size=100', ['val_dataloader.dataset.size']),
        (SEARCH, 'test_pipeline=[]', ['val_dataloader.dataset.dataset.pipeline']),
        (SEARCH, 'heldout_dataloader.batch_size=3', ['val_dataloader.batch_size']),
        (FOLDER, 'held_out=100', ['train_dataloader.dataset.size']),
        (FOLDER, 'mean=[1,2,3]', ['data_preprocessor.mean']),
        (FOLDER, 'crop=0.2', ['train_dataloader.dataset.dataset.pipeline.1.crop_ratio_range']),
        (FOLDER, 'bicubic.backend=cv2', ['val_dataloader.dataset.dataset.pipeline.1.backend']),
    ],
)
def test_a_variable_is_refused_by_the_fields_made_from_it(config, option, fields):
    message = refused(config, option)
    name = re.split(r'[.=]', option)[0]
    assert f'{name} is a variable' in message
    for field in fields:
        assert re.search(rf'[ ,]{re.escape(field)}(,|$| and)', message), message
        loaded(config, f'{field}={option.partition("=")[2]}')


def test_an_unknown_name_is_refused_with_the_nearest():
    assert "no 'spaces' (did you mean 'space'?)" in refused(SEARCH, 'spaces.depth=[2]')
    assert "did you mean 'find_unused_parameters'" in refused(SEARCH, 'find_unused_parameter=True')


@pytest.mark.parametrize(
    ('option', 'nearest'),
    [
        ('env_cfg.cudnn_benchmrk=True', 'cudnn_benchmark'),
        ('auto_scale_lr.base_batchsize=8', 'base_batch_size'),
    ],
)
def test_a_key_that_mmengine_would_ignore_is_refused(option, nearest):
    name = option.partition('=')[0]
    assert f'{name} is read by nothing (did you mean {nearest!r}?)' in refused(SEARCH, option)
    section, _, _ = option.partition('.')
    source = inspect.getsource(Runner)
    assert f"'{nearest}'" in source or f'"{nearest}"' in source, section


def test_names_that_the_runner_reads_are_taken():
    """Also those that are in no config."""
    source = inspect.getsource(Runner)
    read = set(re.findall(r"self\.cfg\.get\(\s*'(\w+)'", source))
    assert {'sync_bn', 'find_unused_parameters'} <= read <= set(_READ)
    assert loaded(SEARCH, 'sync_bn=torch').sync_bn == 'torch'


def test_a_variable_that_a_tool_or_a_hook_reads_is_taken(tmp_path):
    hook = "custom_hooks = [dict(type='tas_lora.SimilarityHook')]"
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(ROOT / "configs/digits_supernet.py")!r}\n{hook}\n')
    cfg = loaded(str(config), 'heldout_dataloader.batch_size=3')
    assert cfg.heldout_dataloader.batch_size == 3
    assert load_config(SEARCH, {'space.depth': [2]}, reads=('space',)).space.depth == [2]


@pytest.mark.parametrize(
    ('tool', 'option', 'argument'),
    [
        ('train.py', 'launcher=slurm', 'launcher'),
        ('search.py', 'load_from=a.pth', 'checkpoint'),
        ('test.py', 'load_from=a.pth', 'checkpoint'),
    ],
)
def test_an_option_that_an_argument_replaces_is_refused(tool, option, argument, capsys):
    files = [SEARCH] if tool == 'train.py' else [SEARCH, 'x.pth']
    assert call_tool(tool, *files, '--cfg-options', option) == 2
    assert f'it would be ignored; give the {argument}' in capsys.readouterr().err
