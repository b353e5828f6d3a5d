"""Several subnets in one file against the supernet, and against exports of one each."""

import json
import re
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from conftest import ROOT, call_tool
from safetensors.torch import load_file, save_file
from test_export import styled_model, trained_like
from tiny import SPACE, images, randomize, tiny_config, tiny_model

from tas_lora import Subnet, UserError, export_subnet, load_supernet
from tas_lora.export.family import bytes_of_single_exports, export_family, family_differences
from tas_lora.export.vit_family import load_family
from tas_lora.models.plain_vit import load_plain_vit

SUBNETS = dict(
    small=SPACE.smallest(),
    uneven=Subnet(16, (2, 1, 2), (1.0, 2.0, 2.0)),
    short=Subnet(24, (2, 1), (2.0, 1.0)),
    whole=SPACE.largest(),
)


@pytest.fixture(scope='module')
def autoformer():
    """AutoFormer's kind, with relative positions and biases cut as one vector."""
    return trained_like(randomize(tiny_model(), std=0.3))


def single(model, subnet, folder):
    return load_plain_vit(export_subnet(model, subnet, folder))[0]


@torch.no_grad()
def check_members(model, tmp_path):
    folder = export_family(model, SUBNETS, tmp_path / 'family')
    family, found = load_family(folder), family_differences(model, SUBNETS, folder, images(8))
    assert family.members == [*found] == ['parent', *SUBNETS]
    assert all(difference <= 1e-4 for difference in found.values()), found
    for name, subnet in SUBNETS.items():
        expected = single(model, subnet, tmp_path / name)
        family.set_subnet(name)
        torch.testing.assert_close(family(images()), expected(images()), atol=1e-5, rtol=1e-5)
        shapes = {key: value.shape for key, value in expected.state_dict().items()}
        assert {key: value.shape for key, value in family.net.state_dict().items()} == shapes
    return family


@torch.no_grad()
def check_parent(model, family):
    """The whole network without experts comes out, after the others, too; to rounding if scaled."""
    expected = family.parent.state_dict()
    family.set_subnet('small')
    family.set_subnet('parent')
    model.set_subnet(SPACE.largest())
    model.unmerge_experts()
    features = model.backbone(images())  # without experts
    logits = features[-1] if model.head is None else model.head(features)
    torch.testing.assert_close(family(images()), logits, atol=1e-5, rtol=1e-5)
    if model.backbone.style.layer_scale is None:
        for i, block in enumerate(model.backbone.blocks):
            assert torch.equal(expected[f'blocks.{i}.fc2.weight'], block.fc2.weight)
            assert torch.equal(expected[f'blocks.{i}.attn.qkv.bias'], block.attn.qkv.bias)


def test_members_are_autoformers_subnets(autoformer, tmp_path):
    check_parent(autoformer, check_members(autoformer, tmp_path))


@pytest.mark.parametrize(
    'name', ['dinov2', 'features', 'both', pytest.param('clip', marks=pytest.mark.full)]
)
def test_members_are_subnets_of_other_styles(tmp_path, name):
    model = styled_model(name)
    check_parent(model, check_members(model, tmp_path))


def test_experts_matter_and_the_parent_has_none(autoformer, tmp_path):
    family = load_family(export_family(autoformer, SUBNETS, tmp_path / 'family'))
    bare = single(styled_bare(autoformer), SPACE.largest(), tmp_path / 'bare')
    with torch.no_grad():
        family.set_subnet('parent')
        assert torch.equal(family(images()), bare(images()))
        family.set_subnet('whole')
        assert (family(images()) - bare(images())).abs().max() > 0.05


def styled_bare(model):
    """The same supernet without experts."""
    bare = load_supernet(tiny_config(mole=False))
    state = model.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    return bare


def test_layers_with_fewer_experts_and_other_ranks(tmp_path):
    config = tiny_config()
    config['model']['backbone']['mole'] = dict(
        num_experts=8, rank=2, layers=['qkv', 'fc2'], layer_experts=3, importance=[[1, 2, 3, 4]] * 3
    )
    check_members(trained_like(randomize(load_supernet(config), std=0.3)), tmp_path)


def test_a_family_of_a_bare_supernet_is_its_slices(tmp_path):
    family = check_members(styled_model('no_norm', mole=False), tmp_path)
    family.set_subnet('whole')
    for name, value in family.parent.state_dict().items():
        assert torch.equal(family.net.state_dict()[name], value)


def test_members_take_gates_alone(autoformer, tmp_path):
    """Each adds 4 L K numbers and the header's text to the file."""
    sizes = []
    for count in (1, 4):
        subnets = {f's{i}': SPACE.smallest() for i in range(count)}
        folder = export_family(autoformer, subnets, tmp_path / str(count))
        weights = load_file(folder / 'family.safetensors')
        sizes.append(sum(value.numel() for value in weights.values()))
    assert sizes[1] - sizes[0] == 3 * 4 * 2 * 8
    one = sum(p.numel() for p in single(autoformer, SPACE.smallest(), tmp_path / 'x').parameters())
    whole = sum(p.numel() for p in load_family(tmp_path / '4').parent.parameters())
    assert bytes_of_single_exports(autoformer, subnets) == 4 * (4 * one + whole)


ALONE = """
import sys
folder, given, wanted = sys.argv[1:]
sys.path.insert(0, folder)
from safetensors.torch import load_file, save_file
from vit_family import load_family
family, images = load_family(folder), load_file(given)['images']
found = {}
for name in family.members:
    family.set_subnet(name)
    found[name] = family(images)
double = family.double()
double.set_subnet('small')
assert abs(double(images.double()).float() - found['small']).max() < 1e-4
assert not [name for name in sys.modules if name.split('.')[0] == 'tas_lora']
save_file({name: logits.contiguous() for name, logits in found.items()}, wanted)
"""


def test_the_parent_is_compared_too(autoformer, tmp_path):
    folder, other = export_family(autoformer, SUBNETS, tmp_path / 'family'), deepcopy(autoformer)
    with torch.no_grad():
        other.backbone.blocks[2].fc2.bias[0] += 1  # which only the deepest run
    found = family_differences(other, SUBNETS, folder, images(8))
    assert {name for name, difference in found.items() if difference > 1e-3} == {
        'parent', 'uneven', 'whole'
    }  # fmt: skip


def test_a_stranger_switches_members(autoformer, tmp_path):
    folder = export_family(autoformer, SUBNETS, tmp_path / 'family')
    save_file(dict(images=images()), tmp_path / 'given')
    paths = map(str, (folder, tmp_path / 'given', tmp_path / 'wanted'))
    done = subprocess.run(
        [sys.executable, '-c', ALONE, *paths], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, subnet in SUBNETS.items():
        autoformer.set_subnet(subnet)
        with torch.no_grad():
            expected = autoformer(images(), mode='tensor')
        found = load_file(tmp_path / 'wanted')[name]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def folder(autoformer, tmp_path):
    return export_family(autoformer, SUBNETS, tmp_path / 'family')


def change(folder, edit):
    path = folder / 'family.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda d: d.update(format='x'), "is of format 'x', expected tas_lora.vit_family/1"),
        (lambda d: d.update(block_order=[0, 1, 1]), 'block_order must hold each block from 0 to 2'),
        (lambda d: d.update(block_order='012'), 'block_order must hold each block'),
        (lambda d: d.update(block_order=[[0], 1, 2]), 'block_order must hold each block'),
        (lambda d: d.update(block_order=[True, 2, 0]), 'block_order must hold each block'),
        (lambda d: d.update(qkv_bias_by_part=1), 'qkv_bias_by_part must be true or false'),
        (lambda d: d.pop('members'), 'members must be a dict'),
        (lambda d: d.update(members=dict(parent={})), "underscores, and not 'parent'"),
        (lambda d: d['members'].update({'a.b': d['members']['small']}), 'members must be a dict'),
        (lambda d: d['members'].update(small=[]), 'members.small must be a dict of '),
        (lambda d: d['members']['small'].pop('num_heads'), 'members.small must be a dict of '),
        (lambda d: d['members']['small'].update(num_experts='x'), 'members.small must be a dict'),
        (
            lambda d: d['members']['small'].update(num_experts=9),
            'differ in 1 tensors, the first',
        ),
        (lambda d: d['members']['small'].update(embed_dim=0), 'network.embed_dim must be a positi'),
        (lambda d: d['members']['small'].update(embed_dim=25), 'members.small must be a slice of'),
        (lambda d: d['members']['small'].update(num_heads=[1, 3]), 'members.small must be a slice'),
        (
            lambda d: d['members']['small'].update(num_heads=[1] * 4, hidden_dims=[1] * 4),
            'members.small must be a slice of the parent',
        ),
        (lambda d: d.update(experts=[]), 'experts must be a dict of layers such as blocks.0'),
        (lambda d: d['experts'].update(x=[1, 1]), 'experts must be a dict of layers such as'),
        (
            lambda d: d['experts'].update({'blocks.0.fc1': 2}),
            'experts.blocks.0.fc1 must be the num',
        ),
        (lambda d: d['experts'].update({'blocks.0.fc1': [1, 0]}), 'experts.blocks.0.fc1 must be'),
        (lambda d: d['experts'].pop('blocks.0.fc1'), 'differ in 2 tensors, the first experts.bl'),
        (lambda d: d['network'].update(act='x'), "network.act must be 'gelu' or"),
    ],
)
def test_a_description_that_is_wrong_is_one_line(folder, edit, message):
    change(folder, edit)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_family(folder)
    assert '\n' not in str(caught.value)


def test_damaged_weights_are_named(folder):
    content = bytearray((folder / 'family.safetensors').read_bytes())
    content[-5] ^= 1
    (folder / 'family.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match='is damaged, or does not match family.json: SHA-256'):
        load_family(folder)
    (folder / 'family.safetensors').unlink()
    with pytest.raises(ValueError, match='family.safetensors cannot be read'):
        load_family(folder)


def test_members_that_cannot_be(autoformer, folder, tmp_path):
    with pytest.raises(ValueError, match=r"there is no member 'x'; choose one of \['parent'"):
        load_family(folder).set_subnet('x')
    for name in ('parent', 'a b', 'a.b', ''):
        with pytest.raises(UserError, match='a member is called'):
            export_family(autoformer, {name: SPACE.smallest()}, tmp_path / 'out')
    with pytest.raises(UserError, match='embed_dim is 32, the supernet has 24'):
        export_family(autoformer, dict(x=Subnet(32, (1,), (1.0,))), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_tool(digits_config, digits_root, tmp_path, capsys):
    model = trained_like(load_supernet(digits_config('moLE')))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'experts.pth')
    files = [tmp_path / 'small.json', tmp_path / 'large.json']
    for path, subnet in zip(files, (Subnet(24, (3, 2), (2.0, 4.0)), model.subnet), strict=True):
        path.write_text(json.dumps(subnet.to_dict()))
    command = (ROOT / 'configs/digits_moLE.py', tmp_path / 'experts.pth', '--out', tmp_path / 'out')
    command += ('--cfg-options', f'test_dataloader.dataset.data_root={digits_root}')
    assert call_tool('export_family.py', *command, '--subnets', *files) == 0
    printed = capsys.readouterr().out
    assert re.search(r'^parent: logits of 64 random images differ by at most', printed, re.M)
    assert re.search(r'the parent and 2 members to .* \d+% of 3 single exports', printed)
    assert load_family(tmp_path / 'out').members == ['parent', 'small', 'large']
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'family.json',
        'family.safetensors',
        'plain_vit.py',
        'vit_family.py',
    }
    assert call_tool('export_family.py', *command, '--subnets', files[0], files[0]) == 2
    assert 'two files of --subnets are called small; rename one' in capsys.readouterr().err
