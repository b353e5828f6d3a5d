"""tools/export.py on the digits, and what MMPretrain's own tools make of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from test_export import trained_like

from tas_lora import Subnet, UserError, export_subnet, load_supernet
from tas_lora.export import Source, formats, job, mmpretrain
from tas_lora.export import onnx as onnx_format
from tas_lora.export.int8 import compare, compare_top1, quantise
from tas_lora.work_lock import check_free

CHOSEN = Subnet(24, (3, 2), (2.0, 4.0))
ROOT_FILES = {'weights.safetensors', 'architecture.json', 'plain_vit.py', 'MODEL_CARD.md'}


@pytest.fixture
def trained(digits_config, tmp_path):
    """A supernet of the digits, its checkpoint, and a file of a subnet."""
    model = trained_like(load_supernet(digits_config('moLE')))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'experts.pth')
    (tmp_path / 'subnet.json').write_text(json.dumps(dict(subnet=CHOSEN.to_dict())))
    return model


@pytest.fixture
def source(trained, digits_config, tmp_path) -> Source:
    """The subnet, exported, with the data of its config."""
    folder = export_subnet(trained, CHOSEN, tmp_path / 'source', [f'digit {i}' for i in range(10)])
    return Source.read(folder, data=digits_config('moLE').to_dict())


@pytest.fixture
def export_tool(trained, digits_root, tmp_path):
    """Runs the tool with some options; returns its exit code."""
    files = (ROOT / 'configs/digits_moLE.py', tmp_path / 'experts.pth')
    files += ('--subnet', tmp_path / 'subnet.json', '--out', tmp_path / 'out')
    at = ('--cfg-options', f'test_dataloader.dataset.data_root={digits_root}')
    return lambda *options: call_tool('export.py', *files, *at, *options)


MMPRETRAIN = """
import sys, runpy
config, checkpoint, out = sys.argv[1:]
assert not [name for name in sys.modules if name.startswith('tas_lora')]
from importlib.resources import files
tool = str(files('mmpretrain') / '.mim/tools/test.py')
sys.argv = [tool, config, checkpoint, '--out', out, '--out-item', 'metrics', '--work-dir', 'work']
runpy.run_path(tool, run_name='__main__')
"""


@pytest.mark.full
def test_mmpretrains_own_tool_tests_the_export(source, digits_config, tmp_path):
    mmpretrain.write(source, tmp_path)
    files = (tmp_path / 'config.py', tmp_path / 'checkpoint.pth', tmp_path / 'metrics.json')
    done = subprocess.run(
        [sys.executable, '-c', MMPRETRAIN, *map(str, files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digits_config('moLE').dump(tmp_path / 'digits.py')
    files = (tmp_path / 'digits.py', tmp_path / 'experts.pth', '--subnet', tmp_path / 'subnet.json')
    files += ('--out', tmp_path / 'supernet.json', '--work-dir', tmp_path / 'test')
    assert call_tool('test.py', *files) == 0
    found, expected = (
        json.loads((tmp_path / name).read_text()) for name in ('metrics.json', 'supernet.json')
    )
    assert found['accuracy/top1'] == expected['subnet/accuracy/top1']


def test_mmpretrains_inferencer_takes_the_export(source, tmp_path):
    mmpretrain.write(source, tmp_path)
    inferencer = ImageClassificationInferencer(str(tmp_path / 'config.py'))
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    result = inferencer([image])[0]
    mean, std = (source.description['preprocess'][name][0] for name in ('mean', 'std'))
    with torch.no_grad():
        logits = source.net((torch.from_numpy(image.astype(np.float32))[None, None] - mean) / std)
    assert np.allclose(result['pred_scores'], logits.softmax(1)[0], atol=1e-5)
    assert result['pred_class'] == f'digit {int(logits.argmax())}'


def test_mmpretrain_without_data_in_the_config(source, tmp_path):
    mmpretrain.write(Source(source.folder, source.net, source.description), tmp_path)
    config = Config.fromfile(tmp_path / 'config.py')
    assert config.test_dataloader.dataset.type == 'CustomDataset'
    assert Path(config.load_from) == tmp_path / 'checkpoint.pth'


# The tool


def test_the_default_is_what_plain_torch_reads(export_tool, capsys, tmp_path):
    assert export_tool('--license', 'apache-2.0') == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'Exported' in line] == lines[-1:]
    assert 'logits of 64 random images differ from the supernet by at most' in lines[-1]
    assert re.search(r'at most \S+e-0[5-9], their deviation is \S+ \(within 1e-04', lines[-1])
    (line,) = [line for line in lines if line.startswith('Preparation of images: ')]
    assert line.endswith('gives by 0 of 255 levels on average, the most of 32 images (within 1)')
    files = {path.name for path in (tmp_path / 'out').iterdir()}
    assert files == ROOT_FILES
    card = (tmp_path / 'out' / 'MODEL_CARD.md').read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\n')
    assert 'Not recorded: only the sizes of the subnet were given.' in card
    assert Source.read(tmp_path / 'out').description['classes'][7] == '7 - seven'


def test_without_images_nothing_is_compared_and_that_is_said(export_tool, capsys, tmp_path):
    assert export_tool('--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/none') == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith('Preparation of images: ')]
    assert 'not compared with the test pipeline on real images: the data set of test' in line


def test_the_tool_notices_a_difference(export_tool, capsys, tmp_path, monkeypatch):
    whole = export_subnet

    def wrong(model, *arguments):
        model.head.fc.bias.data.add_(1)
        folder = whole(model, *arguments)
        model.head.fc.bias.data.sub_(1)
        return folder

    monkeypatch.setattr('tas_lora.export.job.export_subnet', wrong)
    assert export_tool() == 1
    out = capsys.readouterr().out
    assert 'safetensors NOT exported' in out
    assert 'at most 1.0e+00, their deviation is' in out
    assert '(ABOVE 1e-04)' in out
    assert list((tmp_path / 'out').iterdir()) == []


def test_the_tool_says_what_it_skips(export_tool, capsys, monkeypatch):
    find, hidden = formats.find_spec, ('onnx', 'timm', 'transformers')
    monkeypatch.setattr(formats, 'find_spec', lambda name: None if name in hidden else find(name))
    written = []
    monkeypatch.setattr(
        job, 'write_formats', lambda model, source, forms, *_: written.extend(forms) or []
    )
    assert export_tool('--formats', 'all') == 0
    assert [each.name for each in written] == ['safetensors', 'torch_export', 'mmpretrain']
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('Skipped: ') for line in lines) == 3
    assert 'Skipped: huggingface needs transformers: pip install "tas-lora[huggingface]"' in lines


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--formats', 'onnx', '--opset', '9'), '--opset 9 is too old; choose from 18 to 23'),
        (('--formats', 'onnx', '--opset', '99'), '--opset 99 is too new; choose from 18 to 23'),
        (('--formats', 'tensorrt'), '--formats must be all or some of safetensors, onnx, torch'),
        (('--int8',), '--int8 quantises the ONNX file; add onnx to --formats'),
        (
            ('--subnet', 'nowhere.json'),
            'subnet file nowhere.json cannot be read: ',
        ),
    ],
)
def test_mistakes_on_the_command_line(export_tool, capsys, tmp_path, options, message):
    assert export_tool(*options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_int8_without_onnx_says_how_to_get_it(export_tool, capsys, monkeypatch):
    find = formats.find_spec
    monkeypatch.setattr(formats, 'find_spec', lambda name: None if name == 'onnx' else find(name))
    assert export_tool('--formats', 'all', '--int8') == 2
    message = '--int8 quantises the ONNX file; onnx needs onnx: pip install "tas-lora[onnx]"'
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_heads=[3], mlp_ratio=[2.0]), 'depth is 1, the space has (2, 3, 4)'),
        (dict(embed_dim=28), 'embed_dim is 28, the space has (24, 32, 40)'),
        (dict(num_heads=[3, 1]), 'num_heads[1] is 1, the space has (2, 3)'),
        (dict(mlp_ratio=[3.0, 4.0]), 'mlp_ratio[0] is 3.0, the space has (2.0, 4.0)'),
    ],
)
def test_a_subnet_outside_of_the_space(digits_config, tmp_path, capsys, change, message):
    """Of a supernet without experts, whose groups would be those of the space."""
    model = load_supernet(digits_config('supernet'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'bare.pth')
    outside = CHOSEN.to_dict() | change
    (tmp_path / 'subnet.json').write_text(json.dumps(outside))
    files = (ROOT / 'configs/digits_supernet.py', tmp_path / 'bare.pth')
    files += ('--subnet', tmp_path / 'subnet.json', '--out', tmp_path / 'out')
    assert call_tool('export.py', *files) == 2
    assert f'the subnet is outside train_cfg.space: {message};' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert call_tool('export.py', *files, '--outside-space') == 0
    assert Source.read(tmp_path / 'out').description['subnet'] == outside


@pytest.mark.full
def test_int8_beside_float(export_tool, capsys, tmp_path, monkeypatch):
    def quantise_while_held(folder):
        with pytest.raises(UserError, match='is in use by'):
            check_free(folder.parent)
        return quantise(folder)

    monkeypatch.setattr('tas_lora.export.int8.quantise', quantise_while_held)
    assert export_tool('--formats', 'onnx', '--int8') == 0
    out = capsys.readouterr().out
    assert 'on 64 random images logits differ by at most' in out
    assert 'Top-1 on 360 test images: ' in out
    assert {path.name for path in (tmp_path / 'out').iterdir()} == ROOT_FILES | {'onnx'}
    assert {path.name for path in (tmp_path / 'out' / 'onnx').iterdir()} == {
        'model.onnx',
        'model_int8.onnx',
    }


@pytest.mark.full
def test_top1_of_int8_by_hand(source, tmp_path):
    onnx_format.write(source, tmp_path)
    small, images = quantise(tmp_path), source.random_images(27)
    labels = torch.arange(27) % 10
    found = compare_top1(tmp_path, small, zip(images.split(20), labels.split(20), strict=True))
    with torch.no_grad():
        right = int((source.net(images).argmax(1) == labels).sum())
    assert found['images'] == 27
    assert found['float32'] == pytest.approx(100 * right / 27)
    assert f'Quantised to {small}: ' in compare(source, tmp_path, small)
    assert small.stat().st_size < (tmp_path / 'model.onnx').stat().st_size
    with pytest.raises(UserError, match='test_dataloader has no images'):
        compare_top1(tmp_path, small, [])
