"""The test set, read once, for what a search has chosen."""

import json
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from ...errors import UserError
from ...files import write_atomic
from ..runner import SubnetTestLoop
from .result import FRONT, RESULT, TEST, result_of


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
        result = result_of(folder) | dict(test=_by_name(chosen, metrics))
        write_atomic(folder / RESULT, json.dumps(result, indent=2) + '\n')
    return {f'test/{name}': value for name, value in metrics.items()}


def _plan(folder: Path) -> tuple[dict, dict | None]:
    """Chosen subnets by name, and their metrics if they are known."""
    result = result_of(folder)
    chosen = dict(found=result['subnet'])
    if result['baseline']:
        chosen['random'] = result['baseline']['subnet']
    knees = [r for r in json.loads((folder / FRONT).read_text()) if r['knee']]
    if result['goals']:
        chosen |= {f'knee{number}': record['subnet'] for number, record in enumerate(knees, 1)}
    path = folder / TEST
    known = json.loads(path.read_text()) if path.exists() else {}
    return chosen, known['metrics'] if known.get('subnets') == chosen else None


def _test(runner, chosen: dict) -> dict[str, float]:
    if runner._test_loop is None or 'type' not in runner._test_loop:
        raise UserError("test_cfg must be dict(type='tas_lora.SubnetTestLoop', ...)")
    runner._test_loop = dict(runner._test_loop, subnets=chosen)
    runner.prepare('test')
    if not isinstance(runner.test_loop, SubnetTestLoop):
        raise UserError("test_cfg.type must be 'tas_lora.SubnetTestLoop' to test what was found")
    return {name: float(value) for name, value in runner.test().items()}


def _by_name(chosen: dict, metrics: dict) -> dict[str, dict]:
    return {
        name: {
            metric.removeprefix(f'{name}/'): value
            for metric, value in metrics.items()
            if metric.startswith(f'{name}/')
        }
        for name in chosen
    }
