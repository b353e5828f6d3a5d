"""The vision transformers of three libraries, and ours: names of their parts, as data."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

LINEAR_GROUPS = ('qkv', 'proj', 'mlp')
GROUPS = (*LINEAR_GROUPS, 'attention', 'ffn', 'block')


@dataclass(frozen=True)
class Family:
    """A kind of vision transformer.

    Args:
        library: Top package of its classes.
        kinds: Names of its classes, to which subclasses belong as well.
        blocks: Where the list of blocks can be, by release.
        groups: Names of the modules in a block, by group. Where they depend on the release or the
            model, several tuples; a block has all of one of them. 'qkv' has one name if it is
            fused, else those of q, k, v. 'attention' and 'ffn' have the output that is added to
            the block's input.
        extra_tokens: The number of tokens before the patches.
        grid: Rows and columns of patches of the network's own image size.
    """

    library: str
    kinds: tuple[str, ...]
    blocks: tuple[str, ...]
    groups: dict[str, tuple[tuple[str, ...], ...]]
    extra_tokens: Callable[[nn.Module], int]
    grid: Callable[[nn.Module], tuple[int, int]]

    def has(self, module: nn.Module) -> bool:
        """Whether the module is of one of the classes."""
        return any(
            each.__name__ in self.kinds and each.__module__.split('.')[0] == self.library
            for each in type(module).__mro__
        )


def _from_config(vit: nn.Module) -> tuple[int, int]:
    sides = vit.config.image_size, vit.config.patch_size
    image, patch = (s if isinstance(s, list | tuple) else (s, s) for s in sides)
    return image[0] // patch[0], image[1] // patch[1]


_FUSED = dict(
    qkv=(('attn.qkv',),),
    proj=(('attn.proj',),),
    attention=(('attn',),),
    block=(('',),),
)
_MMPRETRAIN = _FUSED | dict(mlp=(('ffn.layers.0.0', 'ffn.layers.1'),), ffn=(('ffn.layers',),))
_TIMM = _FUSED | dict(
    mlp=(('mlp.fc1', 'mlp.fc2'), ('mlp.fc1_g', 'mlp.fc1_x', 'mlp.fc2')), ffn=(('mlp',),)
)
_NEW = ('attention.q_proj', 'attention.k_proj', 'attention.v_proj')
_OLD = tuple(f'attention.attention.{name}' for name in ('query', 'key', 'value'))  # transformers 4
_HUGGINGFACE = dict(
    qkv=(_NEW, _OLD),
    proj=(('attention.o_proj',), ('attention.output.dense',)),
    attention=(('attention',),),
    block=(('',),),
)
_HUGGINGFACE_VIT = _HUGGINGFACE | dict(
    mlp=(('mlp.fc1', 'mlp.fc2'), ('intermediate.dense', 'output.dense')),
    ffn=(('mlp',), ('output.dense',)),
)
_HUGGINGFACE_DINO = _HUGGINGFACE | dict(
    mlp=(
        ('mlp.fc1', 'mlp.fc2'),
        ('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'),
        ('mlp.weights_in', 'mlp.weights_out'),
    ),
    ffn=(('mlp',),),
)

FAMILIES = (
    Family(
        library='mmpretrain',
        kinds=('VisionTransformer',),
        blocks=('layers',),
        groups=_MMPRETRAIN,
        extra_tokens=lambda vit: vit.num_extra_tokens,
        grid=lambda vit: vit.patch_resolution,
    ),
    Family(
        library='mmpretrain',
        kinds=('ViTSAM',),  # its tokens are maps already
        blocks=('layers',),
        groups=_MMPRETRAIN,
        extra_tokens=lambda vit: 0,
        grid=lambda vit: vit.patch_resolution,
    ),
    Family(
        library='timm',
        kinds=('VisionTransformer',),
        blocks=('blocks',),
        groups=_TIMM,
        extra_tokens=lambda vit: vit.num_prefix_tokens,
        grid=lambda vit: vit.patch_embed.grid_size,
    ),
    Family(
        library='transformers',
        kinds=('ViTModel',),
        blocks=('layers', 'encoder.layer'),
        groups=_HUGGINGFACE_VIT,
        extra_tokens=lambda vit: 1,
        grid=_from_config,
    ),
    Family(
        library='transformers',
        kinds=('DeiTModel',),
        blocks=('layers', 'encoder.layer'),
        groups=_HUGGINGFACE_VIT,
        extra_tokens=lambda vit: 2,  # class and distillation
        grid=_from_config,
    ),
    Family(
        library='transformers',
        kinds=('Dinov2Model', 'Dinov2Backbone'),
        blocks=('encoder.layer',),
        groups=_HUGGINGFACE_DINO,
        extra_tokens=lambda vit: 1,
        grid=_from_config,
    ),
    Family(
        library='transformers',
        kinds=('Dinov2WithRegistersModel', 'Dinov2WithRegistersBackbone'),
        blocks=('encoder.layer',),
        groups=_HUGGINGFACE_DINO,
        extra_tokens=lambda vit: 1 + vit.config.num_register_tokens,
        grid=_from_config,
    ),
    Family(
        library='transformers',
        kinds=('CLIPVisionModel', 'CLIPVisionTransformer'),  # the second in transformers 4
        blocks=('encoder.layers',),
        groups=dict(
            qkv=(('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),),
            proj=(('self_attn.out_proj',),),
            mlp=(('mlp.fc1', 'mlp.fc2'),),
            attention=(('self_attn',),),
            ffn=(('mlp',),),
            block=(('',),),
        ),
        extra_tokens=lambda vit: 1,
        grid=_from_config,
    ),
    Family(
        library='tas_lora',
        kinds=('PlainViT',),
        blocks=('blocks',),
        groups=_FUSED | dict(mlp=(('fc1', 'fc2'),), ffn=(('fc2',),)),
        extra_tokens=lambda vit: vit.num_prefix_tokens,
        grid=lambda vit: (vit.side, vit.side),
    ),
)
