"""Freeze a part of a model and insert adapters; checkpoints leave out the frozen weights."""

from collections.abc import Mapping, Sequence
from inspect import signature

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from tas_lora.errors import UserError, blame

from ..baselines.conv_lora import ConvLoRALinear
from ..registry import MODELS
from .targets import chosen_modules, facts_of, fits, is_list


def adapt(
    part: nn.Module,
    adapter: Mapping | None,
    targets: str | Sequence[str] = 'qkv',
    layers: str | Sequence[int] = 'all',
) -> list[str]:
    """Freeze ``part`` and wrap the chosen modules of it in adapters.

    In a vision transformer that :func:`nas_lora.vits.vits.vit_of` knows, the adapter is told the
    ``parts`` of the layer's output, ``extra_tokens`` and, if it is no square, ``grid``, if it takes
    them and its config does not give them.

    Args:
        part: The module to freeze, such as an image encoder.
        adapter: Config of an adapter that accepts the module as ``base``; None to only freeze.
        targets: One or several groups: 'qkv', 'proj' or 'mlp' for the linear layers, 'attention',
            'ffn' or 'block' for whole modules. Or regular expressions for full names in ``part``,
            such as ``layers\\.([6-9]|1[01])\\..*qkv``.
        layers: The blocks of groups: 'all', 'first_half', 'last_half', or numbers from 0.

    Returns:
        The names of the replaced modules.

    Raises:
        UserError: If there is no such group or block, an expression matches nothing, a match is
            inside another, or the adapter does not exist or cannot adapt the module.
    """
    part.requires_grad_(False)
    if adapter is None:
        return []
    names = chosen_modules(part, targets, layers)
    kind = MODELS.get(str(adapter.get('type'))) if isinstance(adapter, Mapping) else None
    if kind is None:
        raise UserError(
            f"adapter: there is no {adapter!r}; choose from dict(type='nas_lora.X', ...) with "
            'NASLoRALinear, LoRALinear, ConvLoRALinear, BottleneckAdapter, PromptedTokens or '
            'PromptedAttention'
        )
    own = {key: value for key, value in adapter.items() if key != 'type'}
    taken, adapters = signature(kind).parameters, {}
    for name, facts in facts_of(part, names).items():
        told = {key: value for key, value in facts.items() if key in taken}
        with blame(f'adapter (type={adapter["type"]!r})'):
            adapters[name] = kind(base=part.get_submodule(name), **told | own)
    for name, module in adapters.items():
        part.set_submodule(name, module)
    return names


@MODELS.register_module()
class AdaptedModel(BaseModel):
    """A model with one frozen part and adapters inside that part.

    The compared methods differ in this config only, by the adapter and its ``targets``. Decoder
    only is ``adapter=None``; full fine-tuning adds ``trainable=['.*']`` to it.

    Checkpoints hold the weights that are not frozen: adapters, and the model's other parts such as
    a decoder. They load on top of the same model. A full checkpoint of the plain model loads as
    well, under its own names.

    Args:
        model: Config of the model, or the model. Its pretrained weights are loaded before
            anything is replaced.
        part: Name of the part to freeze and adapt.
        adapter: As in :func:`adapt`.
        targets: As in :func:`adapt`, names inside the part.
        layers: As in :func:`adapt`.
        trainable: Regular expressions for parameters of the part that are trained nevertheless.
            They match full names before the adaptation, such as ``.*ln.*`` or ``.*``.

    Raises:
        UserError: As :func:`adapt`; also if the part does not exist.
    """

    def __init__(
        self,
        model: dict | BaseModel,
        part: str = 'encoder',
        adapter: dict | None = None,
        targets: str | Sequence[str] = 'qkv',
        layers: str | Sequence[int] = 'all',
        trainable: Sequence[str] = (),
    ):
        model = model if isinstance(model, nn.Module) else MODELS.build(model)
        model.init_weights()  # now: names in files are those of the plain model
        super().__init__(model.data_preprocessor)
        self.model, self.part = model, part
        plain = {id(value): name for name, value in _values(model).items()}
        inside = _part_of(model, part)
        parameters = {plain[id(p)].removeprefix(f'{part}.'): p for p in inside.parameters()}
        self.adapter_names = adapt(inside, adapter, targets, layers)
        _release(parameters, trainable, part)
        # From names after the adaptation to those of the plain model.
        self._plain_names = {
            name: plain[id(value)] for name, value in _values(model).items() if id(value) in plain
        }
        frozen = {id(p) for p in parameters.values() if not p.requires_grad}
        self._frozen = [name for name, value in _values(model).items() if id(value) in frozen]
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_pre_hook(_take_plain_and_frozen)

    def init_weights(self) -> None:
        """Do nothing: the weights are final once the model is built."""

    def forward(self, *args, mode: str = 'tensor', **kwargs):
        """The model's forward; in mode 'loss' with the adapters' auxiliary losses."""
        result = self.model(*args, mode=mode, **kwargs)
        return result | auxiliary_losses(self.model) if mode == 'loss' else result


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Collect and clear the adapters' auxiliary losses of the last forward.

    Returns:
        ``loss_balance`` (), if there are adapters with a gate in training mode.
    """
    gated = [m for m in model.modules() if isinstance(m, ConvLoRALinear)]
    losses = [module.take_balance_loss() for module in gated]
    losses = [loss for loss in losses if loss is not None]
    return dict(loss_balance=torch.stack(losses).sum()) if losses else {}


def _part_of(model: nn.Module, part: str) -> nn.Module:
    with blame(f'part: the {type(model).__name__} has no part {part!r}'):
        return model.get_submodule(str(part))


def _values(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the parameters and buffers themselves, not copies."""
    return model.state_dict(keep_vars=True)


def _release(parameters: Mapping[str, nn.Parameter], trainable: Sequence[str], part: str) -> None:
    """Unfreeze the parameters that any expression matches."""
    if not is_list(trainable):
        raise UserError(f'trainable must be a list of regular expressions, got {trainable!r}')
    for pattern in trainable:
        chosen = [value for name, value in parameters.items() if fits(pattern, name)]
        if not chosen:
            raise UserError(
                f'trainable: {pattern!r} matches no parameter of the {part}, such as '
                f'{next(iter(parameters))}'
            )
        for value in chosen:
            value.requires_grad_(True)


def _leave_out_frozen(module: AdaptedModel, state_dict: dict, prefix: str, _) -> None:
    for name in module._frozen:
        state_dict.pop(f'{prefix}model.{name}', None)  # absent if it was merged


def _take_plain_and_frozen(module: AdaptedModel, state_dict: dict, prefix: str, *_) -> None:
    """Rename plain names to the new ones; keep the weights that a partial file leaves out."""
    is_plain = any(prefix + plain in state_dict for plain in module._plain_names.values())
    for name, value in _values(module.model).items():
        key, plain = f'{prefix}model.{name}', module._plain_names.get(name)
        if plain is not None and prefix + plain in state_dict:
            state_dict[key] = state_dict.pop(prefix + plain)
        elif name in module._frozen or (is_plain and plain is None):
            state_dict.setdefault(key, value.detach())
