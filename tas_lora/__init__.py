"""TAS-LoRA: vision-transformer architecture search with mixture-of-LoRA experts."""

import warnings

import lazy_loader

from . import openmmlab

__version__ = '0.2.0.dev0'

# A name is imported when it is first asked for: `import tas_lora` costs next to nothing, and who
# works with subnets and spaces alone waits for no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs=dict(
        errors=['UserError'],
        models=['ElasticViT', 'export_subnet', 'load_supernet', 'supernet_from'],
        search=['count_flops', 'count_params'],
        structures=['SearchSpace', 'Subnet', 'read_subnet'],
    ),
)

# mmcv-lite says on import that it lacks CUDA operators; none is needed here.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

openmmlab.register()
