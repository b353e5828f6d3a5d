"""Compare the parts of a training: does it do what its config seems to say?"""

from mmengine.hooks import CheckpointHook, ParamSchedulerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..checks import of_part
from ..errors import UserError
from ..models import SupernetClassifier
from ..structures import SearchSpace
from .hooks import MoLEHook, SafeCheckpointHook
from .runner import ResumableTrainLoop

# They train the active subnet alone. A loop of another class may draw subnets by itself.
_OF_ONE_NETWORK = (EpochBasedTrainLoop, IterBasedTrainLoop, ResumableTrainLoop)


def check_meaning(runner) -> None:
    """Refuse a training with parts that cannot be meant together; log what only looks odd.

    Args:
        runner: The runner, prepared to train.

    Raises:
        UserError: If several subnets are evaluated but none are drawn, or a hook is missing
            without which the router's warm-up or the schedule has no effect.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, SupernetClassifier):
        return
    _check_draws(runner, model)
    _check_hooks(runner, model)
    for text in (*_odd_lengths(runner), *_odd_starts(runner, model)):
        runner.logger.warning(text)


def _check_draws(runner, model: SupernetClassifier) -> None:
    loop = type(runner.train_loop)
    sections = {name: runner.cfg.get(name) or {} for name in ('val_cfg', 'test_cfg')}
    spaces = {f'{name}.space': cfg['space'] for name, cfg in sections.items() if 'space' in cfg}
    if model.router is not None:
        spaces['model.router.space'] = model.router.space
    for field, space in spaces.items():
        with of_part(field):
            size = SearchSpace.coerce(space).size
        if loop in _OF_ONE_NETWORK and size > 1:
            raise UserError(
                f'has type {loop.__name__}, which draws no subnets and trains one network, but '
                f"{field} has {size:,} subnets; set type='tas_lora.SubnetSamplingTrainLoop' and "
                'space; for one network, leave out the router and set val_cfg and test_cfg to '
                'dict()',
                'train_cfg',
            )


def _check_hooks(runner, model: SupernetClassifier) -> None:
    trains = model.router is not None and any(p.requires_grad for p in model.router.parameters())
    if trains and not _has(runner, MoLEHook):
        raise UserError(
            'has no tas_lora.MoLEHook, but the model trains a router, whose warm-up the hook '
            "counts; add dict(type='tas_lora.MoLEHook', router_warmup_epochs=...): a list of a "
            'config replaces that of its _base_',
            'custom_hooks',
        )
    if runner.param_schedulers and not _has(runner, ParamSchedulerHook):
        raise UserError(
            'is None, so param_scheduler would change no rate; leave one of them out',
            'default_hooks.param_scheduler',
        )
    if not _has(runner, CheckpointHook):
        runner.logger.warning('default_hooks.checkpoint is None: no checkpoint is written.')
    elif not _has(runner, SafeCheckpointHook):
        runner.logger.warning(
            'default_hooks.checkpoint is not a tas_lora.SafeCheckpointHook: a kill may truncate a '
            'checkpoint, and signals stop the run without one.'
        )


def _odd_lengths(runner):
    by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
    most, unit = (runner.max_epochs, 'max_epochs') if by_epoch else (runner.max_iters, 'max_iters')
    if runner.val_loop is not None and runner.train_loop.val_begin > most:
        yield (
            f'train_cfg.val_begin is {runner.train_loop.val_begin}, {unit} {most}: the training '
            'never validates.'
        )
    for hook in runner.hooks:
        if isinstance(hook, MoLEHook) and by_epoch and hook.router_warmup_epochs >= most:
            yield (
                f'router_warmup_epochs is {hook.router_warmup_epochs}, train_cfg.max_epochs {most}:'
                ' the router never trains.'
            )
        is_of_unit = isinstance(hook, CheckpointHook) and hook.by_epoch == by_epoch
        if not is_of_unit or hook.save_last:
            continue
        first = hook.save_begin or hook.interval
        if first > most or hook.interval <= 0:
            yield f'default_hooks.checkpoint writes none by {unit} {most} without save_last.'


def _odd_starts(runner, model: SupernetClassifier):
    is_frozen = not all(p.requires_grad for p in model.backbone.parameters())
    starts = runner.cfg.get('load_from') or runner.cfg.get('resume') or model.backbone.init_cfg
    if is_frozen and not starts:
        yield 'load_from is None: experts are trained on a frozen supernet of random weights.'


def _has(runner, kind: type) -> bool:
    return any(isinstance(hook, kind) for hook in runner.hooks)
