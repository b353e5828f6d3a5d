"""Exported networks as their users load them: in a Python without the toolkit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_export import STYLES, styled_model, trained_like
from tiny import SPACE, images, randomize, tiny_model

from tas_lora import Subnet, UserError, export_subnet
from tas_lora.export import FORMATS, ParityCheck, Source, export_formats, find_formats, formats
from tas_lora.export import onnx as onnx_format
from tas_lora.export.int8 import quantise
from tas_lora.export.timm_vit import tas_lora_vit

CHOSEN = Subnet(16, (2, 1, 2), (1.0, 2.0, 2.0))
NAMES = [each.name for each in FORMATS]


@pytest.fixture(scope='module')
def model():
    return trained_like(randomize(tiny_model(), std=0.2))


@pytest.fixture(scope='module')
def source(model, tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp('source')
    return Source.read(export_subnet(model, CHOSEN, folder, list('abcde')), card='# A card\n')


@pytest.fixture(scope='module')
def exported(model, source, tmp_path_factory) -> tuple[Path, list[ParityCheck]]:
    """All formats, and what came of each."""
    folder = tmp_path_factory.mktemp('exported')
    return folder, export_formats(model, source, FORMATS, folder)


@pytest.fixture(scope='module')
def expected(model) -> torch.Tensor:
    """Logits of nine images by the supernet."""
    model.set_subnet(CHOSEN)
    with torch.no_grad():
        return model(images(9), mode='tensor')


@pytest.mark.full
def test_all_formats_hold(exported):
    folder, outcomes = exported
    assert [outcome.name for outcome in outcomes] == NAMES
    for outcome in outcomes:
        assert outcome.held, str(outcome)
        assert outcome.folder.is_dir()
    assert {path.name for path in folder.iterdir()} == {
        'weights.safetensors',
        'architecture.json',
        'MODEL_CARD.md',
        'plain_vit.py',
        *NAMES[1:],
    }


STRANGER = """
import os, sys, torch
folder, given, wanted, home = sys.argv[1:]
os.environ.update(HF_HOME=home, HF_HUB_OFFLINE='1')
from safetensors.torch import load_file, save_file
images, found = load_file(given)['images'], {}

import onnxruntime
session = onnxruntime.InferenceSession(folder + '/onnx/model.onnx')
for count in (1, 9):  # of any batch size
    logits = session.run(['logits'], {'images': images[:count].numpy()})[0]
    found[f'onnx {count}'] = torch.from_numpy(logits)

program = torch.export.load(folder + '/torch_export/model.pt2').module()
for count in (1, 9):
    found[f'program {count}'] = program(images[:count])

import timm, timm.optim
sys.path.insert(0, folder + '/timm')
import tas_lora_vit
model = timm.create_model('tas_lora_vit', pretrained=True).eval()
found['timm'] = model(images)
assert timm.data.resolve_data_config(model=model)['input_size'] == (1, 8, 8)
other = timm.create_model('tas_lora_vit', pretrained=True, num_classes=3).eval()
pooled = model.forward_head(model.forward_features(images), pre_logits=True)
assert torch.allclose(other(images), other.get_classifier()(pooled), atol=1e-5)
assert other(images).shape == (9, 3)
untrained = timm.create_model('tas_lora_vit').eval()
assert untrained(images).std() > 0 and not torch.allclose(untrained(images), found['timm'])
deviation = model.patch_embed.weight.std()
assert 0.01 < untrained.patch_embed.weight.std() < 0.03 and deviation > 0.1
timm.create_model('tas_lora_vit', drop_rate=0.0, drop_path_rate=None)
tokens = timm.create_model('tas_lora_vit', pretrained=True, global_pool='token')
found['timm by parts'] = model.forward_head(model.forward_features(images))
assert torch.equal(tokens.forward_head(features := model.forward_features(images)),
                   model.head(features[:, 0]))
wrongs = {'in_chans': 3, 'drop_rate': 0.1, 'features_only': True, 'global_pool': 'max'}
for name, value in wrongs.items():
    try:
        timm.create_model('tas_lora_vit', **{name: value})
    except ValueError as error:
        assert name in str(error), error
    else:
        raise AssertionError(name)
try:
    model.reset_classifier(3, 'max')
except ValueError as error:
    assert "global_pool must be 'avg' or 'token' or 'cls_avg', got 'max'" in str(error)

after = []
hooks = [block.register_forward_hook(lambda *seen: after.append(seen[2])) for block in model.blocks]
last, maps = model.forward_intermediates(images, indices=[0, 2])
assert torch.equal(last, features) and [one.shape for one in maps] == [(9, 16, 4, 4)] * 2
assert torch.equal(maps[1][:, :, 1, 2], after[2][:, 1 + 1 * 4 + 2])
as_tokens = dict(output_fmt='NLC', norm=True, intermediates_only=True)
(flat,) = model.forward_intermediates(images, 1, **as_tokens)
assert torch.equal(flat, features[:, 1:])
after.clear()
first, _ = model.forward_intermediates(images, [0], stop_early=True)
assert len(after) == 1 and torch.equal(first, model.norm(after[0]))
for hook in hooks:
    hook.remove()
apart = dict(no_weight_decay_list=model.no_weight_decay())
groups = timm.optim.param_groups_weight_decay(model, 0.1, **apart)
decayed = sum(one.numel() for one in groups[1]['params'])
assert groups[1]['weight_decay'] == 0.1
assert decayed == sum(m.weight.numel() for m in model.modules()
                      if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)))
found['timm, baked'] = model.bake()(images)
assert model.blocks[0].attn.baked_keys is not None

from transformers import AutoModelForImageClassification as Auto
own = dict(trust_remote_code=True)
model = Auto.from_pretrained(folder + '/huggingface', **own).eval()
labels = torch.arange(9) % 5
output = model(pixel_values=images, labels=labels)
found['huggingface'] = output.logits
assert model.vit.blocks[0].attn.baked_keys is not None
expected = -output.logits.log_softmax(1)[torch.arange(9), labels].mean()
assert torch.allclose(output.loss, expected)
assert model.config.id2label == dict(enumerate('abcde'))
half = Auto.from_pretrained(folder + '/huggingface', dtype=torch.bfloat16, **own)
assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
logits = half(images.bfloat16()).logits
assert logits.dtype == torch.bfloat16
assert (logits.float() - output.logits).abs().max() < 0.05 * output.logits.std()
logits = half.train()(images.bfloat16()).logits
assert (logits.float() - output.logits).abs().max() < 0.05 * output.logits.std()
model.save_pretrained(home + '/again')
again = Auto.from_pretrained(home + '/again', **own).eval()
found['huggingface again'] = again(images, return_dict=False)[0]
fresh = Auto.from_pretrained(
    folder + '/huggingface', num_labels=3, ignore_mismatched_sizes=True, **own)
assert fresh.eval()(images).logits.shape == (9, 3)

assert not [name for name in sys.modules if name.split('.')[0] == 'tas_lora']
save_file({name: logits.detach().clone() for name, logits in found.items()}, wanted)
"""


@pytest.mark.full
def test_strangers_load_what_was_exported(exported, expected, tmp_path):
    given, wanted = tmp_path / 'given', tmp_path / 'wanted'
    save_file(dict(images=images(9)), given)
    arguments = map(str, (exported[0], given, wanted, tmp_path / 'home'))
    done = subprocess.run(
        [sys.executable, '-c', STRANGER, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = load_file(wanted)
    assert len(found) == 9
    for name, logits in found.items():
        count = 1 if name.endswith(' 1') else 9
        torch.testing.assert_close(logits, expected[:count], atol=2e-5, rtol=1e-4, msg=name)
    assert expected.std() > 0.1


# The version of the file format that came with an opset, by ONNX's docs/Versioning.md.
IR_VERSIONS = {18: 8, 19: 9, 21: 10, 23: 11}


def test_the_format_of_a_file_is_no_newer_than_its_opset_needs(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    onnx_format.save(net, images(1), tmp_path / 'model.onnx')
    graph = onnx.load(tmp_path / 'model.onnx')
    assert [entry.version for entry in graph.opset_import] == [18]
    assert graph.ir_version == IR_VERSIONS[18]
    onnx.checker.check_model(graph, full_check=True)
    for opset, version in IR_VERSIONS.items():
        assert onnx_format.ir_version_of({'': opset, 'com.microsoft': 1}) == version


LOWEST = re.search('onnxruntime>=([0-9.]+)', (ROOT / 'setup.py').read_text()).group(1)
OLD = """
import sys
folder, *files = sys.argv[1:]
import numpy, onnxruntime
for file in files:
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    found = session.run(None, {'images': numpy.load(folder + '/images.npy')})[0]
    numpy.save(file + '.npy', found)
print(onnxruntime.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize('release', [LOWEST, '1.17.3'])  # of setup.py; of April 2024
def test_older_onnx_runtimes_load_the_files(source, expected, tmp_path, release):
    home = tmp_path / 'home'
    wanted = [f'onnxruntime=={release}', 'numpy<2']
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--target', str(home), *wanted]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'onnxruntime {release} cannot be installed: {done.stderr.splitlines()[-1]}')
    onnx_format.write(source, tmp_path)
    small = quantise(tmp_path)
    np.save(tmp_path / 'images.npy', images(9).numpy())
    files = (str(tmp_path / onnx_format.FILE), str(small))
    done = subprocess.run(
        [sys.executable, '-c', OLD, str(tmp_path), *files],
        env=os.environ | dict(PYTHONPATH=str(home)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [release]
    found, rough = (torch.from_numpy(np.load(f'{file}.npy')) for file in files)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (rough - expected).abs().max() < expected.std()


@pytest.mark.full
@pytest.mark.parametrize('opset', onnx_format.OPSETS)
def test_opsets(source, expected, tmp_path, opset):
    onnx_format.save(source.net, images(1), tmp_path / 'model.onnx', opset)
    graph = onnx.load(tmp_path / 'model.onnx')
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.version for entry in graph.opset_import if not entry.domain} == {opset}
    assert graph.ir_version == IR_VERSIONS[opset]
    (logits,) = onnx_format.run(tmp_path, [images(9)])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.full
def test_experts_leave_nothing_in_the_graph(source, tmp_path):
    """The same subnet of a supernet that never had experts gives the same operations."""
    bare = Source.read(export_subnet(tiny_model(mole=False), CHOSEN, tmp_path))
    operations = [
        [(node.op, str(node.target)) for node in torch.export.export(net, (images(1),)).graph.nodes]
        for net in (bare.net, source.net)
    ]
    assert operations[0] == operations[1]
    assert len(operations[0]) > 100


@pytest.mark.full
def test_files_say_nothing_of_the_machine_they_are_from(exported):
    root = str(Path(__file__).resolve().parents[1]).encode()
    files = [path for path in exported[0].rglob('*') if path.is_file()]
    assert len(files) > 12
    assert [path for path in files if root in path.read_bytes()] == []


@pytest.mark.full
def test_what_differs_is_not_left_behind(model, source, tmp_path):
    off = Source.read(source.folder)
    with torch.no_grad():
        off.net.head.bias.add_(2e-4)
    forms = find_formats(['torch_export', 'safetensors'])[0]
    wrong, right = export_formats(model, off, forms, tmp_path)
    assert 'NOT exported' in str(wrong)
    assert 'ABOVE 1e-04' in str(wrong)
    assert wrong.difference == pytest.approx(2e-4, rel=0.2)
    assert right.held  # it is a copy of the folder's files
    left = {path.name for path in tmp_path.rglob('*') if path.is_file()}
    assert left == {'weights.safetensors', 'architecture.json', 'MODEL_CARD.md', 'plain_vit.py'}


@pytest.mark.full
def test_logits_that_are_not_finite_do_not_pass(model, source, tmp_path):
    off = Source.read(source.folder)
    with torch.no_grad():
        off.net.head.bias.fill_(torch.nan)
    (outcome,) = export_formats(model, off, find_formats(['torch_export'])[0], tmp_path)
    assert not outcome.held
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(model, source, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('two\nlines')

    monkeypatch.setattr(torch.export, 'save', fail)
    (outcome,) = export_formats(model, source, find_formats(['torch_export'])[0], tmp_path)
    assert str(outcome) == 'torch_export FAILED, nothing written: RuntimeError: two lines'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_folder_that_has_an_export_gets_the_new_one(model, tmp_path):
    forms = find_formats(['safetensors', 'torch_export'])[0]
    for name in ('smallest', 'largest'):
        chosen = getattr(SPACE, name)()
        source = Source.read(export_subnet(model, chosen, tmp_path / name))
        assert all(each.held for each in export_formats(model, source, forms, tmp_path / 'out'))
    assert Source.read(tmp_path / 'out').description['subnet'] == SPACE.largest().to_dict()


def test_missing_packages_name_their_extra(monkeypatch):
    find, hidden = formats.find_spec, ('onnxruntime', 'timm')
    monkeypatch.setattr(formats, 'find_spec', lambda name: None if name in hidden else find(name))
    with pytest.raises(UserError, match=r'onnx needs onnxruntime: pip install "tas-lora\[onnx\]"'):
        find_formats(['safetensors', 'onnx'])
    ready, skipped = find_formats(['all'])
    assert [each.name for each in ready] == [n for n in NAMES if n not in ('onnx', 'timm')]
    assert skipped == [
        'onnx needs onnxruntime: pip install "tas-lora[onnx]"',
        'timm needs timm: pip install "tas-lora[timm]"',
    ]
    with pytest.raises(UserError, match='--formats must be all or some of safetensors, onnx'):
        find_formats(['tensorrt'])


COMMON = ('dinov2', 'clip', 'no_class_token', 'features')
RARE = [pytest.param(name, marks=pytest.mark.slow) for name in STYLES if name not in COMMON]


@pytest.mark.full
@pytest.mark.parametrize('name', [*COMMON, *RARE])
def test_all_formats_hold_for_other_styles(tmp_path, name):
    """Each is read back by its own library, and compared with the supernet."""
    model = styled_model(name)
    source = Source.read(export_subnet(model, CHOSEN, tmp_path / 'source'), card='# A card\n')
    outcomes = export_formats(model, source, FORMATS, tmp_path / 'out')
    assert [outcome.name for outcome in outcomes if outcome.held] == NAMES, list(map(str, outcomes))
    small = quantise(tmp_path / 'out' / 'onnx')
    (rough,) = onnx_format.run(tmp_path / 'out' / 'onnx', [images(9)], small.name)
    with torch.no_grad():
        expected = source.net(images(9))
    assert (rough - expected).abs().max() < expected.std()


def timm_network(tmp_path, name: str):
    """The export of a style as timm creates it; its weights, and the plain network."""
    source = Source.read(export_subnet(styled_model(name), CHOSEN, tmp_path))
    description = dict(source.description, timm={})
    (tmp_path / 'architecture.json').write_text(json.dumps(description))
    return lambda **options: tas_lora_vit(True, tmp_path, **options).eval(), source.net


def test_timms_poolings(tmp_path):
    create, plain = timm_network(tmp_path, 'both')
    net, tokens = create(), plain.tokens(images(2))
    assert net.head_hidden_size == 32
    torch.testing.assert_close(net(images(2)), plain(images(2)))
    feature = create(num_classes=0)(images(2))
    both = torch.cat([tokens[:, 0], tokens[:, 2:].mean(dim=1)], dim=1)
    torch.testing.assert_close(feature, both)
    feature = create(num_classes=0, global_pool='avg')(images(2))
    torch.testing.assert_close(feature, tokens[:, 2:].mean(dim=1))
    assert create(num_classes=7, global_pool='token').head.weight.shape == (7, 16)
    with pytest.raises(ValueError, match="'token' gives features of 16, the classifier takes 32"):
        create(global_pool='token')
    create, _ = timm_network(tmp_path, 'no_class_token')
    with pytest.raises(ValueError, match="global_pool must be 'avg', got 'token'"):
        create(global_pool='token')


def test_timms_intermediates_have_no_prefix_tokens(tmp_path):
    create, plain = timm_network(tmp_path, 'dinov2')
    last, ((maps, prefix),) = create().forward_intermediates(
        images(2), 1, return_prefix_tokens=True, norm=True
    )
    tokens = plain.tokens(images(2))
    torch.testing.assert_close(last, tokens)
    torch.testing.assert_close(prefix, tokens[:, :5])
    torch.testing.assert_close(maps[:, :, 2, 1], tokens[:, 5 + 2 * 4 + 1])
    assert maps.shape == (2, 16, 4, 4)
    assert create().no_weight_decay() == {'cls_token', 'pos_embed'}
