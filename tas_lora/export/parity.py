"""Write formats, read each back, and keep those that reproduce the supernet's logits."""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError, WriteError, system_reason
from ..models import SupernetClassifier
from ..provenance import read_json
from ..structures import Subnet
from ..work_lock import check_free, held
from .examples import LEVELS, Examples
from .formats import FORMATS, ROOT, ROOT_FILES, Format
from .source import Source

TOLERANCE = 1e-4  # absolute; for small logits, relative to their standard deviation
_FEW = 3  # images of the second batch: a file with a fixed batch size fails
_UNFINISHED = '.export-'  # prefix of temporary folders, where formats are written and checked
_EARLIER = 'checked by an earlier run'
OLDER = 'older-export'  # folder of the files that are being replaced
_NAMES = *ROOT_FILES, *(form.folder for form in FORMATS if not form.root)
_NO_LINKS = errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK  # the file system has none

Card = Callable[[Format, Mapping[Format, str]], str]


@dataclass(frozen=True)
class ParityCheck:
    """Whether a format was written, and reproduces the supernet's logits when read back.

    Args:
        form: The format.
        folder: Folder of its files; they may be missing.
        difference: Largest absolute difference from the supernet's logits.
        deviation: Standard deviation of the supernet's logits over images, averaged over classes.
        error: Why there are no logits; empty if there are.
        older: Whether files of an earlier run are still in the folder.
    """

    form: Format
    folder: Path
    difference: float = inf
    deviation: float = 1.0
    error: str = ''
    older: bool = False

    @property
    def name(self) -> str:
        """Name of the format."""
        return self.form.name

    @property
    def held(self) -> bool:
        """Whether the files were kept."""
        return not self.error and self.difference <= TOLERANCE * min(1, self.deviation)

    def __str__(self) -> str:
        left = '; the files of an earlier run are still there' if self.older else ''
        if self.error:
            return f'{self.name} FAILED, nothing written: {self.error}{left}'
        what = f'Exported {self.name}' if self.held else f'{self.name} NOT exported'
        small = self.deviation < 1 and (self.held or self.difference <= TOLERANCE)
        limit = f'{TOLERANCE:.0e} of that' if small else f'{TOLERANCE:.0e}'
        return (
            f'{what} to {self.folder}: logits of 64 random images differ from the supernet by at '
            f'most {self.difference:.1e}, their deviation is {self.deviation:.1e} '
            f'({"within" if self.held else "ABOVE"} {limit}){left}'
        )


def export_formats(
    model: SupernetClassifier,
    source: Source,
    formats: Sequence[Format],
    out_dir: str | Path,
    card: Card | None = None,
) -> list[ParityCheck]:
    """Write all formats, run each, and keep those that agree with the supernet.

    Formats are written to a temporary folder, then moved to replace the files of an earlier run.
    If those came from another network, all of its formats are removed. If no format agrees, the
    earlier files stay. While files are replaced, the earlier export is whole in ``older-export``;
    if the process is killed then, the next run puts it back before it does its own work. If the
    system refuses one of the moves, it is put back at once.

    Args:
        model: The supernet that ``source`` was cut from.
        source: The exported subnet.
        formats: Formats to write.
        out_dir: Output folder; created if missing.
        card: Renders the model card of a format, given all formats present and the largest
            difference of each.

    Returns:
        One check per format; the files of those that failed are deleted.

    Raises:
        UserError: If the folder cannot be written, something is in the way, or another run exports
            to it.
        WriteError: If the system refuses to exchange the files.
    """
    check_place(out_dir, formats)
    with held_for_export(out_dir):
        return write_formats(model, source, formats, out_dir, card)


@contextmanager
def held_for_export(out_dir: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder, once what an unfinished run left in it is put right.

    Raises:
        UserError: If another run holds it.
    """
    out_dir = Path(out_dir)
    with held(out_dir) as note:
        if note:
            print_log(note, 'current', logging.WARNING)
        if restore_older(out_dir):
            print_log(
                f'{out_dir}: the last export did not finish its exchange of files; what was there '
                'before is put back',
                'current',
                logging.WARNING,
            )
        for left in out_dir.glob(f'{_UNFINISHED}*'):
            shutil.rmtree(left)
        yield


def write_formats(
    model: SupernetClassifier,
    source: Source,
    formats: Sequence[Format],
    out_dir: str | Path,
    card: Card | None = None,
) -> list[ParityCheck]:
    """:func:`export_formats` for a folder that the caller holds by :func:`held_for_export`."""
    out_dir = Path(out_dir)
    _check_contents(out_dir, formats)
    images = source.random_images()
    expected = supernet_logits(model, Subnet.from_dict(source.description['subnet']), images)
    with TemporaryDirectory(prefix=_UNFINISHED, dir=out_dir) as name:
        place = Path(name)
        checked = [_try(form, source, place, out_dir, images, expected) for form in formats]
        return _keep(checked, source, place, out_dir, card)


def check_place(out_dir: str | Path, formats: Sequence[Format] = FORMATS) -> None:
    """Check that the formats can be written to a folder, and would replace nothing else.

    Raises:
        UserError: With the path that is in the way, or the run that exports to the folder.
    """
    out_dir = Path(out_dir)
    above = next(p for p in (out_dir, *out_dir.absolute().parents) if os.path.lexists(p))
    if not above.is_dir():
        raise UserError(f'the output folder {out_dir} cannot be created: {above} is a file')
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f'the output folder {out_dir} cannot be written: {above} is read-only')
    check_free(out_dir)
    _check_contents(out_dir, formats)


def _check_contents(out_dir: Path, formats: Sequence[Format]) -> None:
    _check_older(out_dir)
    for name in ROOT_FILES:
        if (out_dir / name).is_dir():
            raise UserError(f'{out_dir / name} is a folder, but a file must go there; move it away')
    for form in formats:
        folder = out_dir / form.folder
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f'{folder} is a file, but a folder must go there; move it away')
        if not form.root and folder.is_dir() and any(folder.iterdir()) and not form.is_in(out_dir):
            raise UserError(
                f'{folder} has files, but no {form.file} of an earlier export; the export would '
                'replace it: move it away, or choose another output folder'
            )


def _check_older(out_dir: Path) -> None:
    """Refuse an ``older-export`` that an export did not leave: it would be put back or deleted."""
    older = out_dir / OLDER
    if not os.path.lexists(older):
        return
    if older.is_symlink() or not older.is_dir():
        raise UserError(f'{older} is not a folder; move it away')
    for path in older.iterdir():
        if path.name not in _NAMES:
            raise UserError(f'{path} is not of an earlier export; move {older} away')


def forms_in(out_dir: str | Path) -> list[Format]:
    """Formats that a folder contains."""
    return [form for form in FORMATS if form.is_in(out_dir)]


@torch.no_grad()
def supernet_logits(model: SupernetClassifier, subnet: Subnet, images: Tensor) -> Tensor:
    """Logits of a subnet, its features without a head, on the CPU."""
    active = model.subnet
    model.set_subnet(subnet)
    logits = model(images.to(model.backbone.pos_embed.device), mode='tensor')
    logits = logits if model.head is not None else logits[-1]  # features
    model.set_subnet(active)
    return logits.cpu()


def _try(
    form: Format, source: Source, place: Path, out_dir: Path, images: Tensor, expected: Tensor
) -> ParityCheck:
    """Write a format into a folder in ``place``, and run it there."""
    check = ParityCheck(form, out_dir / form.folder, deviation=float(expected.std(0).mean()))
    folder = place / form.name  # transformers 4 cannot import from a folder with a dot in its name
    folder.mkdir()
    try:
        form.write(source, folder)
        logits = form.run(folder, [images, images[:_FEW]])
        _compare_preparation(form, source.examples, folder)
    except Exception as error:  # of any library that writes or reads the format
        return replace(check, error=_reason(error))
    pairs = zip(logits, (expected, expected[:_FEW]), strict=True)
    return replace(check, difference=max(largest_difference(*pair) for pair in pairs))


def _compare_preparation(form: Format, examples: Examples | None, folder: Path) -> None:
    """Raise :class:`UserError` if a format prepares images otherwise than the test pipeline."""
    if form.prepare is None or examples is None or (form.reads_files and examples.in_memory):
        return
    level, file = examples.largest_difference(form.prepare(folder, examples))
    if level > LEVELS:
        raise UserError(
            f'{form.name} prepares {file} otherwise than the test pipeline: they differ by '
            f'{level:.2g} of 255 levels on average, {LEVELS:g} is allowed; leave {form.name} out'
        )


def _reason(error: Exception) -> str:
    """The message for users; with TAS_LORA_DEBUG the error itself is raised."""
    if os.environ.get('TAS_LORA_DEBUG'):
        raise error
    name = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
    return f'{name}{" ".join(str(error).split())[:600]}'


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite for different shapes or non-finite values."""
    if found.shape != expected.shape:
        return inf
    difference = (found - expected).abs().max()
    return float(difference) if difference.isfinite() else inf


def _keep(
    checked: list[ParityCheck], source: Source, place: Path, out_dir: Path, card: Card | None
) -> list[ParityCheck]:
    """Move the formats that held to the output folder, and note which older files remain."""
    older = {} if _is_other(out_dir, source) else dict.fromkeys(forms_in(out_dir), _EARLIER)
    seen = older | {each.form: f'{each.difference:.1e}' for each in checked if each.held}
    for form in [each.form for each in checked if each.held]:
        if card is not None and form.card:
            (place / form.name / form.card).write_text(card(form, seen), 'utf-8')
    if any(each.held for each in checked):
        gone = set(forms_in(out_dir)) - set(older)
        _exchange([each.form for each in checked if each.held], gone, place, out_dir)
    return [replace(each, older=not each.held and each.form.is_in(out_dir)) for each in checked]


def _exchange(new: Iterable[Format], gone: Iterable[Format], place: Path, out_dir: Path) -> None:
    """Move new formats from ``place`` to their folders, and older ones away; all of it or nothing.

    Raises:
        WriteError: If the system refuses; it says what is in the folder then.
    """
    (place / 'old').mkdir()
    try:
        _keep_older(out_dir, place)
        for form in gone:
            _set_aside(form, out_dir, place)
        for form in new:
            _move(form, place, out_dir)
        (out_dir / OLDER).rename(place / OLDER)  # the new one stands
    except OSError as error:
        raise WriteError(
            f'{out_dir} cannot be written: {system_reason(error)}; {_put_back(out_dir)}'
        ) from error


def _put_back(out_dir: Path) -> str:
    """Undo an exchange, and say what is in the folder."""
    try:
        restore_older(out_dir)
    except OSError:
        return f'what was there before is whole in {OLDER}, and the next export puts it back'
    return 'what was there before is still there'


def _keep_older(out_dir: Path, place: Path) -> None:
    """Link or copy the files of an earlier run to ``older-export``, which is whole or not there."""
    there = [form.folder for form in forms_in(out_dir) if not form.root]
    _link([*ROOT_FILES, *there], out_dir, place / OLDER)
    (place / OLDER).rename(out_dir / OLDER)


def restore_older(out_dir: str | Path) -> bool:
    """Put back what an unfinished run was about to replace; returns whether there was any.

    Killed as well, it is done again.

    Raises:
        UserError: If ``older-export`` has something else in it.
    """
    out_dir = Path(out_dir)
    _check_older(out_dir)
    if not (out_dir / OLDER).is_dir():
        return False
    with TemporaryDirectory(prefix=_UNFINISHED, dir=out_dir) as place:
        (Path(place) / 'old').mkdir()
        names = [path.name for path in (out_dir / OLDER).iterdir()]
        for form in FORMATS:
            if form.root or form.is_in(out_dir) or form.folder in names:
                _set_aside(form, out_dir, Path(place))
        _link(names, out_dir / OLDER, out_dir)
        (out_dir / OLDER).rename(Path(place) / OLDER)
    return True


def _link(names: Iterable[str], source: Path, target: Path) -> None:
    """Link files and folders from one folder to another, or copy them where links are refused.

    Symbolic links stay links.
    """
    target.mkdir(exist_ok=True)
    for name in names:
        path = source / name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target / name, symlinks=True, copy_function=_link_or_copy)
        elif os.path.lexists(path):
            _link_or_copy(path, target / name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS or os.path.lexists(target):
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _is_other(out_dir: Path, source: Source) -> bool:
    """Whether a folder may contain a network other than ``source``."""
    try:
        return read_json(out_dir / ROOT.file, kind=dict) != source.description
    except UserError:
        return True


def _move(form: Format, place: Path, out_dir: Path) -> None:
    if form.root:
        for path in sorted((place / form.name).iterdir()):
            path.replace(out_dir / path.name)
    else:
        _set_aside(form, out_dir, place)
        (place / form.name).rename(out_dir / form.folder)


def _set_aside(form: Format, out_dir: Path, place: Path) -> None:
    """Move the files of an earlier run into the temporary folder, to be deleted with it."""
    for name in ROOT_FILES if form.root else [form.folder]:
        if os.path.lexists(out_dir / name):
            (out_dir / name).rename(place / 'old' / name)
