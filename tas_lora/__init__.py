"""TAS-LoRA: vision-transformer architecture search with mixture-of-LoRA experts."""

import warnings

# mmcv-lite says on import that it lacks CUDA operators; none is needed here.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

from . import openmmlab
from .apis import load_supernet, read_subnet
from .errors import UserError
from .models import export_subnet
from .search import count_flops, count_params
from .structures import SearchSpace, Subnet

__version__ = '0.2.0.dev0'

__all__ = [
    'SearchSpace',
    'Subnet',
    'UserError',
    'count_flops',
    'count_params',
    'export_subnet',
    'load_supernet',
    'read_subnet',
]

openmmlab.register()
