"""Contents of an export's folder after one run and after the next."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call_tool
from test_export import trained_like
from tiny import SPACE, images, tiny_model

from tas_lora import UserError, export_subnet
from tas_lora.export import FORMATS, Source, export_formats
from tas_lora.export.parity import (
    OLDER,
    _is_other,
    _link_or_copy,
    check_place,
    held_for_export,
    restore_older,
    write_formats,
)

FILES = {'weights.safetensors', 'architecture.json', 'plain_vit.py', 'MODEL_CARD.md'}


@pytest.fixture(scope='module')
def model():
    return trained_like(tiny_model())


@pytest.fixture(scope='module')
def sources(model, tmp_path_factory) -> list[Source]:
    """Two subnets of one supernet."""
    chosen = SPACE.smallest(), SPACE.largest()
    folders = [tmp_path_factory.mktemp('source') for _ in chosen]
    pairs = zip(chosen, folders, strict=True)
    return [Source.read(export_subnet(model, subnet, folder)) for subnet, folder in pairs]


def noted(name: str, off: float = 0.0, fails: bool = False):
    """A format by name that writes the width down, and runs what was to be written."""
    (form,) = (form for form in FORMATS if form.name == name)
    nets = []

    def write(source, folder):
        nets[:] = [source.net]
        (folder / form.file).write_text(str(source.network['embed_dim']))
        if fails:
            raise RuntimeError('no space left')

    @torch.no_grad()
    def run(folder, batches):
        return [nets[0](batch) + off for batch in batches]

    return replace(form, write=write, run=run)


ROOT = FORMATS[0]


def contents(folder) -> dict[str, str]:
    """Width of each format that is there."""
    found = {form.name: folder / form.folder / form.file for form in FORMATS if not form.root}
    return {name: path.read_text() for name, path in found.items() if path.exists()}


def test_another_network_leaves_nothing_of_the_first(model, sources, tmp_path):
    first, second = sources
    export_formats(model, first, [ROOT, noted('onnx'), noted('timm')], tmp_path)
    (tmp_path / 'onnx' / 'model_int8.onnx').write_text('16')
    (tmp_path / 'notes.txt').write_text('mine')
    found = export_formats(model, second, [ROOT, noted('onnx')], tmp_path)
    assert all(each.held for each in found)
    assert contents(tmp_path) == dict(onnx='24')
    assert [path.name for path in (tmp_path / 'onnx').iterdir()] == ['model.onnx']
    assert {path.name for path in tmp_path.iterdir()} == FILES | {'onnx', 'notes.txt'}
    assert Source.read(tmp_path).network['embed_dim'] == 24


@pytest.mark.parametrize('wrong', [dict(off=1.0), dict(fails=True)])
def test_a_failure_leaves_nothing_of_another_network(model, sources, tmp_path, wrong):
    first, second = sources
    export_formats(model, first, [ROOT, noted('onnx')], tmp_path)
    root, other = export_formats(model, second, [ROOT, noted('onnx', **wrong)], tmp_path)
    assert root.held
    assert not other.held
    assert not other.older
    assert contents(tmp_path) == {}
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_failure_leaves_the_same_network_and_says_so(model, sources, tmp_path):
    export_formats(model, sources[0], [ROOT, noted('onnx'), noted('timm')], tmp_path)
    _, wrong = export_formats(model, sources[0], [ROOT, noted('onnx', off=1.0)], tmp_path)
    assert str(wrong).endswith('(ABOVE 1e-04); the files of an earlier run are still there')
    assert contents(tmp_path) == dict(onnx='16', timm='16')


def test_where_nothing_agrees_the_first_network_stays(model, sources, tmp_path):
    first, second = sources
    forms = [noted('onnx'), noted('timm')]
    export_formats(model, first, [ROOT, *forms], tmp_path)
    failing = [noted('onnx', off=torch.nan), noted('timm', fails=True)]
    found = export_formats(model, second, failing, tmp_path)
    assert all('the files of an earlier run are still there' in str(each) for each in found)
    assert contents(tmp_path) == dict(onnx='16', timm='16')
    assert Source.read(tmp_path).network['embed_dim'] == 16


def test_what_a_killed_run_left_goes(model, sources, tmp_path):
    (tmp_path / '.export-abcd' / 'onnx').mkdir(parents=True)
    (tmp_path / '.export-abcd' / 'onnx' / 'model.onnx').write_text('x')
    assert export_formats(model, sources[0], [ROOT], tmp_path)[0].held
    assert {path.name for path in tmp_path.iterdir()} == FILES


def files_of(folder) -> dict[str, bytes]:
    """All files that are not hidden, without those kept of an earlier run."""
    paths = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
    shown = [path for path in paths if path.parts[0] != OLDER and path.parts[0][0] != '.']
    return {
        str(path): (folder / path).read_bytes() for path in shown if 'run.lock' not in str(path)
    }


def end_at_rename(number: int, job, *arguments) -> int:
    """Do a job in another process, which ends like a killed one before a rename; its exit code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = [number]

    def ending(rename):
        def rename_or_end(*arguments):
            left[0] -= 1
            if not left[0]:
                os._exit(9)
            return rename(*arguments)

        return rename_or_end

    Path.rename, Path.replace = ending(Path.rename), ending(Path.replace)
    try:
        job(*arguments)
    finally:
        os._exit(1 if sys.exc_info()[0] else 0)


def test_killed_at_any_rename_the_older_network_is_not_lost(model, sources, tmp_path, capsys):
    """It is whole in its place or in `older-export`, and the next run puts it back."""
    first, second = sources
    forms = [ROOT, noted('onnx'), noted('timm')]
    export_formats(model, first, forms, tmp_path / 'first')
    export_formats(model, second, forms[:2], tmp_path / 'second')
    old, new = files_of(tmp_path / 'first'), files_of(tmp_path / 'second')
    ways = set()
    for number in itertools.count(1):
        out = shutil.copytree(tmp_path / 'first', tmp_path / str(number))
        (out / 'notes.txt').write_text('mine')
        if end_at_rename(number, export_formats, model, second, forms[:2], out) == 0:
            break
        kept = files_of(out / OLDER) if (out / OLDER).exists() else None
        seen = files_of(out)
        assert seen.pop('notes.txt') == b'mine'
        assert old in (seen, kept) or seen == new, number
        ways.add('in its place' if seen == old else 'kept' if kept == old else 'done')
        if kept is not None:
            assert end_at_rename(1, restore_older, out) == 9  # killed again
            capsys.readouterr()
            failing = [noted('onnx', fails=True)]
            assert not export_formats(model, second, failing, out)[0].held
            assert 'what was there before is put back' in ' '.join(capsys.readouterr().out.split())
            assert files_of(out) == old | {'notes.txt': b'mine'}
            assert not (out / OLDER).exists()
        export_formats(model, second, forms[:2], out)
        assert files_of(out) == new | {'notes.txt': b'mine'}
        assert [path.name for path in out.iterdir() if path.name[0] == '.'] == []
    assert ways >= {'in its place', 'kept'}


def refused(left: int, lasting: bool, job, *arguments) -> str:
    """Do a job; the system refuses one of its moves, and all later ones if ``lasting``."""
    moves = {name: getattr(Path, name) for name in ('rename', 'replace')}

    def failing(move):
        def move_or_fail(path, target):
            nonlocal left
            left -= not path.name.endswith('.tmp')  # such is the lock's record
            if left == 0 or (left < 0 and lasting):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return move(path, target)

        return move_or_fail

    with pytest.MonkeyPatch.context() as patch:
        for name, move in moves.items():
            patch.setattr(Path, name, failing(move))
        try:
            job(*arguments)
        except UserError as error:
            return str(error)
    return ''


@pytest.mark.parametrize('lasting', [False, True])
@pytest.mark.parametrize('before', ['first', 'nothing'])
def test_an_exchange_that_the_system_refuses_is_undone(model, sources, tmp_path, before, lasting):
    """At each of its moves; if the disk stays broken, the next export undoes it."""
    forms = [ROOT, noted('onnx'), noted('timm')]
    (tmp_path / before).mkdir()
    (tmp_path / before / 'notes.txt').write_text('mine')
    if before == 'first':
        export_formats(model, sources[0], forms, tmp_path / before)
    old, ends = files_of(tmp_path / before), set()
    for number in itertools.count(1):
        out = shutil.copytree(tmp_path / before, tmp_path / str(number))
        said = refused(number, lasting, export_formats, model, sources[1], forms[:2], out)
        if not said:
            break
        assert f'{out} cannot be written: Input/output error' in said
        ends.add(said.split('; ')[-1])
        if (out / OLDER).exists():
            assert 'the next export puts it back' in said
            assert restore_older(out)
        assert files_of(out) == old, number
        assert [path for path in out.iterdir() if path.name[0] == '.'] == []
    assert number > 5
    assert len(ends) == 1 + lasting


def test_small_logits_are_compared_with_their_deviation(tmp_path):
    """1e-5 is within the tolerance, and yet as much as a tenth of what images make."""
    small = tiny_model()
    with torch.no_grad():
        small.head.fc.weight.mul_(1e-4)
    source = Source.read(export_subnet(small, SPACE.smallest(), tmp_path / 'source'))
    with torch.no_grad():
        deviation = float(source.net(source.random_images()).std(0).mean())
    assert deviation < 1e-3
    forms = noted('onnx'), noted('timm', off=1e-5)
    right, wrong = export_formats(small, source, forms, tmp_path / 'out')
    assert right.held
    assert not wrong.held
    assert wrong.difference == pytest.approx(1e-5, rel=0.05)
    assert wrong.deviation == pytest.approx(deviation, rel=1e-3)
    assert str(wrong).endswith('(ABOVE 1e-04 of that)')
    assert contents(tmp_path / 'out') == dict(onnx='16')


def test_who_holds_a_folder_writes_to_it_and_others_do_not(model, sources, tmp_path):
    """The tool quantises after the export: the lock is held over both."""
    with held_for_export(tmp_path):
        assert write_formats(model, sources[0], [ROOT, noted('onnx')], tmp_path)[1].held
        with pytest.raises(UserError, match='is in use by'):
            export_formats(model, sources[0], [ROOT], tmp_path)
    assert export_formats(model, sources[0], [ROOT], tmp_path)[0].held


# What is in the way


def test_an_older_export_of_a_stranger_writes_nowhere(model, sources, tmp_path):
    """Its files would be put to where links lead."""
    victim = tmp_path / 'bashrc'
    victim.write_text('mine')
    out = tmp_path / 'out'
    (out / OLDER).mkdir(parents=True)
    (out / OLDER / 'x.txt').write_text('evil')
    (out / 'x.txt').symlink_to(victim)
    for work in (
        lambda: export_formats(model, sources[0], [ROOT], out),
        lambda: restore_older(out),
    ):
        with pytest.raises(UserError, match=r'x\.txt is not of an earlier export; move .* away'):
            work()
    (out / OLDER / 'x.txt').unlink()
    for name in ('MODEL_CARD.md', 'onnx'):
        (out / name).symlink_to(victim)
    for name in ('architecture.json', 'timm'):  # stay links, whatever they lead to
        (out / OLDER / name).symlink_to(victim)
    (out / OLDER / 'onnx').mkdir()
    (out / OLDER / 'MODEL_CARD.md').write_text('evil')
    (out / OLDER / 'onnx' / 'model.onnx').symlink_to(victim)
    assert restore_older(out)
    assert (out / 'MODEL_CARD.md').read_text() == 'evil'
    assert (out / 'architecture.json').is_symlink()
    (out / 'timm').unlink()
    assert export_formats(model, sources[0], [ROOT, noted('onnx')], out)[1].held
    assert victim.read_text() == 'mine'
    shutil.rmtree(out)
    out.mkdir()
    (out / OLDER).symlink_to(tmp_path)
    with pytest.raises(UserError, match='older-export is not a folder; move it away'):
        export_formats(model, sources[0], [ROOT], out)


def test_copies_where_links_are_refused_replace_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, 'link', refuse)
    (tmp_path / 'a').write_text('a')
    for code in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK):
        _link_or_copy(tmp_path / 'a', tmp_path / 'b')
        with pytest.raises(OSError, match=os.strerror(code)):
            _link_or_copy(tmp_path / 'a', tmp_path / 'b')
        assert (tmp_path / 'b').read_text() == 'a'
        (tmp_path / 'b').unlink()
    code = errno.EIO
    with pytest.raises(OSError, match='Input/output'):
        _link_or_copy(tmp_path / 'a', tmp_path / 'b')


def test_a_pipe_in_the_place_of_the_architecture_is_not_read(sources, tmp_path):
    os.mkfifo(tmp_path / 'architecture.json')
    assert _is_other(tmp_path, sources[0])


def test_a_file_where_a_folder_is_to_go(model, sources, tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'out').mkdir()
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match=rf'{place} cannot be created: \S+/file is a file'):
            check_place(place)
    (tmp_path / 'out' / 'torch_export').write_text('x')
    with pytest.raises(
        UserError, match=r'torch_export is a file, but a folder must go there; move'
    ):
        export_formats(model, sources[0], [noted('torch_export')], tmp_path / 'out')
    check_place(tmp_path / 'out', [noted('onnx')])
    (tmp_path / 'out' / 'weights.safetensors').mkdir()
    with pytest.raises(
        UserError, match=r'weights.safetensors is a folder, but a file must go there'
    ):
        check_place(tmp_path / 'out', [noted('onnx')])


def test_folders_of_others_are_not_replaced(model, sources, tmp_path):
    (tmp_path / 'timm').mkdir()
    check_place(tmp_path)  # an empty one will do
    (tmp_path / 'timm' / 'setup.py').write_text('mine')
    with pytest.raises(UserError, match=r'timm has files, but no tas_lora_vit.py of an earlier'):
        export_formats(model, sources[0], [ROOT, noted('timm')], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['timm']
    assert export_formats(model, sources[0], [ROOT], tmp_path)[0].held
    assert (tmp_path / 'timm' / 'setup.py').read_text() == 'mine'


def test_the_place_is_checked_before_anything_is_read(tmp_path, capsys):
    (tmp_path / 'file').write_text('x')
    files = ('no_config.py', 'no_checkpoint.pth', '--subnet', 'no.json')
    assert call_tool('export.py', *files, '--out', tmp_path / 'file') == 2
    assert 'cannot be created' in capsys.readouterr().err


# What lies there


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from plain_vit import load_plain_vit
net, description = load_plain_vit(sys.argv[1])
torch.save(net(torch.load(sys.argv[2])), sys.argv[3])
assert not [name for name in sys.modules if name.split('.')[0] == 'tas_lora']
"""


@pytest.mark.full
def test_the_folder_needs_nothing_of_the_toolkit(model, sources, tmp_path):
    export_formats(model, sources[0], [ROOT], tmp_path / 'out')
    torch.save(images(3), tmp_path / 'given.pt')
    arguments = [tmp_path / name for name in ('out', 'given.pt', 'wanted.pt')]
    command = [sys.executable, '-c', ALONE, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model.set_subnet(SPACE.smallest())
    with torch.no_grad():
        expected = model(images(3), mode='tensor')
    torch.testing.assert_close(torch.load(tmp_path / 'wanted.pt'), expected, atol=2e-5, rtol=1e-4)


def test_cards_are_of_what_is_there_after_all(model, sources, tmp_path):
    def card(form, checks):
        return f'{form.name}: ' + ', '.join(f'{each.name} {seen}' for each, seen in checks.items())

    def written():
        return (tmp_path / 'MODEL_CARD.md').read_text()

    (root, _) = export_formats(model, sources[0], [ROOT, noted('onnx')], tmp_path, card)
    seen = f'{root.difference:.1e}'
    assert written() == f'safetensors: safetensors {seen}, onnx {seen}'
    forms = [ROOT, noted('timm', off=1.0), noted('huggingface')]
    export_formats(model, sources[0], forms, tmp_path, card)
    expected = f'safetensors {seen}, onnx checked by an earlier run, huggingface {seen}'
    assert written() == f'safetensors: {expected}'
    assert (tmp_path / 'huggingface' / 'README.md').read_text() == f'huggingface: {expected}'
    export_formats(model, sources[1], [ROOT], tmp_path, card)
    assert written().startswith('safetensors: safetensors ')
    assert 'onnx' not in written()
