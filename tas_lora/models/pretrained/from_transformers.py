"""Read ViT, DeiT, DINOv2 and CLIP of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError, blame
from ...provenance import read_json
from ..foreign_names import from_huggingface
from ..safe_load import read_state_dict
from .original import (
    Facts,
    Original,
    activation,
    check_parts,
    check_patches,
    common,
    config_of,
    head_part,
    kind,
    norm_eps,
    side_of,
)

_LIBRARY = 'transformers'


@dataclass(frozen=True)
class _Class:
    """A class of transformers: where its parts are, and what its output is."""

    base: str | None = None
    head: str | None = None
    out_type: str = 'cls_token'
    final_norm: str = 'tokens'


# DINOv2's features are the class token and the mean of the patches, as its classifier takes them.
# CLIPForImageClassification averages the patches before the last norm.
_CLASSES = {
    'ViTModel': _Class(),
    'ViTForImageClassification': _Class('vit', 'classifier'),
    'DeiTModel': _Class(),
    'DeiTForImageClassification': _Class('deit', 'classifier'),
    'Dinov2Model': _Class(out_type='cls_avg'),
    'Dinov2ForImageClassification': _Class('dinov2', 'classifier', 'cls_avg'),
    'Dinov2WithRegistersModel': _Class(out_type='cls_avg'),
    'Dinov2WithRegistersForImageClassification': _Class(
        'dinov2_with_registers', 'classifier', 'cls_avg'
    ),
    'CLIPVisionModel': _Class('vision_model'),  # transformers 4 has such a part
    'CLIPVisionModelWithProjection': _Class('vision_model', 'visual_projection'),
    'CLIPForImageClassification': _Class('vision_model', 'classifier', 'avg_featmap', 'none'),
}
# Fields by which transformers fetches or picks code to run.
_CODE = (
    'attn_implementation',
    '_attn_implementation',
    'auto_map',
    'custom_pipelines',
    'quantization_config',
)
_NORMS = ('layernorm_before', 'layernorm_after', 'norm1', 'norm2', 'layer_norm1', 'layer_norm2')


def read(model: nn.Module, img_size: int | None) -> Original:
    """Read one of the classes of ``_CLASSES``.

    A class that has no head gives its feature: the normalised class token, without the pooler of
    ViT and DeiT, which a classifier does not use; for DINOv2, class token and mean of the patches.

    Raises:
        UserError: If the class or a part of it is not supported.
    """
    known = kind(model) in _CLASSES
    check_parts(_LIBRARY, [('the model', kind(model), known, f'one of {", ".join(_CLASSES)}')])
    found = _CLASSES[kind(model)]
    base = getattr(model, found.base or '', model)
    head = None if found.head is None else getattr(model, found.head)
    check_parts(_LIBRARY, [*_network(base), head_part(head, _LIBRARY, str(found.head))])
    patches = base.embeddings
    conv = getattr(patches, 'patch_embedding', None) or patches.patch_embeddings.projection
    check_patches(conv, _LIBRARY)
    own = side_of(base.config.image_size, 'image_size', _LIBRARY)
    side = img_size or own
    state = dict(model.state_dict())
    if side != own:
        name = next(key for key in state if 'embeddings.position_embedding' in key)
        state[name] = _positions(base, conv, side)
    facts, weights = _facts(base, found, side), from_huggingface(state)
    forward = _Output(model, found, side != own)
    return Original(config_of(facts, weights, _LIBRARY), weights, forward)


@dataclass(frozen=True)
class _Output:
    """The model's own forward; positions are resized by it if the images are of another size."""

    model: nn.Module
    found: _Class
    resized: bool

    def __call__(self, images: Tensor) -> Tensor:
        is_dino = kind(self.model).startswith('Dinov2')  # it always resizes
        options = dict(interpolate_pos_encoding=True) if self.resized and not is_dino else {}
        output = self.model(images, **options)
        for name in ('logits', 'image_embeds'):
            if name in output:
                return output[name]
        if kind(self.model).startswith('CLIP'):  # its norm is after the pooling
            return output.pooler_output
        tokens, registers = output.last_hidden_state, 0
        if not is_dino:
            return tokens[:, 0]
        registers = getattr(self.model.config, 'num_register_tokens', 0)
        return torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(dim=1)], dim=1)


def open_model(folder: str, checkpoint: str | Path | None, img_size: int | None) -> nn.Module:
    """Build the model of a folder as ``save_pretrained`` writes it; nothing in it is run.

    Raises:
        UserError: If the folder has no ``config.json`` or no weights, or they do not fit.
    """
    import transformers

    advice = '; hf: takes a folder as save_pretrained writes it, downloaded beforehand'
    config = read_json(Path(folder) / 'config.json', 'config of the model', advice, dict)
    name = (config.get('architectures') or [None])[0]
    if name == 'CLIPModel':  # of a whole CLIP, the image encoder
        name = 'CLIPVisionModelWithProjection'
        config = dict(projection_dim=config.get('projection_dim')) | config.get('vision_config', {})
    known = name in _CLASSES
    check_parts(_LIBRARY, [(f'{folder}: architectures', name, known, ', '.join(_CLASSES))])
    file = checkpoint or _weights_file(Path(folder))
    state = read_state_dict(file)
    with blame(f'{folder}/config.json is not that of a {name}'):
        cls = getattr(transformers, name)
        own = cls.config_class.from_dict(_without_code(config))
    return _loaded(cls, own, state, file)


def _without_code(config: dict) -> dict:
    """A config without the fields by which transformers fetches or picks code to run."""
    kept = {name: value for name, value in config.items() if name not in _CODE}
    return {
        name: _without_code(value)
        if name.endswith('_config') and isinstance(value, dict)
        else value
        for name, value in kept.items()
    }


def preprocessing(folder: str) -> dict:
    """Mean and deviation of the images, from 0 to 255, from a folder's settings; {} if unknown."""
    path = Path(folder) / 'preprocessor_config.json'
    if not path.is_file():
        return {}
    data = read_json(path, 'preprocessor of the model')
    mean, std = data.get('image_mean'), data.get('image_std')
    if data.get('do_normalize') is False or not mean or not std:
        return {}
    scale = 1 / data.get('rescale_factor', 1 / 255)
    mean, std = ([round(scale * value, 6) for value in values] for values in (mean, std))
    return dict(mean=mean, std=std, to_rgb=len(mean) == 3)


def load(model: nn.Module, state: dict[str, Tensor], file: str | Path) -> nn.Module:
    """Load weights with the names of transformers' files."""
    return _loaded(type(model), model.config, state, file)


def _loaded(cls: type, config, state: dict[str, Tensor], file: str | Path) -> nn.Module:
    with blame(f'{file} does not fit {cls.__name__}'):
        loaded, info = cls.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True
        )
    wrong = [*info['missing_keys'], *map(str, info['mismatched_keys'])]
    wrong = [name for name in wrong if 'pooler.' not in name]  # which no classifier uses
    if wrong:
        raise UserError(
            f'{file} does not fit {cls.__name__}: {len(wrong)} weights are missing or of another '
            f'size, the first {sorted(wrong)[0]}'
        )
    return loaded


def _weights_file(folder: Path) -> Path:
    names = ('model.safetensors', 'pytorch_model.bin')
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f'{folder} has no {" and no ".join(names)}; give the weights as checkpoint')


def _blocks(base: nn.Module) -> list[nn.Module]:
    owner = getattr(base, 'encoder', base)
    return list(getattr(owner, 'layers', None) or owner.layer)


def _network(base: nn.Module) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of the network that change its output."""
    config = base.config
    gated = getattr(config, 'use_swiglu_ffn', False)
    yield 'use_swiglu_ffn', gated, not gated, 'an MLP of two layers'


def _facts(base: nn.Module, found: _Class, side: int) -> Facts:
    config, blocks = base.config, _blocks(base)
    norms = {
        f'layer {i}.{name}': getattr(block, name)
        for i, block in enumerate(blocks)
        for name in _NORMS
        if hasattr(block, name)
    }
    ends = dict.fromkeys(('pre_layrnorm', 'layernorm', 'post_layernorm'))
    norms |= {name: getattr(base, name) for name in ends if hasattr(base, name)}
    acts = (activation(_activation_of(b), _LIBRARY, f'layer {i}') for i, b in enumerate(blocks))
    registers = getattr(config, 'num_register_tokens', None)
    return Facts(
        num_heads=[config.num_attention_heads] * len(blocks),
        img_size=side,
        out_type=found.out_type,
        norm_eps=norm_eps(norms, _LIBRARY),
        act=common(acts, 'the activation', _LIBRARY),
        final_norm=found.final_norm,
        prefix_positions=registers is None,  # registers have no positions
    )


def _activation_of(block: nn.Module) -> nn.Module:
    """The activation of a block: of its MLP, or in transformers 4 of its first half."""
    mlp = getattr(block, 'mlp', None) or block.intermediate
    for name in ('activation_fn', 'activation', 'intermediate_act_fn'):
        if hasattr(mlp, name):
            return getattr(mlp, name)
    raise UserError(f'{_LIBRARY}: the activation of {kind(mlp)} was not found')


def _positions(base: nn.Module, conv: nn.Module, side: int) -> Tensor:
    """Positions for images of another size, resized by the model's own method."""
    tokens = (side // conv.kernel_size[0]) ** 2 + (2 if kind(base).startswith('DeiT') else 1)
    like = conv.weight.new_empty(1, tokens, conv.out_channels)
    found = base.embeddings.interpolate_pos_encoding(like, side, side).detach()
    return found[0] if kind(base).startswith('CLIP') else found
