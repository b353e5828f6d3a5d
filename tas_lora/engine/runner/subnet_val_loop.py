"""Evaluation of chosen subnets."""

from collections.abc import Mapping

from mmengine.runner import TestLoop, ValLoop

from ...checks import boolean, within
from ...datasets.replay import check_readable, readable
from ...errors import UserError
from ...registry import LOOPS
from ...structures import SearchSpace, Subnet
from ..model_access import supernet_of


def resolve_subnets(subnets: dict, space: dict | SearchSpace | None) -> dict[str, Subnet]:
    """Subnets by name; a value is a subnet, its dict, or 'smallest' or 'largest' of ``space``.

    Raises:
        UserError: If there is none, or one is of another form.
    """
    space = None if space is None else SearchSpace.coerce(space)

    def resolve(name: str, value) -> Subnet:
        if not isinstance(value, str):
            with within(f'subnets.{name}'):
                return Subnet.coerce(value)
        if value not in ('smallest', 'largest') or space is None:
            raise UserError(
                f"is {value!r}; give the dict of a subnet, or with a space 'smallest' or 'largest'",
                f'subnets.{name}',
            )
        return getattr(space, value)()

    if not isinstance(subnets, Mapping) or not subnets:
        raise UserError(
            "must be a dict that names at least one, such as dict(largest='largest'), got "
            f'{subnets!r}',
            'subnets',
        )
    return {name: resolve(name, value) for name, value in subnets.items()}


@LOOPS.register_module()
class SubnetValLoop(ValLoop):
    """Validates several subnets in turn; their metrics come as ``name/metric``.

    The hooks of a validation epoch run once for all subnets, with all metrics together, so that
    ``save_best='largest/accuracy/top1'`` works.

    Args:
        runner: The runner.
        dataloader: As in ``ValLoop``.
        evaluator: As there.
        subnets: Subnets by name: dicts, or 'smallest' and 'largest'.
        space: The search space, for 'smallest' and 'largest'.
        **kwargs: As in ``ValLoop``.
    """

    def __init__(self, runner, dataloader, evaluator, subnets: dict, space=None, **kwargs):
        super().__init__(runner, readable(dataloader), evaluator, **kwargs)
        self.subnets = resolve_subnets(subnets, space)
        boolean(self.fp16, 'fp16')
        self.model = supernet_of(runner)

    def run(self) -> dict:
        """Evaluate all subnets; returns their metrics."""
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        metrics = evaluate_subnets(self)
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics


@LOOPS.register_module()
class SubnetTestLoop(TestLoop):
    """Tests several subnets in turn; arguments as :class:`SubnetValLoop`."""

    def __init__(self, runner, dataloader, evaluator, subnets: dict, space=None, **kwargs):
        super().__init__(runner, readable(dataloader), evaluator, **kwargs)
        self.subnets = resolve_subnets(subnets, space)
        boolean(self.fp16, 'fp16')
        self.model = supernet_of(runner)

    def run(self) -> dict:
        """Evaluate all subnets; returns their metrics."""
        self.runner.call_hook('before_test')
        self.runner.call_hook('before_test_epoch')
        metrics = evaluate_subnets(self)
        self.runner.call_hook('after_test_epoch', metrics=metrics)
        self.runner.call_hook('after_test')
        return metrics


def evaluate_subnets(loop: SubnetValLoop | SubnetTestLoop) -> dict:
    """Metrics of every subnet of ``loop``; the subnet active before is active again after."""
    active, metrics = loop.model.subnet, {}
    for name, subnet in loop.subnets.items():
        found = evaluate_subnet(loop, subnet)
        metrics |= {f'{name}/{metric}': value for metric, value in found.items()}
    loop.model.set_subnet(active)
    return metrics


def evaluate_subnet(loop: ValLoop | TestLoop, subnet: Subnet) -> dict:
    """Metrics of one subnet over the dataloader of ``loop``; the same on all ranks."""
    run_subnet(loop, subnet)
    return loop.evaluator.evaluate(len(loop.dataloader.dataset))


def run_subnet(loop: ValLoop | TestLoop, subnet: Subnet) -> None:
    """Hand what one subnet predicts to the evaluator of ``loop``."""
    loop.runner.model.eval()
    loop.model.set_subnet(subnet)
    for idx, data_batch in enumerate(loop.dataloader):
        check_readable(data_batch)
        loop.run_iter(idx, data_batch)
