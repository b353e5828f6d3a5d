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
    """Subnets by name; a value is a subnet, its dict, or 'smallest' or 'largest' in ``space``.

    Raises:
        UserError: If there are no subnets, or one has another form.
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


class _SubnetLoop:
    """What the two loops share; comes before ``ValLoop`` or ``TestLoop`` in the bases."""

    stage: str  # in the names of hooks

    def __init__(self, runner, dataloader, evaluator, subnets: dict, space=None, **kwargs):
        super().__init__(runner, readable(dataloader), evaluator, **kwargs)
        self.subnets = resolve_subnets(subnets, space)
        boolean(self.fp16, 'fp16')
        self.model = supernet_of(runner)

    def run(self) -> dict:
        """Evaluate all subnets and return their metrics, the same on all ranks."""
        self.runner.call_hook(f'before_{self.stage}')
        self.runner.call_hook(f'before_{self.stage}_epoch')
        active, metrics = self.model.subnet, {}
        for name, subnet in self.subnets.items():
            found = self._evaluate(subnet)
            metrics |= {f'{name}/{metric}': value for metric, value in found.items()}
        self.model.set_subnet(active)
        self.runner.call_hook(f'after_{self.stage}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{self.stage}')
        return metrics

    def _evaluate(self, subnet: Subnet) -> dict:
        self.runner.model.eval()
        self.model.set_subnet(subnet)
        for idx, data_batch in enumerate(self.dataloader):
            check_readable(data_batch)
            self.run_iter(idx, data_batch)
        return self.evaluator.evaluate(len(self.dataloader.dataset))


@LOOPS.register_module()
class SubnetValLoop(_SubnetLoop, ValLoop):
    """Validates several subnets in turn; their metrics are named ``name/metric``.

    The hooks of a validation epoch run once for all subnets, with all metrics together, so that
    ``save_best='largest/accuracy/top1'`` works.

    Args:
        dataloader: As in ``ValLoop``.
        evaluator: As in ``ValLoop``.
        subnets: Subnets by name: dicts, or 'smallest' and 'largest'.
        space: The search space, for 'smallest' and 'largest'.
        **kwargs: As in ``ValLoop``.
    """

    stage = 'val'


@LOOPS.register_module()
class SubnetTestLoop(_SubnetLoop, TestLoop):
    """Tests several subnets in turn; arguments as in :class:`SubnetValLoop`."""

    stage = 'test'
