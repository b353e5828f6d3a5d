"""The files of a search result: the best subnet, its gates, the front, the cost and the test."""

import json
from math import isfinite, nan
from operator import methodcaller
from pathlib import Path
from reprlib import repr as short

import numpy as np
import torch

from ...atomic_files import write_atomic, write_together
from ...errors import UserError
from ...models import SupernetClassifier
from ...models.layers.allocation import LAYER_KINDS
from ...provenance import read_json, sha256
from ...search import CandidateScorer
from ...search.front import knee_points, pareto_front
from ...structures import Subnet
from ..runner.resume_check import differences

RESULT, FRONT, GATES = 'best_subnet.json', 'front.json', 'gates.json'
COST, TEST = 'search_cost.json', 'test.json'
HISTORY, JOURNAL = 'search_history.jsonl', 'search_journal.jsonl'
MEASURED = 'measured.jsonl'
_OF_A_LINE = ('phase', 'generation', 'error')  # not in a result


def _chosen_subnets(result: dict, front: list[dict]) -> dict[str, dict]:
    """Subnets that a search has chosen, by name: the best, random search's best, the knees."""
    chosen = dict(found=result['subnet'])
    if result['baseline']:
        chosen['random'] = result['baseline']['subnet']
    knees = [record['subnet'] for record in front if record['knee']]
    return chosen | {f'knee{number}': subnet for number, subnet in enumerate(knees, 1)}


def _known_test(folder: Path, chosen: dict[str, dict]) -> dict[str, float] | None:
    """Metrics of an earlier test of exactly these subnets; None if there are none."""
    path = folder / TEST
    known = read_json(path, kind=dict) if path.exists() else {}
    metrics = known.get('metrics')
    is_whole = isinstance(metrics, dict) and all(
        isinstance(value, (int, float)) for value in metrics.values()
    )
    return metrics if is_whole and known.get('subnets') == chosen else None


def _by_name(chosen: dict[str, dict], metrics: dict[str, float]) -> dict[str, dict]:
    """Group metrics 'name/metric' into a dict for each name."""
    found = {name: {} for name in chosen}
    for key, value in metrics.items():
        name, _, metric = key.partition('/')
        found[name][metric] = value
    return found


def as_record(line: dict) -> dict:
    """A line of the history as a record of the result."""
    return {key: value for key, value in line.items() if key not in _OF_A_LINE}


def write_result(
    folder: Path, record: dict, front: list[dict], gates: dict | None, cost: dict
) -> None:
    """Write all files of a result atomically; keep a test of the same chosen subnets."""
    chosen = _chosen_subnets(record, front)
    if (tested := _known_test(folder, chosen)) is not None:
        record = record | dict(test=_by_name(chosen, tested))
    contents = {RESULT: record, FRONT: front, GATES: gates or {}, COST: cost}
    write_together(
        {folder / name: json.dumps(value, indent=2) + '\n' for name, value in contents.items()}
    )


def set_aside(folder: Path) -> None:
    """Before a new search, rename an earlier one's results to ``.old`` and delete the rest.

    The identity is deleted first: without it, what a kill in between leaves cannot be resumed.
    """
    for name in ('search.json', FRONT, GATES, COST, TEST, 'report.html'):
        (folder / name).unlink(missing_ok=True)
    for name in (RESULT, HISTORY, JOURNAL, MEASURED):
        if (folder / name).exists():
            (folder / name).replace(folder / f'{name}.old')


def read_result(folder: str | Path) -> dict:
    """Read the result of a search from its file or its work directory.

    Raises:
        UserError: If there is none.
    """
    path = Path(folder) / RESULT if Path(folder).is_dir() else Path(folder)
    result = read_json(path, 'search result', kind=dict)
    is_whole = {'subnet', 'score', 'rule', 'search'} <= set(result)
    if not is_whole or not isinstance(result['score'], str):
        raise UserError(
            f'{path} is not a search result: it needs subnet, score (a name), rule and search'
        )
    return result


def compare_results(one: str | Path, other: str | Path) -> tuple[bool, str]:
    """Whether two searches found the same, and a line that says so or what differs."""
    before, now = (_comparable(path) for path in (one, other))
    name = before['score']
    compared = ('subnet', name, 'candidates', 'images_evaluated', 'baseline', 'front', 'history')
    lost = [key for key in ('front', 'history') if before[key] is None]  # a result file on its own
    differing = [k for k in compared if k not in lost and before.get(k) != now.get(k)]
    if not differing:
        return True, f'The same result: {name} {now.get(name)}, {Subnet.coerce(now)}'
    texts = [
        f'{key} was {short(before.get(key))}, is {short(now.get(key))} now' for key in differing
    ]
    if changes := differences(before['search']['versions'], now['search']['versions']):
        texts.append(f'versions differ: {changes}')
    return False, f'Not the same result: {"; ".join(texts)}'


def _comparable(path: str | Path) -> dict:
    """A result with the digests of its front and its history."""
    result, folder = read_result(path), Path(path)
    folder = folder if folder.is_dir() else folder.parent
    for name, file in (('front', FRONT), ('history', HISTORY)):
        path = folder / file
        result[name] = sha256(path)[:12] if path.is_file() else None
    return result


def front_records(
    scorer: CandidateScorer, goals: tuple[str, ...], phase: str, precision: str
) -> list[dict]:
    """The Pareto front as records, best score first.

    After a race, the scores of dropped subnets are estimates: ``images`` and ``error`` say so.

    Args:
        scorer: The scorer of the search.
        goals: Costs to minimise. If empty, the front is of score and parameters, without knees.
        phase: Only lines of this phase count.
        precision: Only lines of this precision count.

    Returns:
        Records with ``knee``: whether giving up a little of one goal gains much of another.
    """
    names = (scorer.score, *(goals or ('params',)))
    lines = [
        line
        for line in scorer.lines  # a subnet too large for the device has infinite costs
        if (line['phase'], line['precision']) == (phase, precision)
        and all(isfinite(line.get(name, nan)) for name in names)
    ]
    if not lines:
        return []
    lines.sort(key=lambda line: scorer.sign * line[scorer.score])
    points = np.array([[line[name] for name in names] for line in lines])
    points[:, 0] *= scorer.sign
    chosen = np.flatnonzero(pareto_front(points))
    knees = set(knee_points(points[chosen])) if goals else set()
    return [
        {**as_record(lines[index]), 'error': lines[index]['error'], 'knee': place in knees}
        for place, index in enumerate(chosen)
    ]


def winner_gates(model: SupernetClassifier, subnet: Subnet) -> dict[str, list[float]] | None:
    """Gates of the experts in each linear layer of a subnet; None if it runs without experts.

    Shared experts are left out. Blocks are numbered as in the supernet.
    """
    if model.router is None or model.keeps(subnet):
        return None
    with torch.no_grad():
        gates = model.routed_gates(subnet).cpu()  # (L, 4, K)
    return {
        f'block {block} {layer}': [round(float(gate), 6) for gate in row]
        for block, rows in zip(model.backbone.blocks_of(subnet), gates, strict=True)
        for layer, row in zip(LAYER_KINDS, rows, strict=True)
    }


def test_chosen(runner) -> dict[str, float]:
    """Test the best subnet, the knees of the front, and the best of the random search.

    The metrics go into ``best_subnet.json``, under ``test``. If a finished search is resumed,
    they are already there, and the test set is not read again.

    Args:
        runner: The runner of a finished search; its ``test_cfg`` must be a
            :class:`~tas_lora.engine.SubnetTestLoop`.

    Returns:
        Metrics as ``test/name/metric``.
    """
    folder = Path(runner.work_dir)
    result = read_result(folder)
    chosen = _chosen_subnets(result, read_json(folder / FRONT, kind=list))
    metrics = _known_test(folder, chosen)
    if metrics is None:
        runner._test_loop = dict(runner._test_loop, subnets=chosen)
        runner.prepare('test')
        # Matrices, and values by class, become lists.
        metrics = json.loads(json.dumps(runner.test(), default=methodcaller('tolist')))
        write_atomic(folder / TEST, json.dumps(dict(subnets=chosen, metrics=metrics)))
    result['test'] = _by_name(chosen, metrics)
    write_atomic(folder / RESULT, json.dumps(result, indent=2) + '\n')
    return {f'test/{name}': value for name, value in metrics.items()}
