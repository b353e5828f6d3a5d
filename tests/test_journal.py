"""The journal: it recalls exactly what was appended, or nothing at all."""

import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPACE, repeatable, spaces

from tas_lora import UserError
from tas_lora.search import Journal, Outcome, Task

SMALL, LARGE = SPACE.smallest(), SPACE.largest()
TASKS = [
    (Task(0, SMALL), Outcome(dict(cross_entropy=0.5, top1=81.25))),
    (Task(1, LARGE, 'bfloat16', np.array([4, 2, 9])), Outcome(losses=np.float32([0.1, 7, 2.5]))),
    (Task(2, LARGE, 'bfloat16', np.array([1])), Outcome()),
    (Task(3, SMALL, 'float32', np.array([3, 0])), Outcome(losses=np.float32([0.3, 1e-20]))),
]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'search_journal.bin'


def write(path: Path, tasks=TASKS) -> list[int]:
    """Append outcomes; returns the size of the file before each, and at the end."""
    journal, ends = Journal(path, resume=True), [path.stat().st_size if path.exists() else 0]
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
    journal = Journal(path, resume=True)
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


def test_what_is_not_there_is_not_recalled(path):
    assert Journal(path, resume=True).recall(Task(0, SMALL)) is None
    write(path)
    assert Journal(path, resume=True).recall(Task(4, SMALL)) is None


def test_an_entry_torn_at_any_byte_is_cut_off_and_appending_goes_on(path):
    ends = write(path)
    whole, (*_, start, end) = path.read_bytes(), ends
    for size in range(start + 1, end):
        path.write_bytes(whole[:size])
        with pytest.warns(
            UserWarning, match=f'journal.bin: the last {size - start} bytes are torn'
        ):
            assert recalled(path) == [True, True, True, None]
        assert path.stat().st_size == start
        write(path, TASKS[3:])
        assert path.read_bytes() == whole


def test_a_first_entry_torn_at_any_byte_is_no_other_file(path):
    end = write(path)[1]
    whole = path.read_bytes()
    for size in range(1, end):
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match='torn, and left out'):
            assert recalled(path) == [None] * 4


@pytest.mark.parametrize('flip', [0x01, 0x20, 0xFF])
def test_a_damaged_byte_hides_its_entry_and_the_later_ones(path, flip):
    ends = write(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        entry = sum(end <= place for end in ends[1:])
        if place < 4:
            with pytest.raises(UserError, match='is no journal of a search'):
                Journal(path, resume=True)
            continue
        with pytest.warns(UserWarning, match=f'the last {len(whole) - ends[entry]} bytes are torn'):
            assert recalled(path) == [True] * entry + [None] * (4 - entry)
        write(path, TASKS[entry:])
        assert path.read_bytes() == whole


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
    message = 'entry 1 is not of the subnet and images that this search evaluates next.* anew'
    with pytest.raises(UserError, match=message):
        Journal(path, resume=True).recall(other)


@pytest.mark.parametrize('content', [b'{"subnet": {}}\n', b'PK\3\4', b'T\0', b'\0' * 99])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match='journal.bin is no journal of a search; search anew'):
        Journal(path, resume=True)
    assert path.read_bytes() == content


def test_a_folder_is_refused(path):
    path.mkdir()
    with pytest.raises(UserError, match='search_journal.bin cannot be read'):
        Journal(path, resume=True)


def test_an_empty_file_is_a_journal(path):
    path.touch()
    write(path)
    assert recalled(path) == [True] * 4


def test_a_new_search_moves_the_journal_aside(path):
    write(path)
    before = path.read_bytes()
    journal = Journal(path, resume=False)
    assert not path.exists()
    assert journal.recall(TASKS[0][0]) is None
    assert path.with_name('search_journal.bin.old').read_bytes() == before
    write(path, TASKS[:1])
    assert recalled(path) == [True, None, None, None]


def test_of_an_entry_that_is_there_twice_the_later_holds(path):
    changed = Outcome(dict(cross_entropy=0.25))
    write(path, [TASKS[0], TASKS[1], (TASKS[0][0], changed)])
    assert recalled(path, [(TASKS[0][0], changed), TASKS[1]]) == [True, True]


def test_entries_may_come_in_any_order(path):
    write(path, TASKS[::-1])
    assert recalled(path) == [True] * 4
