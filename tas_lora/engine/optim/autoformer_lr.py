"""AutoFormer's learning rate as its training really ran."""

from math import cos, pi

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

from ...checks import boolean, bounded, natural, positive
from ...errors import UserError, blame
from ...registry import PARAM_SCHEDULERS


def autoformer_lr(
    epoch: int, base_lr: float, epochs: int, warmup_epochs: int, warmup_lr: float, min_lr: float
) -> float:
    """Rate of ``epoch``, counted from 0.

    The official code steps its scheduler behind each epoch with the number of that epoch: epochs
    0 and 1 both run at ``warmup_lr``, epoch e at the rate of t = e - 1. Its cosine counts t from
    the start of the warm-up, hence begins below ``base_lr``.
    """
    t = max(epoch - 1, 0)
    if t < warmup_epochs:
        return warmup_lr + t * (base_lr - warmup_lr) / warmup_epochs
    return min_lr + (base_lr - min_lr) * (1 + cos(pi * t / epochs)) / 2


@PARAM_SCHEDULERS.register_module()
class AutoFormerLR(LRSchedulerMixin, _ParamScheduler):
    """Warm-up and cosine of the official AutoFormer training, by epoch.

    Args:
        optimizer: The optimizer or its wrapper; its rate is the base rate.
        epochs: Epochs of the training.
        warmup_epochs: Epochs of the warm-up.
        warmup_lr: Rate at its start.
        min_lr: Rate the cosine tends to.
        **kwargs: As in MMEngine's schedulers.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        optimizer,
        epochs: int,
        warmup_epochs: int = 20,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        **kwargs,
    ):
        self.shape = dict(
            epochs=positive(epochs, 'epochs', int),
            warmup_epochs=natural(warmup_epochs, 'warmup_epochs', most=epochs),
            warmup_lr=bounded(warmup_lr, 'warmup_lr', most=1e9),
            min_lr=bounded(min_lr, 'min_lr', most=1e9),
        )
        begin = natural(kwargs.get('begin', 0), 'begin')
        positive(kwargs.get('end', begin + 1), 'end', int)
        if kwargs.get('by_epoch', True) is not True:
            raise UserError(f'must be True, got {kwargs["by_epoch"]!r}', 'by_epoch')
        boolean(kwargs.get('verbose', False), 'verbose')
        with blame('cannot be built', ''):
            super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        return [autoformer_lr(self.last_step, base, **self.shape) for base in self.base_values]
