"""Several optimizers for one loss: experts, router, and the supernet if it is trained."""

from collections.abc import Mapping

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from torch import Tensor, nn

from ...checks import of_part
from ...errors import UserError
from ...models.layers import expert_parameters
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from .supernet_optim import SupernetOptimWrapper

_PARTS = ('experts', 'router', 'supernet', 'feature_map')


@OPTIM_WRAPPERS.register_module()
class JointOptimWrapper(OptimWrapperDict):
    """Steps several optimizers on the gradients of one loss.

    MMEngine's ``OptimWrapperDict`` leaves ``update_params`` to the model. With the definition
    here, the standard ``train_step`` of models and of their DDP wrapper works. Precision, loss
    scale and gradient accumulation come from the first wrapper.

    Args:
        **wrappers: A :class:`SupernetOptimWrapper` for each name.
    """

    def __init__(self, **wrappers: SupernetOptimWrapper):
        super().__init__(**wrappers)
        for name, wrapper in wrappers.items():
            if not isinstance(wrapper, SupernetOptimWrapper):
                raise UserError(
                    f'must be tas_lora.SupernetOptimWrapper, got {type(wrapper).__name__}; its '
                    'argument amp gives mixed precision',
                    f'{name}.type',
                )
            wrapper.scaler = self.first.scaler  # one loss, so one scale

    @property
    def first(self) -> SupernetOptimWrapper:
        """The wrapper that owns precision, loss scale, accumulation and unread losses."""
        return next(iter(self.optim_wrappers.values()))

    def update_params(self, loss: Tensor, step_kwargs=None, zero_kwargs=None) -> None:
        """Backward once, then step and clear every optimizer."""
        self.backward(self.scale_loss(loss))
        if self.should_update():
            wrappers = list(self.optim_wrappers.values())
            self.first.take_step(loss, wrappers, step_kwargs, zero_kwargs)

    def should_update(self) -> bool:
        """Whether no gradients are being accumulated."""
        return self.first.should_update()

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Run backward, counted by the first wrapper."""
        self.first.backward(loss, **kwargs)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss divided by the number of accumulated ones."""
        return self.first.scale_loss(loss)

    def optim_context(self, model: nn.Module):
        """Forward context: autocast and, while accumulating, no gradient synchronisation."""
        return self.first.optim_context(model)

    def initialize_count_status(self, model, init_counts: int, max_counts: int) -> None:
        """Pass the iteration counts to the first wrapper, which decides on accumulation."""
        self.first.initialize_count_status(model, init_counts, max_counts)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MoLEOptimWrapperConstructor:
    """Builds a :class:`JointOptimWrapper` from ``dict(experts=..., router=...)``.

    Learning rates, the router's too, stand in the config: ``configs/_base_/schedules/``.

    Args:
        optim_wrapper_cfg: A config of an ``OptimWrapper`` for each of 'experts' and 'router', and
            for 'supernet' if ``model.freeze_supernet`` is False, for 'feature_map' if the model has
            one. Each may have MMEngine's ``paramwise_cfg``. Other keys, such as ``type`` or
            ``amp``, are defaults for all.
        paramwise_cfg: Refused; it belongs in the parts.

    Raises:
        UserError: If a part is missing, is not an optimizer's config, or has nothing to train.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        if paramwise_cfg:
            raise UserError(
                'would apply to no part: give it to experts, router or supernet', 'paramwise_cfg'
            )
        missing = {'experts', 'router'} - set(optim_wrapper_cfg)
        if missing:
            raise UserError('is missing; this constructor needs it', missing.pop())
        parts = {k: v for k, v in optim_wrapper_cfg.items() if k in _PARTS}
        for name, part in parts.items():
            if not isinstance(part, Mapping) or not isinstance(part.get('optimizer'), Mapping):
                raise UserError(f'must be a dict with an optimizer, got {part!r}', name)
        shared = {k: v for k, v in optim_wrapper_cfg.items() if k not in _PARTS}
        shared.setdefault('type', 'tas_lora.SupernetOptimWrapper')
        self.configs = {name: shared | part for name, part in parts.items()}

    @of_part('MoLEOptimWrapperConstructor')
    def __call__(self, model: nn.Module) -> JointOptimWrapper:
        """Wrap experts and router of ``model``, and its other weights if they are trained."""
        model = model.module if is_model_wrapper(model) else model
        if model.router is None:
            raise UserError('this optim_wrapper trains experts and a router; the model has none')
        added = dict(experts=[*expert_parameters(model)], router=[*model.router.parameters()])
        if model.feature_map is not None:
            added['feature_map'] = [*model.feature_map.parameters()]
        if ('feature_map' in added) != ('feature_map' in self.configs):
            raise UserError('goes with model.feature_map=True; set both or neither', 'feature_map')
        added_ids = {id(parameter) for part in added.values() for parameter in part}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in added_ids]
        if bool(others) != ('supernet' in self.configs):
            raise UserError(
                'goes with model.freeze_supernet=False: '
                + ('the supernet would not be trained' if others else 'it has nothing to train')
                + '; set both or neither',
                'supernet',
            )
        parameters = added | dict(supernet=others)
        return JointOptimWrapper(
            **{name: self._build(name, model, parameters[name]) for name in self.configs}
        )

    def _build(self, name: str, model: nn.Module, parameters: list[nn.Parameter]):
        config = dict(self.configs[name])
        optimizer, paramwise = dict(config.pop('optimizer')), config.pop('paramwise_cfg', None)
        if paramwise:
            parameters = parameter_groups(model, parameters, optimizer, paramwise)
        config['optimizer'] = OPTIMIZERS.build(optimizer | dict(params=parameters))
        if not isinstance(config['optimizer'], torch.optim.Optimizer):
            raise UserError(f'is not an optimizer: {optimizer["type"]}', f'{name}.optimizer')
        return ROOT_OPTIM_WRAPPERS.build(config)


def parameter_groups(
    model: nn.Module, parameters: list[nn.Parameter], optimizer: dict, paramwise: dict
) -> list[dict]:
    """Group ``parameters`` so that those with equal options share a group.

    Args:
        model: Model whose parameter names and layer types the rules match.
        parameters: The parameters to group, some of ``model``.
        optimizer: Config of the optimizer, with the rate and decay that the rules multiply.
        paramwise: MMEngine's ``paramwise_cfg``; with ``layer_decay_rate``, that of MMPretrain's
            ``LearningRateDecayOptimWrapperConstructor``.
    """
    single, wanted = [], {id(parameter) for parameter in parameters}
    decays = 'layer_decay_rate' in paramwise
    kind = LearningRateDecayOptimWrapperConstructor if decays else DefaultOptimWrapperConstructor
    kind(dict(optimizer=optimizer), paramwise).add_params(single, model)
    groups, own = {}, {'params', 'param_name'}
    for group in single:
        options = tuple(sorted((key, value) for key, value in group.items() if key not in own))
        groups.setdefault(options, []).extend(p for p in group['params'] if id(p) in wanted)
    return [dict(options, params=params) for options, params in groups.items() if params]
