"""Files are either complete or absent."""

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from tas_lora import UserError, apis
from tas_lora.atomic_files import (
    append_line,
    check_seal,
    is_damaged,
    is_whole,
    seal,
    write_atomic,
)
from tas_lora.engine.hooks.safe_checkpoint_hook import WholeFiles
from tas_lora.engine.runner.run_files import newest_whole
from tas_lora.models.safe_load import read_state_dict

WEIGHTS = {'a': torch.arange(5000.0)}


def sealed(path, epoch: int = 1, iteration: int = 0):
    """A checkpoint as the hook writes it."""
    meta = dict(epoch=epoch, iter=iteration)
    torch.save(dict(state_dict=WEIGHTS, meta=meta), path)
    WholeFiles().put(path.read_bytes(), path)
    return path


def test_a_sealed_file_is_a_zip_file_that_torch_reads(tmp_path):
    path = sealed(tmp_path / 'a.pth')
    assert is_whole(path)
    assert zipfile.ZipFile(path).testzip() is None
    assert torch.equal(torch.load(path, weights_only=True)['state_dict']['a'], WEIGHTS['a'])
    content = path.read_bytes()
    assert seal(content) == content  # once is enough
    assert seal(b'text') == b'text'


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None)
def test_a_flipped_bit_is_named(tmp_path_factory, place, bit):
    path = sealed(tmp_path_factory.mktemp('flip') / 'a.pth')
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    path.write_bytes(content)
    if position < len(content) - 71:  # the digest follows
        with pytest.raises(UserError, match='is damaged: its content does not match its SHA-256'):
            read_state_dict(path)
        assert not is_whole(path)


@pytest.mark.parametrize('share', [0.01, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path, share):
    path = sealed(tmp_path / 'a.pth')
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert is_damaged(path)
    with pytest.raises(UserError, match=r'a\.pth'):
        read_state_dict(path)


def test_files_without_a_seal_are_read(tmp_path):
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'a.pth')
    check_seal(tmp_path / 'a.pth')
    assert is_whole(tmp_path / 'a.pth')
    assert not is_damaged(tmp_path / 'a.pth')


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    write_atomic(path, 'old')

    def fail(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        write_atomic(path, 'new')
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize(
    ('code', 'said'),
    [
        (errno.EIO, 'Input/output error (the disk or its connection fails'),
        (errno.ESTALE, 'Stale file handle (the file server has removed or replaced the folder'),
        (errno.ENOSPC, 'No space left on device (make room)'),
    ],
)
def test_the_true_reason_is_said(tmp_path, monkeypatch, code, said):
    """Of a checkpoint, a result and a line; a full disk is one reason among others."""
    path = sealed(tmp_path / 'epoch_1.pth')
    content = path.read_bytes()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, 'fsync', fail)
    for write in (WholeFiles().put, lambda c, p: write_atomic(p, c)):
        with pytest.raises(UserError) as error:
            write(content, path)
        assert f'{path} cannot be written: {said}' in str(error.value)
        assert ('make room' in str(error.value)) == (code == errno.ENOSPC)
    with pytest.raises(UserError, match='lines cannot be written: ') as error:
        append_line(tmp_path / 'lines', 'one')
    assert said in str(error.value)


def test_links_of_a_stranger_are_not_written_through(tmp_path):
    """A copied work directory may have them where temporary files and journals are written."""
    victim = tmp_path / 'thesis.tex'
    victim.write_text('years of work')
    work = tmp_path / 'work'
    work.mkdir()
    for name in ('.training.json.tmp', 'training.json', 'history.jsonl'):
        (work / name).symlink_to(victim)
    write_atomic(work / 'training.json', 'new')
    assert (work / 'training.json').read_text() == 'new'
    with pytest.raises(UserError, match=r'history\.jsonl cannot be written: .* a symbolic link'):
        append_line(work / 'history.jsonl', 'new')
    assert victim.read_text() == 'years of work'
    assert sorted(os.listdir(work)) == ['history.jsonl', 'training.json']


def test_the_name_of_the_last_checkpoint_is_not_written_through_a_link(digits_config, tmp_path):
    victim = tmp_path / 'thesis.tex'
    victim.write_text('years of work')
    cfg = digits_config('supernet', images=32)
    cfg.work_dir = str(tmp_path / 'work')
    Path(cfg.work_dir).mkdir()
    last = Path(cfg.work_dir) / 'last_checkpoint'
    last.symlink_to(victim)
    apis.train(cfg)
    assert victim.read_text() == 'years of work'
    assert last.read_text().endswith('.pth')


def test_a_removed_folder_is_named(tmp_path):
    """The one that is gone, not a file in it or a folder below it; and it does not come back."""
    path = tmp_path / 'work' / 'deep' / 'epoch_1.pth'
    for write in (
        WholeFiles().put,
        lambda c, p: write_atomic(p, c),
        lambda c, p: append_line(p, 'x'),
    ):
        with pytest.raises(UserError) as error:
            write(b'x', path)
        assert f'there is no folder {tmp_path / "work"}; if there was one, it was' in str(
            error.value
        )
    assert not (tmp_path / 'work').exists()


WRITER = """
import sys
from tas_lora.atomic_files import write_atomic
size = 0
while True:
    size = size % 5 + 1
    write_atomic(sys.argv[1], bytes([size]) * size * 1_000_000)
    print(size, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / 'a.bin'
    command = [sys.executable, '-c', WRITER, str(path)]
    for wait in (1, 3, 8):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            for _ in range(wait):
                writer.stdout.readline()
            writer.kill()
        content = path.read_bytes()
        assert content == bytes([content[0]]) * content[0] * 1_000_000


FULL_DISK = """
import resource, sys
import torch
from tas_lora.engine.hooks.safe_checkpoint_hook import WholeFiles
content = open(sys.argv[1], 'rb').read()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, len(content) // 2))
WholeFiles().put(content, sys.argv[1])
"""


@pytest.mark.full
def test_a_full_disk_leaves_the_previous_file(tmp_path):
    """A limit on the size of files fails a write halfway, as a full disk does."""
    path = sealed(tmp_path / 'a.pth')
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, '-c', FULL_DISK, path], capture_output=True, text=True, check=False
    )
    assert f'checkpoint {path} cannot be written: File too large' in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['a.pth']


def test_the_newest_whole_checkpoint(tmp_path, capsys):
    """By what the files say: the times of a copied folder are equal, or in any order."""
    assert newest_whole(tmp_path) is None
    assert apis.find_resumable(tmp_path) is None
    places = {'epoch_3': (3, 12), 'stopped_iter_14': (3, 14), 'epoch_2': (2, 8), 'epoch_1': (1, 4)}
    places['best_x_epoch_4'] = (4, 16)
    for age, (name, place) in enumerate(places.items()):
        os.utime(sealed(tmp_path / f'{name}.pth', *place), ns=(0, 10**18 + age))
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'pretrained.pth')  # nothing to resume
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
    assert apis.find_resumable(tmp_path).name == 'stopped_iter_14.pth'
    for name in ('stopped_iter_14.pth', 'epoch_3.pth', 'epoch_2.pth'):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    content = bytearray(sealed(tmp_path / 'epoch_2.pth', 2, 8).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / 'epoch_2.pth').write_bytes(content)  # what it says can be read, yet it is damaged
    capsys.readouterr()
    assert apis.find_resumable(tmp_path).name == 'epoch_1.pth'
    said = ''.join(capsys.readouterr())
    assert 'damaged (truncated or changed): epoch_3.pth, stopped_iter_14.pth, epoch_2.pth' in said
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    with pytest.raises(UserError, match='has no intact checkpoint to resume from: epoch_1.pth, '):
        apis.find_resumable(tmp_path)


def test_a_copied_folder_resumes_from_its_own_files(tmp_path):
    """`last_checkpoint` names the original's by its full path."""
    original = tmp_path / 'original'
    original.mkdir()
    for epoch in (1, 2):
        sealed(original / f'epoch_{epoch}.pth', epoch)
    (original / 'last_checkpoint').write_text(str(original / 'epoch_2.pth'))
    copy = shutil.copytree(original, tmp_path / 'copy')
    (copy / 'epoch_2.pth').unlink()
    assert apis.find_resumable(copy) == copy / 'epoch_1.pth'


def test_a_damaged_file_is_refused_and_a_whole_one_offered(digits_config, tmp_path):
    cfg = digits_config('supernet')
    sealed(tmp_path / 'epoch_1.pth')
    damaged = sealed(tmp_path / 'epoch_2.pth')
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    cfg.load_from = str(damaged)
    with pytest.raises(UserError, match=r'is damaged .* the newest intact one .*epoch_1\.pth'):
        apis.train(cfg)


def test_replaced_files_go_only_after_their_successor(tmp_path):
    files, old = WholeFiles(), sealed(tmp_path / 'old.pth')
    files.remove(old)
    assert old.exists()
    files.delete_replaced()
    assert not old.exists()


def test_a_file_written_anew_is_not_deleted(tmp_path):
    files, path = WholeFiles(), sealed(tmp_path / 'best.pth')
    content = path.read_bytes()
    files.remove(path)
    files.put(content, path)
    files.delete_replaced()
    assert path.exists()


def test_checkpoints_elsewhere_are_found(tmp_path):
    """Where the config has them written, not where a file of the work directory leads."""
    work_dir, elsewhere = tmp_path / 'work', tmp_path / 'big_disk' / 'work'
    work_dir.mkdir()
    elsewhere.mkdir(parents=True)
    path = sealed(elsewhere / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(path))
    assert apis.find_resumable(work_dir) is None
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path / 'big_disk')))
    cfg = Config(dict(work_dir=str(work_dir), default_hooks=hooks))
    apis.resume(cfg)
    assert cfg.load_from == str(path)


def test_the_best_alone_is_no_checkpoint_to_resume(tmp_path):
    sealed(tmp_path / 'best_accuracy_epoch_1.pth')
    assert apis.find_resumable(tmp_path) is None


def test_one_kept_checkpoint_is_always_there(digits_config, monkeypatch):
    """With max_keep_ckpts=1, MMEngine deletes the only file before it writes the next."""
    cfg = digits_config('supernet', images=32)
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='largest/accuracy/top1')
    cfg.train_cfg.update(max_epochs=3, val_interval=1)
    counts, put = [], WholeFiles.put

    def count_then_put(self, obj, filepath):
        counts.append(newest_whole(cfg.work_dir) is not None)
        put(self, obj, filepath)

    monkeypatch.setattr(WholeFiles, 'put', count_then_put)
    apis.train(cfg)
    assert len(counts) >= 4
    assert all(counts[1:])
    names = sorted(name for name in os.listdir(cfg.work_dir) if name.endswith('.pth'))
    assert len(names) == 2, names  # the last, and the best
    assert 'epoch_3.pth' in names
