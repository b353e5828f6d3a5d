"""Anything read from a file or a config is valid, or refused by our own error."""

import json
import re
import resource
import warnings
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from math import nan

import numpy as np
import pytest
import torch
from fuzzing import (
    anything,
    damaged,
    damaged_weights,
    fuzz,
    mutated,
    numbers,
    safetensors,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from tiny import CLASSES, SPACE, SPACE_DICT, tiny_config, tiny_model
from vectors import official_shapes

from tas_lora import SearchSpace, Subnet, UserError, export_subnet, load_supernet
from tas_lora.models.checkpoint import (
    adapt_state_dict,
    adapt_to_start,
    describe,
    from_autoformer,
    is_autoformer,
)
from tas_lora.models.plain_vit import load_plain_vit
from tas_lora.search import read_history

SUBNET = Subnet(16, [1, 2], [1.0, 2.0]).to_dict()
RECORD = dict(generation=0, precision='float32', subnet=SUBNET, params=1234, cross_entropy=0.5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


def write(path, content: bytes):
    """A new file, because the old one may still be mapped into memory."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def as_json(values: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


# Subnets and spaces


def check_subnet(subnet: Subnet) -> None:
    assert Subnet.from_dict(subnet.to_dict()) == subnet
    assert Subnet.from_dict(json.loads(json.dumps(subnet.to_dict()))) == subnet
    assert hash(subnet) == hash(Subnet.coerce(subnet.to_dict()))
    assert min(subnet.hidden_dims) > 0
    subnet.check_fits(subnet)


@given(anything | mutated(SUBNET) | mutated(SUBNET, numbers))
@fuzz
def test_subnets_from_dicts(value):
    with suppress(UserError):
        check_subnet(Subnet.from_dict(value))


@given(anything | mutated(RECORD) | mutated(SUBNET))
@fuzz
def test_subnets_from_anything(value):
    with suppress(UserError):
        check_subnet(Subnet.coerce(value))


@given(content=st.binary() | damaged(json.dumps(RECORD).encode()) | as_json(anything))
@fuzz
def test_subnets_from_files(folder, content):
    with suppress(UserError):
        check_subnet(Subnet.coerce(write(folder / 'subnet.json', content)))


def check_space(space: SearchSpace) -> None:
    assert SearchSpace.coerce(asdict(space)) == space
    assert space.sample(np.random.default_rng(0)) in space
    assert space.smallest() in space
    assert space.largest() in space
    assert space.size >= 1


@given(anything | mutated(SPACE_DICT) | mutated(SPACE_DICT, numbers))
@fuzz
def test_spaces_from_dicts(value):
    with suppress(UserError):
        check_space(SearchSpace.coerce(value))


@given(st.tuples(*(anything | mutated(choices, numbers) for choices in SPACE_DICT.values())))
@fuzz
def test_spaces_from_arguments(values):
    with suppress(UserError):
        check_space(SearchSpace(*values))


# Exported networks


@pytest.fixture(scope='module')
def exported(folder):
    """An exported network: where it is, what its JSON says, and its weights as bytes."""
    out = export_subnet(tiny_model(), SPACE.smallest(), folder / 'exported')
    description = json.loads((out / 'architecture.json').read_text())
    del description['weights_sha256']  # by which any damage would be told at once
    return out, description, (out / 'weights.safetensors').read_bytes()


@contextmanager
def little_memory(more: int = 2**30):
    """Refuse this process more than a GB beyond what it has."""
    pages = int(open('/proc/self/statm').read().split()[0])  # noqa: SIM115
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def check_plain(out) -> None:
    """Loads and runs, or is refused in one line that names a file."""
    try:
        model, description = load_plain_vit(out)
    except ValueError as error:
        if type(error) is ValueError and re.search('architecture|weights.safetensors', str(error)):
            return
        raise
    size, channels = (description['network'][name] for name in ('img_size', 'in_channels'))
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, CLASSES)


@given(data=st.data())
@fuzz
def test_architectures_of_exports(exported, data):
    out, description, weights = exported
    write(out / 'weights.safetensors', weights)
    network = mutated(description['network']) | mutated(description['network'], numbers)
    content = data.draw(
        network.map(lambda network: json.dumps(description | dict(network=network)).encode())
        | as_json(mutated(description))
        | as_json(anything)
        | damaged(json.dumps(description).encode())
    )
    write(out / 'architecture.json', content)
    with little_memory():
        check_plain(out)


@given(data=st.data())
@fuzz
def test_weights_of_exports(exported, data):
    out, description, weights = exported
    write(out / 'architecture.json', json.dumps(description).encode())
    start = 8 + int.from_bytes(weights[:8], 'little')
    header, rest = json.loads(weights[8:start]), weights[start:]
    content = data.draw(
        damaged(weights, head=start)
        | mutated(header).map(lambda header: safetensors(header, rest))
        | mutated(header, numbers | st.sampled_from(['I32', 'U32', 'F16', 'C64', 'F8_E4M3'])).map(
            lambda header: safetensors(header, rest)
        )
        | damaged_weights(load(weights)).map(saved)
        | st.binary()
    )
    write(out / 'weights.safetensors', content)
    with little_memory():
        check_plain(out)


def saved(state: dict[str, torch.Tensor]) -> bytes:
    return save({name: value.contiguous() for name, value in state.items()})


def test_weights_that_are_integers_are_refused(exported):
    out, description, weights = exported
    state = load(weights)
    write(out / 'architecture.json', json.dumps(description).encode())
    write(out / 'weights.safetensors', save(state | {'norm.bias': state['norm.bias'].int()}))
    with pytest.raises(ValueError, match='norm.bias is of torch.int32, expected floating point'):
        load_plain_vit(out)
    write(out / 'weights.safetensors', save({k: v.half() for k, v in state.items()}))
    assert load_plain_vit(out)[0].norm.bias.dtype == torch.float32


@pytest.mark.parametrize('size', [10**8, 10**9 - 8, 2**31, 2**63, 10**30])
def test_enormous_architectures_are_refused_without_memory(exported, size):
    out, description, weights = exported
    write(out / 'weights.safetensors', weights)
    for name, value in description['network'].items():
        if name == 'pooling':
            continue
        large = [size] * len(value) if isinstance(value, list) else size
        content = description | dict(network=description['network'] | {name: large})
        write(out / 'architecture.json', json.dumps(content).encode())
        with little_memory(), pytest.raises(ValueError, match='architecture'):
            load_plain_vit(out)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(format='other'), "is of format 'other', expected tas_lora.plain_vit/1"),
        (dict(network=None), 'network must be a dict of'),
        (
            dict(network=dict(embed_dim=16.0)),
            'network.embed_dim must be a positive integer, got 16.0',
        ),
        (
            dict(network=dict(in_channels=True)),
            'network.in_channels must be a positive integer, got T',
        ),
        (dict(network=dict(num_heads=[])), r'network.num_heads must be a list, got \[\]'),
        (dict(network=dict(num_heads=[1])), 'must have the same length'),
        (dict(network=dict(hidden_dims=[16, -1])), r'network.hidden_dims\[1\] must be a positive'),
        (dict(network=dict(pooling='max')), "network.pooling must be 'avg_featmap' or 'cls_token'"),
        (
            dict(network=dict(img_size=9)),
            'network.img_size must be a multiple of network.patch_size',
        ),
        (dict(network=dict(img_size=1000)), 'up to 64 times, got 1000'),
        (
            dict(network=dict(img_size=10)),
            r'1 tensors, the first pos_embed: .* \(1, 26, 16\) in the arc',
        ),
        (dict(network=dict(num_heads=[1] * 99, hidden_dims=[9] * 99)), 'has more blocks than'),
        (dict(preprocess=3), 'preprocess must be a dict with mean and std, got 3'),
        (dict(preprocess=dict(mean=[nan], std=[1])), 'preprocess.mean must be None or 1 numbers'),
        (dict(preprocess=dict(mean=[1], std=[0.0])), 'preprocess.std must not be 0'),
    ],
)
def test_what_is_wrong_with_an_architecture_is_said(exported, change, message):
    out, description, weights = exported
    description = deepcopy(description)
    network = change.get('network')
    if isinstance(network, dict):
        change = dict(network=description['network'] | network)
    write(out / 'architecture.json', json.dumps(description | change).encode())
    write(out / 'weights.safetensors', weights)
    with pytest.raises(ValueError, match=message):
        load_plain_vit(out)


def test_missing_files_of_an_export_are_named(folder, exported):
    with pytest.raises(
        ValueError, match=r'nowhere/architecture.json cannot be read: .*No such file'
    ):
        load_plain_vit(folder / 'nowhere')
    (exported[0] / 'weights.safetensors').unlink()
    write(exported[0] / 'architecture.json', json.dumps(exported[1]).encode())
    with pytest.raises(ValueError, match=r'weights.safetensors cannot be read: .*No such file'):
        load_plain_vit(exported[0])


# The history of a search


def lines(records) -> bytes:
    return b''.join(json.dumps(record).encode() + b'\n' for record in records)


HISTORY = lines([RECORD] * 3)


@given(
    content=st.binary()
    | damaged(HISTORY)
    | st.lists(mutated(RECORD) | st.just(RECORD), max_size=4).map(lines)
    | st.lists(anything, max_size=3).map(lines)
)
@fuzz
def test_histories(folder, content):
    path = write(folder / 'history.jsonl', content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            history = read_history(path)
        except UserError as error:
            if str(path) in str(error):
                return
            raise
    assert history
    for record in history:
        assert isinstance(record['subnet'], dict)
        assert all(
            float(v) is not None for k, v in record.items() if k not in ('subnet', 'precision')
        )


@given(cut=st.integers(1, len(HISTORY) // 3))
@fuzz
def test_a_torn_last_line_is_left_out(folder, cut):
    path = write(folder / 'history.jsonl', HISTORY[:-cut])
    if cut == len(HISTORY) // 3:
        assert len(read_history(path)) == 2
        return
    with pytest.warns(UserWarning, match='the last line is truncated, ignored'):
        assert read_history(path) == [RECORD] * 2


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty: the search scored no subnet'),
        (HISTORY + b'{\n' + HISTORY, 'history.jsonl, line 4 is damaged: '),
        (HISTORY + b'\n' + HISTORY, 'line 4 is damaged'),
        (b'\xff\n' + HISTORY, 'line 1 is damaged'),
        (lines([RECORD, [3]]), r'line 2: expected a dict with a subnet and numbers, got \[3\]'),
        (lines([RECORD | dict(subnet=3)]), 'line 1: expected a dict with a subnet and numbers'),
        (lines([RECORD | dict(params='3')]), "line 1: 'params' must be a number, got '3'"),
        (lines([RECORD | dict(params=True)]), "'params' must be a number, got True"),
        (lines([RECORD | dict(precision=32)]), 'precision must be a string, got 32'),
    ],
)
def test_what_is_wrong_with_a_history_is_said(folder, content, message):
    with pytest.raises(UserError, match=message):
        read_history(write(folder / 'history.jsonl', content))


def test_a_history_that_cannot_be_read():
    for path, reason in (('nowhere.jsonl', 'No such file'), ('.', 'Is a dir'), ('\0', 'null byte')):
        with pytest.raises(UserError, match=f'cannot be read: .*{reason}'):
            read_history(path)


def test_a_score_may_be_no_number(folder):
    content = lines([RECORD | dict(cross_entropy=nan)])
    (record,) = read_history(write(folder / 'history.jsonl', content))
    assert np.isnan(record['cross_entropy'])


# Checkpoints of the official code, and others

NET = dict(embed_dim=16, depth=2, patch_size=2, img_size=8, mlp_ratio=2, num_heads=2, in_chans=1)
OFFICIAL = {
    name: torch.zeros(shape)
    for name, shape in official_shapes(NET | dict(max_relative_position=2, num_classes=5)).items()
}
BARE = dict(tiny_model(mole=False, arch=Subnet(16, [2, 2], [2, 2])).named_parameters())
EXPERTS = dict(tiny_model().named_parameters())
SMALLEST = dict(tiny_model(mole=False, arch=SPACE.smallest()).named_parameters())

PLAIN = tiny_config(mole=False, arch=Subnet(16, [2, 2], [2, 2]))
PLAIN['model']['backbone'].update(max_relative_position=None, style=dict(layer_scale=1.0))
PRETRAINED = dict(load_supernet(PLAIN).named_parameters())


def foreign() -> dict[str, dict]:
    """The network of ``PRETRAINED``, without LayerScale, by the names of each library."""
    blocks = {
        'timm': 'blocks.{}',
        'huggingface': 'vit.encoder.layer.{}',
        'mmpretrain': 'backbone.layers.{}',
    }
    parts = {
        'timm': ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'),
        'huggingface': (
            'layernorm_before',
            *(f'attention.attention.{name}' for name in ('query', 'key', 'value')),
            'attention.output.dense',
            'layernorm_after',
            'intermediate.dense',
            'output.dense',
        ),
        'mmpretrain': ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1'),
    }
    ends = {
        'timm': ('cls_token', 'pos_embed', 'patch_embed.proj', 'norm', 'head'),
        'huggingface': (
            'vit.embeddings.cls_token',
            'vit.embeddings.position_embeddings',
            'vit.embeddings.patch_embeddings.projection',
            'vit.layernorm',
            'classifier',
        ),
        'mmpretrain': (
            'backbone.cls_token',
            'backbone.pos_embed',
            'backbone.patch_embed.projection',
            'backbone.ln1',
            'head.fc',
        ),
    }
    split = dict(huggingface=[(16, 16)] * 3)
    found = {}
    for library, block in blocks.items():
        qkv = split.get(library, [(48, 16)])
        shapes = [(16,), *qkv, (16, 16), (16,), (32, 16), (16, 32)]
        layers = dict(zip(ends[library][2:], [(16, 1, 2, 2), (16,), (5, 16)], strict=True))
        for i in range(2):
            layers |= {
                f'{block.format(i)}.{name}': shape
                for name, shape in zip(parts[library], shapes, strict=True)
            }
        state = {f'{name}.weight': torch.zeros(shape) for name, shape in layers.items()}
        state |= {f'{name}.bias': torch.zeros(shape[0]) for name, shape in layers.items()}
        state |= dict(zip(ends[library][:2], [torch.zeros(1, n, 16) for n in (1, 17)], strict=True))
        found[library] = state
    return found


FOREIGN = foreign()


def check_adapted(adapt, state: dict, model: dict) -> None:
    """Refused, or of the model's names and shapes."""
    try:
        adapt(state, model)
        adapt_state_dict(state, model)
    except UserError:
        return
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in model.items()}


def test_official_weights_as_they_are_fit():
    state = dict(OFFICIAL)
    adapt_state_dict(state, BARE)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in BARE.items()}


@given(damaged_weights(OFFICIAL))
@fuzz
def test_official_weights(state):
    with suppress(UserError):
        if is_autoformer(state):
            state = from_autoformer(state)
        assert describe(state)['depth'] >= 1


@pytest.mark.parametrize('adapt', [adapt_state_dict, adapt_to_start])
@given(state=damaged_weights(OFFICIAL))
@fuzz
def test_official_weights_for_a_model(adapt, state):
    check_adapted(adapt, state, BARE)


@pytest.mark.parametrize('library', FOREIGN)
@pytest.mark.parametrize('adapt', [adapt_state_dict, adapt_to_start])
@given(data=st.data())
@fuzz
def test_weights_of_other_libraries_for_a_model(library, adapt, data):
    check_adapted(adapt, data.draw(damaged_weights(FOREIGN[library])), PRETRAINED)


@pytest.mark.parametrize('library', FOREIGN)
def test_weights_of_other_libraries_as_they_are_fit(library):
    state = dict(FOREIGN[library])
    adapt_state_dict(state, PRETRAINED)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in PRETRAINED.items()}


@pytest.mark.parametrize('adapt', [adapt_state_dict, adapt_to_start])
@given(state=damaged_weights(EXPERTS) | damaged_weights(BARE))
@fuzz
def test_own_weights_for_a_model(adapt, state):
    check_adapted(adapt, state, EXPERTS)


@given(data=st.data())
@fuzz
def test_exported_weights_for_a_model(exported, data):
    state = data.draw(damaged_weights(load(exported[2])))
    check_adapted(adapt_state_dict, state, SMALLEST)
