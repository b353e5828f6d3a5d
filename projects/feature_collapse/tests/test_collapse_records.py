"""One line for each record, and a file for each until it is gathered."""

import json
import multiprocessing

import pytest
from feature_collapse.records import FILE, Records

from tas_lora import UserError


def record_of(net: str, kind: str = 'net', **more) -> dict:
    return dict(kind=kind, net=net, digest='x', **more)


def test_gathered_records_are_lines_in_order_and_what_they_were(tmp_path):
    known = Records(tmp_path / 'results', tmp_path / 'work')
    values = dict(top1=[0.1 + 0.2, 1e-17, 85.017], curves={}, start=None)
    written = [record_of('b_seed0', **values), record_of('a_seed10'), record_of('a_seed2')]
    written.append(record_of('b_seed0', 'scores'))
    for record in written:
        known.write(record)
        known.gather(record['kind'], [record['net'], 'missing_seed0'])
        assert not list((tmp_path / 'work').rglob('*.json'))
    text = (tmp_path / 'results' / FILE).read_text()
    assert [json.loads(line) for line in text.splitlines()] == [written[i] for i in (1, 2, 0, 3)]
    assert ' ' not in text
    assert known.all() == [written[i] for i in (1, 2, 0)]
    assert Records(tmp_path / 'results').read('b_seed0', 'scores') == written[3]


def test_a_record_replaces_its_line_and_leaves_others_as_they_are(tmp_path):
    known = Records(tmp_path / 'results', tmp_path / 'work')
    nets = ['a_seed0', 'b_seed0', 'c_seed0']
    for net in nets:
        known.write(record_of(net, test=None))
    known.gather('net', nets[:2])
    assert [record['net'] for record in known.all()] == nets[:2]  # the third was not asked for
    assert known.read('c_seed0') == record_of('c_seed0', test=None)
    before = (tmp_path / 'results' / FILE).read_text().splitlines()
    known.write(record_of('b_seed0', test=1))
    assert known.read('b_seed0')['test'] == 1  # though not gathered yet
    known.gather('net', ['b_seed0'])
    after = (tmp_path / 'results' / FILE).read_text().splitlines()
    assert after == [before[0], before[1].replace('null', '1')]


def test_missing_and_damaged_records_are_told(tmp_path):
    known = Records(tmp_path / 'results', tmp_path / 'work')
    assert known.all() == []
    assert known.read('a_seed0') is None
    known.write(record_of('a_seed0'))
    assert known.read('a_seed0', digest='x') == record_of('a_seed0')
    with pytest.raises(UserError, match='a_seed0 in .* is of another config .digest x, now y'):
        known.read('a_seed0', digest='y')
    (tmp_path / 'work' / 'a_seed0' / 'net.json').write_text('{')
    with pytest.raises(UserError, match='a_seed0/net.json is not a record'):
        known.read('a_seed0')


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('{"kind":"net","net":"a_', 'line 2 of .* is not a record'),
        ('<<<<<<< HEAD', 'line 2 of .* is not a record'),
        ('{"net":"b_seed0"}', "line 2 of .* is not a record: 'kind'"),
        ('[1]', 'line 2 of .* is not a record'),
        ('{"kind":"net","net":"a_seed0"}', 'line 2 of .* is a second one of a_seed0'),
    ],
)
def test_damaged_lines_are_told_by_their_number(tmp_path, line, said):
    whole = json.dumps(record_of('a_seed0'))
    (tmp_path / FILE).write_text(f'{whole}\n{line}\n')
    with pytest.raises(UserError, match=said):
        Records(tmp_path).all()


def write_and_gather(folder, name: str) -> None:
    known = Records(folder / 'results', folder / 'work')
    for seed in range(6):
        known.write(record_of(f'{name}_seed{seed}'))
        known.gather('net', [f'{name}_seed{seed}'])
        known.write(record_of('shared_seed0', count=seed))  # of all, by all
        known.gather('net', ['shared_seed0'])


def test_processes_side_by_side_lose_no_record(tmp_path):
    fork = multiprocessing.get_context('fork')
    with fork.Pool(4) as pool:
        pool.starmap(write_and_gather, [(tmp_path, name) for name in 'abcd'])
    found = {record['net']: record for record in Records(tmp_path / 'results').all()}
    assert set(found) == {f'{n}_seed{s}' for n in 'abcd' for s in range(6)} | {'shared_seed0'}
    assert found['shared_seed0']['count'] == 5
