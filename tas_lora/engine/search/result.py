"""What a search leaves behind: the best subnet, the front, and how its experts are mixed."""

import json
from hashlib import sha256
from math import isfinite, nan
from pathlib import Path
from reprlib import repr as short

import numpy as np
import torch

from ...atomic_files import write_together
from ...errors import UserError
from ...models import SupernetClassifier
from ...search import CandidateScorer
from ...search.front import knee_points, pareto_front
from ...structures import Subnet
from ..runner.resume_check import differences

RESULT, FRONT, GATES = 'best_subnet.json', 'front.json', 'gates.json'
COST, TEST = 'search_cost.json', 'test.json'
_OF_A_LINE = ('phase', 'generation', 'error')  # not of a result
_LAYERS = ('qkv', 'proj', 'fc1', 'fc2')


def chosen_of(result: dict, front: list[dict]) -> dict[str, dict]:
    """Subnets that a search has chosen, by name: the best, that of random search, the knees."""
    chosen = dict(found=result['subnet'])
    if result['baseline']:
        chosen['random'] = result['baseline']['subnet']
    knees = [record['subnet'] for record in front if record['knee']]
    return chosen | {f'knee{number}': subnet for number, subnet in enumerate(knees, 1)}


def known_test(folder: Path, chosen: dict[str, dict]) -> dict[str, float] | None:
    """Metrics of an earlier test of just these subnets; None if there was none."""
    path = folder / TEST
    known = json.loads(path.read_text()) if path.exists() else {}
    return known['metrics'] if known.get('subnets') == chosen else None


def by_name(chosen: dict[str, dict], metrics: dict[str, float]) -> dict[str, dict]:
    """Metrics 'name/metric' as a dict for each name."""
    return {
        name: {
            metric.removeprefix(f'{name}/'): value
            for metric, value in metrics.items()
            if metric.startswith(f'{name}/')
        }
        for name in chosen
    }


def record_of(line: dict) -> dict:
    """A line of the history as a result."""
    return {key: value for key, value in line.items() if key not in _OF_A_LINE}


def write_result(
    folder: Path, record: dict, front: list[dict], gates: dict | None, cost: dict
) -> None:
    """Write all files of a result, whole; a test of what was chosen stays in it."""
    chosen = chosen_of(record, front)
    if (tested := known_test(folder, chosen)) is not None:
        record = record | dict(test=by_name(chosen, tested))
    contents = {RESULT: record, FRONT: front, GATES: gates or {}, COST: cost}
    write_together(
        {folder / name: json.dumps(value, indent=2) + '\n' for name, value in contents.items()}
    )


def set_aside(folder: Path) -> None:
    """Before a new search: nothing of an earlier one must be taken for its own.

    Its identity goes first, so that what is left by a kill in between belongs to no search.
    """
    for name in ('search.json', FRONT, GATES, COST, TEST, 'report.html'):
        (folder / name).unlink(missing_ok=True)
    for name in (RESULT, 'search_history.jsonl', 'search_journal.bin', 'measured.jsonl'):
        if (folder / name).exists():
            (folder / name).replace(folder / f'{name}.old')


def result_of(folder: str | Path) -> dict:
    """The result of the search in a work directory.

    Raises:
        UserError: If there is none.
    """
    path = Path(folder) / RESULT if Path(folder).is_dir() else Path(folder)
    try:
        result = json.loads(path.read_text())
        if not {'subnet', 'score', 'rule', 'search'} <= set(result):
            raise ValueError('it has no score, rule or search')
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f'{path} is no result of a search: {error}') from error
    return result


def compare_results(one: str | Path, other: str | Path) -> tuple[bool, str]:
    """Whether two searches found the same, and a line on it."""
    before, now = (_comparable(path) for path in (one, other))
    name = before['score']
    compared = ('subnet', name, 'candidates', 'images_evaluated', 'baseline', 'front', 'history')
    lost = [key for key in ('front', 'history') if before[key] is None]  # a result on its own
    differing = [k for k in compared if k not in lost and before.get(k) != now.get(k)]
    if not differing:
        return True, f'The same result: {name} {now.get(name)}, {Subnet.coerce(now)}'
    said = '; '.join(
        f'{key} was {short(before.get(key))}, is {short(now.get(key))} now' for key in differing
    )
    return False, f'Not the same result: {said}{_versions(before, now)}'


def _comparable(path: str | Path) -> dict:
    """A result with the digest of its history, and its front."""
    result, folder = result_of(path), Path(path)
    folder = folder if folder.is_dir() else folder.parent
    for name, file in (('front', FRONT), ('history', 'search_history.jsonl')):
        path = folder / file
        result[name] = sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None
    return result


def _versions(before: dict, now: dict) -> str:
    text = differences(before['search']['versions'], now['search']['versions'])
    return f'; versions differ: {text}' if text else ''


def front_of(
    scorer: CandidateScorer, goals: tuple[str, ...], phase: str, precision: str
) -> list[dict]:
    """Records that no other one beats in score and all goals, best score first.

    After a race, the scores of those it dropped are estimates: ``images`` and ``error`` say so.

    Args:
        scorer: The search.
        goals: Costs that are to be low; without any, the front is that of the parameters, and
            has no knees.
        phase: Whose lines count.
        precision: Likewise.

    Returns:
        Records with ``knee``: whether giving up a little of one gains much of another there.
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
        {**record_of(lines[index]), 'error': lines[index]['error'], 'knee': place in knees}
        for place, index in enumerate(chosen)
    ]


def gates_of(model: SupernetClassifier, subnet: Subnet) -> dict[str, list[float]] | None:
    """How the router mixes the experts in each linear layer of a subnet."""
    if model.router is None:
        return None
    with torch.no_grad():
        gates = model.router(subnet).cpu()  # (L, 4, K)
    return {
        f'block {block} {layer}': [round(float(gate), 6) for gate in gates[block, place]]
        for block in range(len(gates))
        for place, layer in enumerate(_LAYERS)
    }
