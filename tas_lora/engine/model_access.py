"""Access to a runner's model and config for hooks, loops and strategies."""

from mmengine.model import is_model_wrapper

from ..errors import UserError
from ..models import SupernetClassifier


def supernet_of(runner) -> SupernetClassifier:
    """The supernet of ``runner``, without its distributed wrapper.

    Raises:
        UserError: If the model is not a supernet.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, SupernetClassifier):
        raise UserError(
            f'the model is a {type(model).__name__}; '
            "this config needs type='tas_lora.SupernetClassifier'"
        )
    return model


def refuse_accumulation(runner, why: str) -> None:
    """Raise :class:`UserError` with the reason ``why`` if the config accumulates gradients."""
    if _accumulates(runner.cfg.get('optim_wrapper') or {}):
        raise UserError(f'optim_wrapper.accumulative_counts: {why}; set it to 1')


def _accumulates(config: dict) -> bool:
    return config.get('accumulative_counts', 1) != 1 or any(
        _accumulates(value) for value in config.values() if isinstance(value, dict)
    )
