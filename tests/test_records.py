"""Records of a search: what is read back is what was written, or it is refused by its line."""

import json
import math
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPACE, repeatable, spaces

from tas_lora import UserError
from tas_lora.atomic_files import append_line
from tas_lora.search import History, Journal, Outcome, Task, read_history

SMALL, LARGE = SPACE.smallest(), SPACE.largest()
TASKS = [
    (Task(0, SMALL), Outcome(dict(cross_entropy=0.5, top1=81.25))),
    (Task(1, LARGE, 'bfloat16', np.array([4, 2, 9])), Outcome(losses=np.float32([0.1, 7, 2.5]))),
    (Task(2, LARGE, 'bfloat16', np.array([1])), Outcome()),
    (Task(3, SMALL, 'float32', np.array([3, 0])), Outcome(losses=np.float32([0.3, 1e-20]))),
]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'search_journal.jsonl'


def write(path: Path, tasks=TASKS) -> list[int]:
    """Append outcomes; returns the size of the file before each, and at the end."""
    journal, ends = Journal(path), [path.stat().st_size if path.exists() else 0]
    for task, outcome in tasks:
        journal.append(task, outcome)
        ends.append(path.stat().st_size)
    return ends


def same(a: float, b: float) -> bool:
    """Equal to the bit, but that there is only one NaN."""
    return (math.isnan(a) and math.isnan(b)) or (
        a == b and math.copysign(1, a) == math.copysign(1, b)
    )


def is_outcome(found: Outcome | None, expected: Outcome) -> bool:
    if found is None or list(found.metrics) != list(expected.metrics):
        return False
    if not all(same(found.metrics[name], value) for name, value in expected.metrics.items()):
        return False
    if found.losses is None or expected.losses is None:
        return found.losses is expected.losses
    return found.losses.tobytes() == np.float32(expected.losses).tobytes()


def recalled(path: Path, tasks=TASKS) -> list[bool | None]:
    """For each task whether the right outcome is recalled; None where none is."""
    journal = Journal(path)
    found = [journal.recall(task) for task, _ in tasks]
    return [
        None if found is None else is_outcome(found, outcome)
        for found, (_, outcome) in zip(found, tasks, strict=True)
    ]


floats = st.floats(width=32)
outcomes = st.one_of(
    st.builds(Outcome, st.dictionaries(st.text(), st.floats())),
    st.builds(lambda losses: Outcome(losses=np.float32(losses)), st.lists(floats, min_size=1)),
)


@given(spaces(), st.lists(outcomes, max_size=5), st.sampled_from(['float32', 'bfloat16']))
@repeatable
def test_what_is_appended_is_recalled_to_the_bit(space, outcomes, precision):
    rng = np.random.default_rng(0)
    tasks = []
    for number, outcome in enumerate(outcomes):
        count = 0 if outcome.losses is None else len(outcome.losses)
        images = rng.permutation(1000)[:count] if count else None
        tasks.append((Task(number, space.sample(rng), precision, images), outcome))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, 'journal'), tasks)
        assert recalled(Path(folder, 'journal'), tasks) == [True] * len(tasks)


def test_the_journal_is_synced_once_a_second_and_the_history_each_time(path, monkeypatch):
    synced, clock = [], [0.0]
    monkeypatch.setattr('os.fsync', synced.append)
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    journal = Journal(path)
    for seconds, expected in ((0.0, 1), (0.5, 1), (1.5, 2), (2.0, 2), (3.0, 3)):
        clock[0] = seconds
        journal.append(*TASKS[0])
        assert len(synced) == expected
    assert len(path.read_text().splitlines()) == 5  # each is written at once
    for _ in range(2):
        append_line(path, '{}')
    assert len(synced) == 5


def test_what_is_not_there_is_not_recalled(path):
    assert Journal(path).recall(Task(0, SMALL)) is None
    write(path)
    assert Journal(path).recall(Task(4, SMALL)) is None


def test_a_last_line_torn_at_any_byte_is_cut_off_and_written_again(path):
    ends = write(path)
    whole, (*_, start, end) = path.read_bytes(), ends
    for size in range(start + 1, end):
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match='journal.jsonl: the last line is truncated, ignored'):
            assert recalled(path) == [True, True, True, None]
        assert path.stat().st_size == start
        write(path, TASKS[3:])
        assert path.read_bytes() == whole


def test_a_first_line_torn_at_any_byte_is_cut_off(path):
    end = write(path)[1]
    whole = path.read_bytes()
    for size in range(1, end):
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match='truncated, ignored'):
            assert recalled(path) == [None] * 4


@pytest.mark.parametrize('flip', [0x01, 0x20, 0xFF])
def test_a_changed_byte_is_refused_by_its_line(path, flip):
    """Unless that is the last one: it looks truncated, and its task is evaluated again."""
    ends = write(path)
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        line = 1 + sum(end <= place for end in ends[1:])
        if line == 4 or place == ends[3] - 1:  # without its end, a line is one with the next
            with pytest.warns(UserWarning, match='the last line is truncated'):
                assert recalled(path) == [True] * (line - 1) + [None] * (5 - line)
            write(path, TASKS[line - 1 :])
            assert path.read_bytes() == whole
            continue
        with pytest.raises(UserError, match=f'journal.jsonl, line {line} is damaged: .* CRC-32'):
            Journal(path)


def test_the_checksum_is_that_of_the_line_without_it(path):
    write(path)
    for line in path.read_text().splitlines():
        text, checksum = line[:-1].split(', "crc32": ')
        assert int(checksum) == zlib.crc32(f'{text}}}'.encode())
        assert json.loads(line)['crc32'] == int(checksum)


def test_a_whole_journal_gives_no_warning(path):
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert recalled(path) == [True] * 4


@pytest.mark.parametrize(
    'other',
    [
        Task(1, SMALL, 'bfloat16', np.array([4, 2, 9])),
        Task(1, LARGE, 'float32', np.array([4, 2, 9])),
        Task(1, LARGE, 'bfloat16', np.array([4, 2])),
        Task(1, LARGE, 'bfloat16', np.array([4, 2, 8])),
        Task(1, LARGE, 'bfloat16', np.array([2, 4, 9])),
        Task(1, LARGE, 'bfloat16', None),
    ],
    ids=['subnet', 'precision', 'count', 'images', 'order', 'all images'],
)
def test_a_task_of_another_search_is_refused(path, other):
    write(path)
    message = 'entry 1 is not of the subnet and images that this search evaluates next.* new one'
    with pytest.raises(UserError, match=message):
        Journal(path).recall(other)


@pytest.mark.parametrize('content', [b'PK\3\4', b'T\0', b'\0' * 99, b'text\n', b'a\nb\nc'])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'search_journal.jsonl(, line 1 is damaged| is not a)'):
        Journal(path)
    assert path.read_bytes() == content


def test_a_folder_is_refused(path):
    path.mkdir()
    with pytest.raises(UserError, match='search journal .*search_journal.jsonl cannot be read'):
        Journal(path)


def test_an_empty_file_is_a_journal(path):
    path.touch()
    write(path)
    assert recalled(path) == [True] * 4


def test_of_an_entry_that_is_there_twice_the_later_holds(path):
    changed = Outcome(dict(cross_entropy=0.25))
    write(path, [TASKS[0], TASKS[1], (TASKS[0][0], changed)])
    assert recalled(path, [(TASKS[0][0], changed), TASKS[1]]) == [True, True]


def test_entries_may_come_in_any_order(path):
    write(path, TASKS[::-1])
    assert recalled(path) == [True] * 4


# The history, which has no checksum: as version 0.1 wrote it, byte for byte

LINES = [
    {
        **dict(phase='search', generation=0, precision='float32', images=287, error=0.0),
        **dict(cross_entropy=1.5, top1=float('nan'), subnet=subnet.to_dict(), params=12345),
    }
    for subnet in (SMALL, LARGE)
]
OF_0_1 = (
    '{"phase": "search", "generation": 0, "precision": "float32", "images": 287, "error": 0.0, '
    '"cross_entropy": 1.5, "top1": NaN, "subnet": {"embed_dim": 16, "num_heads": [1, 1], '
    '"mlp_ratio": [1.0, 1.0]}, "params": 12345}\n'
)


def test_a_history_is_as_before(tmp_path):
    path = tmp_path / 'search_history.jsonl'
    History(path).add(LINES[0])
    assert path.read_text() == OF_0_1
    History(path).add(LINES[0])  # compared, not written again
    assert path.read_text() == OF_0_1
    assert str(read_history(path)) == str(LINES[:1])  # NaN is not equal to itself


def test_a_history_of_another_search_is_refused(tmp_path):
    path = tmp_path / 'search_history.jsonl'
    path.write_text(OF_0_1)
    for change in (dict(cross_entropy=1.6), dict(generation=1), dict(flops=3)):
        with pytest.raises(UserError, match='line 1 is not of the subnet'):
            History(path).add(LINES[0] | change)
    History(path).add(LINES[0] | dict(cross_entropy=1.5001, error=0.1))


def test_a_torn_history_is_cut_and_written_again(tmp_path):
    path = tmp_path / 'search_history.jsonl'

    def write_all() -> bytes:
        history = History(path)
        for line in LINES:
            history.add(line)
        return path.read_bytes()

    whole = write_all()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        if size == len(OF_0_1):
            assert write_all() == whole
            continue
        with pytest.warns(UserWarning, match='history.jsonl: the last line is truncated, ignored'):
            assert write_all() == whole


# Files of a stranger


def sealed(content: str) -> bytes:
    """A line with the checksum that it should have."""
    return f'{content[:-1]}, "crc32": {zlib.crc32(content.encode())}}}'.encode()


ENTRY = dict(number=0, subnet=SMALL.to_dict(), precision='float32', images=None, metrics={})


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('{"number": ' + '[' * 100_000 + ']' * 100_000 + '}', 'is damaged: '),
        ('{}', 'expected a dict with number, metrics and losses'),
        (json.dumps(dict(ENTRY)), 'expected a dict with number, metrics and losses'),
        (json.dumps(dict(ENTRY, losses=None, number=None)), 'number must be an integer from 0'),
        (json.dumps(dict(ENTRY, losses=None, number=[0])), 'number must be an integer from 0'),
        (json.dumps(dict(ENTRY, losses=None, metrics=[1])), 'metrics must be a dict of numbers'),
        (json.dumps(dict(ENTRY, losses=None, metrics=dict(a='1'))), 'metrics must be a dict of nu'),
        (json.dumps(dict(ENTRY, losses='AAAA', images=[1, 0])), 'losses must be base64 of a float'),
        (json.dumps(dict(ENTRY, losses='AAAAAA==', images=[2, 0])), 'losses must be base64 of a f'),
        (json.dumps(dict(ENTRY, losses='AAAAAA==')), 'losses must be base64 of a float32'),
        (json.dumps(dict(ENTRY, losses='\N{BULLET}', images=[1, 0])), 'losses must be base64 of a'),
        (json.dumps(dict(ENTRY, losses=3, images=[1, 0])), 'losses must be base64 of a float32'),
        (json.dumps(dict(ENTRY, losses='AAAA', images=3)), 'losses must be base64 of a float32'),
    ],
)
def test_a_journal_with_the_right_checksum_may_still_be_wrong(path, content, said):
    whole = sealed(json.dumps(dict(ENTRY, losses=None)))
    path.write_bytes(whole + b'\n')
    assert Journal(path).recall(TASKS[0][0]) == Outcome({}, None)
    path.write_bytes(sealed(content) + b'\n' + whole + b'\n')
    with pytest.raises(UserError, match=f'line 1.*{said}'):
        Journal(path)


def test_lines_left_at_the_end_of_a_search_are_refused(tmp_path):
    path = tmp_path / 'search_history.jsonl'
    line = dict(subnet=SMALL.to_dict(), phase='search', generation=1, precision='float32', loss=1.0)
    random = [line | dict(phase='baseline'), line | dict(phase='finals')]

    def finish(left: list[dict], with_random: bool):
        path.write_text(''.join(json.dumps(each) + '\n' for each in (line, *left)))
        history = History(path)
        history.add(line)
        history.finish(with_random)

    finish([], with_random=True)
    finish(random, with_random=False)  # that search included a random one
    for left, with_random in (([line], False), (random, True), ([*random, line], False)):
        said = rf'line 2 is of no subnet .*delete the last {len(left)} lines'
        with pytest.raises(UserError, match=said):
            finish(left, with_random)
