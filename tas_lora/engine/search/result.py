"""What a search leaves behind: the best subnet, the front, and how its experts are mixed."""

import json
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...files import write_together
from ...models import SupernetClassifier
from ...search import Study
from ...search.front import knee_points, pareto_front
from ...structures import Subnet

RESULT, FRONT, GATES = 'best_subnet.json', 'front.json', 'gates.json'
COST, TEST = 'search_cost.json', 'test.json'
_OF_A_LINE = ('phase', 'generation', 'error')  # not of a result
_LAYERS = ('qkv', 'proj', 'fc1', 'fc2')


def record_of(line: dict) -> dict:
    """A line of the history as a result."""
    return {key: value for key, value in line.items() if key not in _OF_A_LINE}


def write_result(
    folder: Path, record: dict, front: list[dict], gates: dict | None, cost: dict
) -> None:
    """Write all files of a result, whole."""
    contents = {RESULT: record, FRONT: front, GATES: gates or {}, COST: cost}
    write_together(
        {folder / name: json.dumps(value, indent=2) + '\n' for name, value in contents.items()}
    )


def set_aside(folder: Path) -> None:
    """Before a new search: an earlier result must not be taken for its own."""
    if (folder / RESULT).exists():
        (folder / RESULT).replace(folder / f'{RESULT}.old')
    for name in (FRONT, GATES, COST, TEST, 'report.html'):
        (folder / name).unlink(missing_ok=True)


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
    before, now = result_of(one), result_of(other)
    name = before['score']
    compared = ('subnet', name, 'candidates', 'images_evaluated')
    differing = [key for key in compared if before.get(key) != now.get(key)]
    if not differing:
        return True, f'The same result: {name} {now.get(name)}, {Subnet.coerce(now)}'
    said = '; '.join(f'{key} was {before.get(key)}, is {now.get(key)} now' for key in differing)
    return False, f'Not the same result: {said}'


def front_of(study: Study, goals: tuple[str, ...], phase: str, precision: str) -> list[dict]:
    """Records that no other one beats in score and all goals, best score first.

    Args:
        study: The search.
        goals: Costs that are to be low.
        phase: Whose lines count.
        precision: Likewise.

    Returns:
        Records with ``knee``: whether giving up a little of one gains much of another there.
    """
    lines = study.best(len(study.lines), phase=phase, precision=precision)
    points = np.array([_point(study, line, goals) for line in lines]).reshape(len(lines), -1)
    chosen = np.flatnonzero(pareto_front(points)) if lines else []
    knees = set(knee_points(points[chosen])) if len(chosen) > 2 else set()
    return [
        {**record_of(lines[index]), 'knee': place in knees} for place, index in enumerate(chosen)
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


def _point(study: Study, line: dict, goals: tuple[str, ...]) -> list[float]:
    return [study.sign * line[study.score], *(line[goal] for goal in goals)]
