"""Files made to run code, to escape their folder or to fill the memory: refused, nothing run."""

import argparse
import collections
import http.server
import io
import os
import pickle
import re
import subprocess
import threading
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch._utils import _rebuild_tensor_v2

from tas_lora import UserError, apis
from tas_lora.models.safe_load import read_checkpoint, read_state_dict


class Calls:
    """Unpickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        if self.state is None:
            return self.function, self.arguments
        return self.function, self.arguments, self.state


def object_array(payload) -> np.ndarray:
    """NumPy pickles the objects of such an array along with it."""
    array = np.empty(1, dtype=object)
    array[0] = payload
    return array


@pytest.fixture
def canary(tmp_path):
    """A file that appears if code was run."""
    path = tmp_path / 'canary'
    yield path
    assert not path.exists(), 'code was run'


def payloads(canary) -> dict:
    run = Calls(os.system, f'touch {canary}')
    method = Calls(getattr, HistoryBuffer, 'min')  # this one is allowed
    numpy_scalar, numpy_array = (x.__reduce__()[0] for x in (np.float64(0), np.empty(0)))
    return {
        'os.system': run,
        'subprocess': Calls(subprocess.call, ['touch', str(canary)]),
        'eval': Calls(eval, f'open({str(canary)!r}, "w")'),
        'exec': Calls(exec, f'open({str(canary)!r}, "w")'),
        'import': Calls(__import__, 'os'),
        'getattr of a method': Calls(getattr, method, '__globals__'),
        'getattr of a class': Calls(getattr, HistoryBuffer, '__init__'),
        'getattr of a subclass hook': Calls(getattr, HistoryBuffer, '__subclasshook__'),
        'numpy object array': object_array(run),
        'numpy reconstruct': Calls(numpy_array, os.system, (0,), b'b'),
        'numpy scalar': Calls(numpy_scalar, np.dtype(object), run),
        'namespace': argparse.Namespace(lr=1.0, evil=run),
        'nested namespaces': argparse.Namespace(a=argparse.Namespace(b=[dict(c=run)])),
        'state of a buffer': Calls(HistoryBuffer, state=dict(_log_history=run)),
        'torch.load in a file': Calls(torch.load, str(canary), state=dict(weights_only=False)),
        'ordered dict': collections.OrderedDict(a=run),
        'open': Calls(open, str(canary), 'w'),
    }


NAMES = list(payloads('canary'))


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('name', NAMES)
def test_a_file_that_runs_code_is_refused(tmp_path, canary, name, protocol):
    file = tmp_path / 'evil.pth'
    content = dict(state_dict={'x': torch.zeros(1)}, extra=payloads(canary)[name])
    torch.save(content, file, pickle_protocol=protocol)
    with pytest.raises(UserError, match='is not a readable checkpoint'):
        read_state_dict(file)


@pytest.mark.parametrize('name', ['os.system', 'numpy object array', 'getattr of a method'])
def test_old_formats_too(tmp_path, canary, name):
    payload = payloads(canary)[name]
    torch.save(dict(x=payload), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path / 'bare.pth').write_bytes(pickle.dumps(payload))
    (tmp_path / 'evil.safetensors').write_bytes(pickle.dumps(payload))
    for file in ('old.pth', 'bare.pth', 'evil.safetensors'):
        with pytest.raises(UserError, match='is not a readable checkpoint'):
            read_checkpoint(tmp_path / file)


def test_the_payloads_would_run(tmp_path):
    """Else the tests above would prove nothing."""
    for name in ('os.system', 'subprocess', 'eval', 'exec', 'numpy object array', 'namespace'):
        canary = tmp_path / f'{name.split()[0]}.txt'
        torch.save(dict(x=payloads(canary)[name]), tmp_path / 'evil.pth')
        torch.load(tmp_path / 'evil.pth', weights_only=False)
        assert canary.exists(), name


def test_no_environment_variable_opens_the_door(tmp_path, canary, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(x=payloads(canary)['os.system']), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='such files can run code'):
        read_state_dict(tmp_path / 'evil.pth')


class Storage:
    """A storage that a file declares."""

    def __init__(self, size: int):
        self.size = size


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return 'storage', torch.FloatStorage, '0', 'cpu', value.size
        return None


def crafted(path, storage: int, shape: tuple, stride: tuple, entries=(), compress=False):
    """A checkpoint with one tensor of 4 numbers, declared as another."""
    buffer = io.BytesIO()
    rebuilt = (Storage(storage), 0, shape, stride, False, collections.OrderedDict())
    Pickler(buffer, 2).dump(dict(state_dict=dict(x=Calls(_rebuild_tensor_v2, *rebuilt))))
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED if compress else 0) as archive:
        archive.writestr('archive/data.pkl', buffer.getvalue())
        archive.writestr('archive/version', '3')
        archive.writestr('archive/byteorder', 'little')
        archive.writestr('archive/data/0', b'\0' * (4 * storage if compress else 16))
        for name in entries:
            archive.writestr(name, 'evil')
    return path


def test_a_crafted_file_of_true_sizes_is_read(tmp_path):
    file = crafted(tmp_path / 'true.pth', 4, (4,), (1,))
    assert torch.equal(read_state_dict(file)['x'], torch.zeros(4))


@pytest.mark.parametrize(
    ('storage', 'shape', 'stride', 'compress'),
    [
        (10**13, (10**13,), (1,), False),  # a storage that is not there
        (4, (10**13,), (1,), False),  # more than its storage holds
        (4, (10**6, 10**6), (0, 0), False),  # one number, many times
        (10**7, (10**7,), (1,), True),  # 40 MB of zeros in 40 KB
    ],
)
def test_a_gigantic_tensor_is_refused(tmp_path, storage, shape, stride, compress):
    file = crafted(tmp_path / 'giant.pth', storage, shape, stride, compress=compress)
    with pytest.raises(UserError, match=r'giant\.pth'):
        read_state_dict(file)


def test_names_that_lead_out_of_the_archive_write_nothing(tmp_path):
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    names = ['../../slipped', str(tmp_path / 'absolute')]
    for name in names:
        with pytest.raises(UserError, match='it has an entry outside of itself'):
            read_state_dict(crafted(folder / 'slip.pth', 4, (4,), (1,), entries=[name]))
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a', 'b', 'slip.pth']


def test_a_config_inside_a_checkpoint_is_not_run(digits_config, tmp_path, canary):
    """MMEngine's ``resume`` takes ``meta.config`` of the file for Python and runs it."""
    first = digits_config('supernet', images=64)
    apis.train(first)
    checkpoint = read_checkpoint(f'{first.work_dir}/epoch_1.pth')
    code = f'open({str(canary)!r}, "w")'
    checkpoint['meta']['config'] = code
    torch.save(checkpoint, tmp_path / 'evil.pth')
    cfg = digits_config('supernet', images=64)
    cfg.load_from, cfg.resume = str(tmp_path / 'evil.pth'), True
    apis.train(cfg)
    assert not canary.exists()
    Config.fromstring(code, file_format='.py')  # this is what MMEngine does with it
    assert canary.exists()
    canary.unlink()


@pytest.fixture
def address(tmp_path):
    """A web server of ``tmp_path``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_downloads_are_read_as_safely(digits_config, tmp_path, canary, address, monkeypatch):
    """MMEngine unpickles whatever an address in ``load_from`` gives."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    cfg = digits_config('supernet', images=64)
    good = apis.load_supernet(cfg).state_dict()
    torch.save(dict(state_dict=good), tmp_path / 'good.pth')
    torch.save(dict(state_dict=good, x=payloads(canary)['os.system']), tmp_path / 'evil.pth')
    cfg.load_from = f'{address}/good.pth'
    apis.check_training(cfg)
    cfg.load_from = f'{address}/evil.pth'
    with pytest.raises(UserError, match='such files can run code'):
        apis.check_training(cfg)
    cfg.load_from = f'{address}/missing.pth'
    with pytest.raises(UserError, match='cannot be downloaded'):
        apis.check_training(cfg)
    cfg.load_from = 's3://bucket/good.pth'
    with pytest.raises(
        UserError, match=r'is neither a file nor an http\(s\) address; download it first'
    ):
        apis.check_training(cfg)


def test_every_reading_of_pickles_is_of_weights_only():
    """A later line that forgets it is found here."""
    sources = [path for folder in ('tas_lora', 'tools') for path in (ROOT / folder).rglob('*.py')]
    text = '\n'.join(path.read_text() for path in sources)
    assert not re.search(r'pickle\.loads?\(|allow_pickle|weights_only=False|[^_]load_url\(', text)
    calls = re.findall(r'torch\.load\(.*', text)
    assert calls
    assert all('weights_only=True' in call for call in calls)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('pretrained', 'http://somewhere/evil.pth'),
        ('init_cfg', dict(type='Pretrained', checkpoint='http://somewhere/evil.pth')),
        ('head.init_cfg', dict(type='Pretrained', checkpoint='evil.pth')),
        ('router.init_cfg', dict(type='Pretrained', checkpoint='evil.pth')),
    ],
)
def test_weights_that_mmengine_would_unpickle_are_refused(digits_config, field, value):
    cfg = digits_config('moLE')
    cfg.merge_from_dict({f'model.{field}': value})
    with pytest.raises(UserError, match='weights are loaded safely by load_from'):
        apis.load_supernet(cfg)


def test_the_backbone_of_a_supernet_reads_its_own_file_safely(digits_config, tmp_path, canary):
    torch.save(dict(x=payloads(canary)['os.system']), tmp_path / 'evil.pth')
    cfg = digits_config('moLE')
    cfg.model.backbone.init_cfg = [dict(type='Pretrained', checkpoint=f'{tmp_path}/evil.pth')]
    with pytest.raises(UserError, match='such files can run code'):
        apis.load_supernet(cfg).init_weights()
    assert not canary.exists()


def test_tensors_of_no_plain_kind_are_refused(tmp_path):
    nested = []
    nested.append(nested)
    for name, value in dict(
        sparse=torch.eye(3).to_sparse(), meta=torch.empty(10**12, device='meta'), nested=nested
    ).items():
        torch.save(dict(state_dict=dict(x=value)), tmp_path / f'{name}.pth')
        with pytest.raises(UserError, match=rf'{name}\.pth'):
            read_state_dict(tmp_path / f'{name}.pth')
