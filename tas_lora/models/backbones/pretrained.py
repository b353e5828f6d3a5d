"""Weights for a backbone by itself, as ``init_cfg=dict(type='Pretrained', ...)`` asks for them.

MMEngine's own way would take whatever names fit and leave the rest untrained with a warning, and
reads no safetensors.
"""

from mmengine.model import PretrainedInit
from torch import nn

from ...checks import inside, one_of
from ...errors import UserError
from ..checkpoint import adapt_state_dict, adapt_to_start
from ..safe_load import read_state_dict

_PREFIX = 'backbone.'
_FIELD = 'ElasticViT.init_cfg'  # asked for after the backbone is built


def pretrained_file(init_cfg: dict | list | None) -> str | None:
    """The file that an ``init_cfg`` starts from, None if it names none.

    Raises:
        UserError: If it names none although its type is 'Pretrained', or a prefix other than
            'backbone.'.
    """
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]
    for config in configs:
        if config.get('type') in ('Pretrained', PretrainedInit):
            unknown = sorted(set(config) - {'type', 'checkpoint', 'prefix', 'map_location'})
            if not isinstance(config.get('checkpoint'), str) or unknown:
                raise UserError(
                    f"must be dict(type='Pretrained', checkpoint=FILE), got {config!r}", _FIELD
                )
            one_of(config.get('prefix'), f'{_FIELD}.prefix', (None, 'backbone', _PREFIX))
            return config['checkpoint']
    return None


def load_pretrained(backbone: nn.Module, file: str) -> None:
    """Load a checkpoint of ours, an export, or an official AutoFormer file; a head is left out.

    Positions are resized where the image size differs.

    Raises:
        UserError: If the file is none of these, or its backbone is of another architecture.
    """
    own = {_PREFIX + name: value for name, value in backbone.state_dict(keep_vars=True).items()}
    with inside(f'{_FIELD}.checkpoint {file}'):
        state = read_state_dict(file)
        adapt_to_start(state, own)
        state = {name: value for name, value in state.items() if name.startswith(_PREFIX)}
        adapt_state_dict(state, own)
    backbone.load_state_dict({name.removeprefix(_PREFIX): value for name, value in state.items()})
