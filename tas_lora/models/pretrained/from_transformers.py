"""Read ViT, DeiT, DINOv2 and CLIP of transformers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn

from ...checks import inside, positive
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
    image_side,
    is_none,
    kind,
    norm_eps,
    quiet,
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
# Fields of all classes that are read; the others are those of the class itself.
_FIELDS = {'id2label', 'num_labels', 'problem_type'}
# What an encoder or a classifier does not use; and the heads of files for a class without one.
_UNUSED = re.compile(
    r'(^|\.)(mask_token$|position_ids$|pooler\.)|^(text_model|text_projection)\.|^logit_scale$'
)
_HEADS = ('classifier.', 'visual_projection.')
_NORMS = ('layernorm_before', 'layernorm_after', 'norm1', 'norm2', 'layer_norm1', 'layer_norm2')


def read(model: nn.Module, img_size: int | None) -> Original:
    """Read one of the classes of ``_CLASSES``.

    A class that has no head gives its feature: the normalised class token, without the pooler of
    ViT and DeiT, which a classifier does not use; for DINOv2, class token and mean of the patches.

    Raises:
        UserError: If the class or a part of it is not supported.
    """
    model = _image_encoder(model) if kind(model) == 'CLIPModel' else model
    known = kind(model) in _CLASSES
    check_parts(_LIBRARY, [('the model', kind(model), known, f'one of {", ".join(_CLASSES)}')])
    for module in model.modules():
        if hasattr(module, 'config'):
            module.config.return_dict = True
    found = _CLASSES[kind(model)]
    base = getattr(model, found.base or '', model)
    head = None if found.head is None else getattr(model, found.head)
    check_parts(_LIBRARY, [*_network(base), head_part(head, _LIBRARY, str(found.head))])
    patches = base.embeddings
    conv = getattr(patches, 'patch_embedding', None) or patches.patch_embeddings.projection
    check_patches(conv, _LIBRARY)
    own = side_of(base.config.image_size, 'image_size', _LIBRARY)
    side = image_side(img_size, own, conv, _LIBRARY)
    state = dict(model.state_dict())
    if side != own:
        name = next(key for key in state if 'embeddings.position_embedding' in key)
        state[name] = _positions(base, conv, side)
    facts, weights = _facts(base, found, side), from_huggingface(state)
    facts = replace(facts, **getattr(model, 'image_facts', {}))  # of a folder
    if getattr(model.config, 'problem_type', None) == 'multi_label_classification':
        facts = replace(facts, head=dict(type='mmpretrain.MultiLabelLinearClsHead'))
    forward = _Output(model, side != own)
    head = None if is_none(head) else head
    return Original(config_of(facts, weights, _LIBRARY), weights, forward, head)


def _image_encoder(clip: nn.Module) -> nn.Module:
    """The part of a whole CLIP that reads images."""
    from transformers import CLIPVisionModelWithProjection

    with torch.device('meta'):
        model = CLIPVisionModelWithProjection(clip.config.vision_config)
    model.vision_model, model.visual_projection = clip.vision_model, clip.visual_projection
    return model.eval()


@dataclass(frozen=True)
class _Output:
    """The model's own forward; positions are resized by it if the images are of another size."""

    model: nn.Module
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


def open_model(folder: str, checkpoint: str | Path | None) -> nn.Module:
    """Build the model of a folder as ``save_pretrained`` writes it; nothing in it is run.

    Raises:
        UserError: If the folder has no ``config.json`` or no weights, or they do not fit.
    """
    import transformers

    advice = '; hf: takes a folder as save_pretrained writes it, downloaded beforehand'
    config = read_json(Path(folder) / 'config.json', 'config of the model', advice, dict)
    names = config.get('architectures')
    name = names[0] if isinstance(names, list) and names else names
    if name == 'CLIPModel':  # of a whole CLIP, the image encoder
        name, vision = 'CLIPVisionModelWithProjection', config.get('vision_config')
        right = isinstance(vision, dict)
        check_parts(_LIBRARY, [(f'{folder}: vision_config', vision, right, 'a dict of sizes')])
        config = dict(projection_dim=config.get('projection_dim')) | vision
    known = isinstance(name, str) and name in _CLASSES
    check_parts(_LIBRARY, [(f'{folder}: architectures', name, known, ', '.join(_CLASSES))])
    cls = getattr(transformers, name)
    with blame(f'{folder}/config.json is not that of a {name}'), inside(f'{folder}/config.json'):
        own = cls.config_class.from_dict(_own_fields(cls.config_class, config))
        with torch.device('meta'), quiet():
            read(cls(own), None)  # before its weights are read
    file = checkpoint or _weights_file(Path(folder))
    model = _loaded(cls, own, read_state_dict(file), file)
    model.image_facts = _image_facts(Path(folder) / 'preprocessor_config.json')
    return model


def _own_fields(cls: type, config: dict) -> dict:
    """The sizes in a stranger's config: no field by which transformers picks or fetches code."""
    import transformers

    general = set(signature(transformers.PretrainedConfig).parameters)
    fields = set(signature(cls).parameters) - general - {'text_config'} | _FIELDS
    own = {name: value for name, value in config.items() if name in fields}
    for name, value in own.items():
        for size in value if isinstance(value, list) else [value]:
            if type(size) is int and size:  # no machine holds more
                positive(size, name, int, most=1000 if name == 'num_hidden_layers' else 10**5)
    if 'vision_config' in own:
        own['vision_config'] = _own_fields(transformers.CLIPVisionConfig, own['vision_config'])
    return own


def _image_facts(path: Path) -> dict:
    """What a folder's settings say about its images, as fields of ``Facts``; {} if nothing."""
    if not path.is_file():
        return {}
    data = read_json(path, 'preprocessor of the model', kind=dict)
    factor = data.get('rescale_factor', 1 / 255)
    if data.get('do_rescale') is False:
        factor = 1
    with inside(str(path)):
        factor = positive(factor, 'rescale_factor', float)
    if data.get('do_normalize') is False:
        return {}
    return dict(mean=data.get('image_mean'), std=data.get('image_std'), scale=1 / factor)


def load(model: nn.Module, state: dict[str, Tensor], file: str | Path) -> nn.Module:
    """Load weights with the names of transformers' files."""
    loaded = _loaded(type(model), model.config, state, file)
    with blame(f'{file} does not fit this {kind(model)}'):
        model.load_state_dict(loaded.state_dict())
    return model


def _loaded(cls: type, config, state: dict[str, Tensor], file: str | Path) -> nn.Module:
    """The model of a config in float32, by transformers, which knows the names in its files."""
    dtype = {'dtype' if hasattr(config, 'dtype') else 'torch_dtype': torch.float32}
    with blame(f'{file} does not fit {cls.__name__}'), quiet(), _no_progress():
        loaded, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            **dtype,
        )
    unread = [name for name in info['unexpected_keys'] if not _UNUSED.search(name)]
    if _CLASSES.get(cls.__name__, _Class()).head is None:
        unread = [name for name in unread if not name.startswith(_HEADS)]
    lists = {
        'are missing': info['missing_keys'],
        'have another size': [name for name, *_ in info['mismatched_keys']],
        'have no place': unread,
    }
    for what, names in lists.items():
        wrong = sorted(name for name in names if not _UNUSED.search(name))
        if wrong:
            raise UserError(
                f'{file} does not fit {cls.__name__}: {len(wrong)} weights {what}, the first '
                f'{wrong[0]}'
            )
    return loaded


@contextmanager
def _no_progress() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _weights_file(folder: Path) -> Path:
    names = ('model.safetensors', 'pytorch_model.bin')
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f'{folder} has no {" and no ".join(names)}; give the weights as checkpoint')


def _blocks(base: nn.Module) -> list[nn.Module]:
    owner = getattr(base, 'encoder', base)
    return list(owner.layers if hasattr(owner, 'layers') else owner.layer)


def _network(base: nn.Module) -> Iterator[tuple[str, object, bool, str]]:
    """Parts of the network that change its output."""
    config = base.config
    depth = len(_blocks(base))
    yield 'number of layers', depth, depth > 0, 'one or more'
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
