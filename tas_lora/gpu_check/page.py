"""The page of a check, from the records of its parts."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..atomic_files import write_atomic
from .runs import MACHINE, Part

_INTRO = (
    '`make gpu` runs `tools/gpu_check.py`, for at most nine minutes, and writes this page. Each '
    'part runs in a process of its own and leaves a record in `work_dirs/gpu`. A part that fails '
    'does not stop the others, and one that does not fit into the minutes is not begun. Called '
    'again, it runs what is missing.'
)


def write_page(path: str | Path, parts: Mapping[str, Part], records: Mapping[str, dict]) -> None:
    """Write targets, tables and what failed as Markdown."""
    write_atomic(path, '\n'.join(_lines(parts, records)) + '\n')


def _lines(parts: Mapping[str, Part], records: Mapping[str, dict]) -> Iterator[str]:
    machine = records[MACHINE].get('figures') or {}
    yield from ('# On a GPU', '', _INTRO, '', _where(machine), '')
    if machine.get('quick'):
        yield from ('**A rehearsal on tiny sizes: the figures below mean nothing.**', '')
    targets = [
        target for record in records.values() for target in _figures(record).get('targets', ())
    ]
    yield from ('## Targets', '')
    rows = [[t['name'], t['target'], t['measured'], _answer(t['met'])] for t in targets]
    yield from _table(('figure', 'target', 'measured', 'met'), rows)
    yield from ('## Parts', '')
    rows = [
        [name, parts[name].title, record['status'], record['seconds'], record.get('reason', '')]
        for name, record in records.items()
    ]
    yield from _table(('part', 'what', 'status', 's', 'why'), rows)
    for name, record in records.items():
        found = _figures(record)
        if found.get('tables') or found.get('notes'):
            yield from (f'## {parts[name].title}', '')
        for note in found.get('notes', ()):
            yield from (note, '')
        for table in found.get('tables', ()):
            yield from (f'### {table["title"]}', '')
            yield from _table(table['columns'], table['rows'])


def _figures(record: Mapping) -> Mapping:
    return record.get('figures') or {}


def _where(machine: Mapping) -> str:
    memory = f', {machine["memory_gib"]} GiB' if machine.get('memory_gib') else ''
    return (
        f'{machine.get("device")}{memory}, driver {machine.get("driver")}, CUDA '
        f'{machine.get("cuda")}, torch {machine.get("torch")}, commit {machine.get("commit")}.'
    )


def _answer(met: bool | None) -> str:
    return 'not measured' if met is None else 'yes' if met else '**no**'


def _table(columns, rows) -> Iterator[str]:
    yield f'| {" | ".join(columns)} |'
    yield f'| {" | ".join("---" for _ in columns)} |'
    for row in rows:
        yield f'| {" | ".join(_cell(value) for value in row)} |'
    yield ''


def _cell(value) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'
    return str(value).replace('|', '/').replace('\n', ' ')
