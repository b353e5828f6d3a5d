"""The test set, read once, for what a search has chosen."""

import json
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from ...atomic_files import write_atomic
from .result import FRONT, RESULT, TEST, by_name, chosen_of, known_test, result_of


def test_chosen(runner) -> dict[str, float]:
    """Test the best subnet, the knees of the front, and the best of the random search.

    The metrics go into ``best_subnet.json``, under ``test``. If they are there already, of a
    search that was resumed behind its end, the test set is not read again.

    Args:
        runner: The runner of a search that is over; its ``test_cfg`` must be a
            :class:`~tas_lora.engine.SubnetTestLoop`.

    Returns:
        Metrics as ``test/name/metric``.
    """
    folder = Path(runner.work_dir)
    plan = [_plan(folder) if is_main_process() else None]
    broadcast_object_list(plan)
    chosen, metrics = plan[0]
    if metrics is None:
        metrics = _test(runner, chosen)
        if is_main_process():
            write_atomic(folder / TEST, json.dumps(dict(subnets=chosen, metrics=metrics)))
    if is_main_process():
        result = result_of(folder) | dict(test=by_name(chosen, metrics))
        write_atomic(folder / RESULT, json.dumps(result, indent=2) + '\n')
    return {f'test/{name}': value for name, value in metrics.items()}


def _plan(folder: Path) -> tuple[dict, dict | None]:
    """Chosen subnets by name, and their metrics if they are known."""
    chosen = chosen_of(result_of(folder), json.loads((folder / FRONT).read_text()))
    return chosen, known_test(folder, chosen)


def _test(runner, chosen: dict) -> dict[str, float]:
    runner._test_loop = dict(runner._test_loop, subnets=chosen)
    runner.prepare('test')
    return {name: float(value) for name, value in runner.test().items()}
