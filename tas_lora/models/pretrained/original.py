"""A network of another library, and its description as the config of a supernet."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real

from torch import Tensor, nn

from ...checks import positive
from ...errors import UserError
from ...structures import ViTStyle, ratio_of
from ..checkpoint import describe

# Classes of activations, by their names in torch, timm, transformers and MMPretrain.
_ACTIVATIONS = {
    'GELU': 'gelu',
    'GELUActivation': 'gelu',
    'GELUTanh': 'gelu_tanh',
    'GELUTanhActivation': 'gelu_tanh',
    'PytorchGELUTanh': 'gelu_tanh',
    'NewGELUActivation': 'gelu_tanh',
    'QuickGELU': 'quick_gelu',
    'QuickGELUActivation': 'quick_gelu',
}
MOST_PIXELS = 4096  # along a side; the comparison runs two such images
_NORMS = ('LayerNorm', 'LayerNormFp32', 'LN')


@dataclass(frozen=True)
class Original:
    """A pretrained network, read by one of the libraries' readers.

    Args:
        config: Of the ``SupernetClassifier`` whose largest subnet it is.
        weights: By the supernet's names.
        output: The library's own forward: images (B, channels, side, side) to logits (B, classes),
            or to a feature if the network has no head.
        head: Its linear layer, whose input is the feature; None if it has no head.
    """

    config: dict
    weights: Mapping[str, Tensor]
    output: Callable[[Tensor], Tensor]
    head: nn.Module | None


@dataclass(frozen=True)
class Facts:
    """What the weights' shapes do not tell about a network; see ``ElasticViT`` and ``ViTStyle``.

    Args:
        num_heads: Of each block.
        img_size: Side of its images in pixels.
        out_type, final_norm, norm_eps, act, prefix_positions: As in the supernet.
        mean, std: Of each channel of the images, in units of ``scale``; None if unknown.
        scale: From the values that the network's library normalises to those from 0 to 255.
        to_rgb: Whether channels that were read as BGR must be swapped.
        head: Config of the supernet's head, without the classes.
    """

    num_heads: Sequence[int]
    img_size: int
    out_type: str
    norm_eps: float
    act: str
    final_norm: str = 'tokens'
    prefix_positions: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: float = 1.0
    to_rgb: bool = True
    head: Mapping = field(default_factory=lambda: dict(type='tas_lora.ElasticClsHead'))


def config_of(facts: Facts, weights: Mapping[str, Tensor], library: str) -> dict:
    """The supernet's config, from facts and the shapes of weights under the supernet's names."""
    sizes = describe(weights)
    pairs = zip(sizes['attention_width'], facts.num_heads, strict=True)
    widths = sorted({width / heads for width, heads in pairs})
    right = len(widths) == 1 and widths[0].is_integer()
    check_parts(library, [('width of the heads', widths, right, 'one whole number in all blocks')])
    config = dict(
        type='tas_lora.SupernetClassifier', backbone=_backbone(facts, weights, sizes, widths[0])
    )
    if 'num_classes' in sizes:
        config['head'] = dict(facts.head, num_classes=sizes['num_classes'])
    if facts.mean is not None and facts.std is not None:
        mean, std = _moments(facts, library)
        if len(mean) == sizes['in_channels']:  # a network may have been built for others
            swap = facts.to_rgb and len(mean) == 3
            config['data_preprocessor'] = dict(mean=mean, std=std, to_rgb=swap)
    return config


def _backbone(facts: Facts, weights: Mapping[str, Tensor], sizes: dict, head_dim: float) -> dict:
    style = ViTStyle(
        num_prefix_tokens=sizes['num_prefix_tokens'],
        prefix_positions=facts.prefix_positions,
        pre_norm='backbone.pre_norm.weight' in weights,
        final_norm=facts.final_norm,
        norm_eps=facts.norm_eps,
        act=facts.act,
        layer_scale=1.0 if 'backbone.blocks.0.attn_scale' in weights else None,
        qkv_bias_by_part=True,
    )
    return dict(
        type='tas_lora.ElasticViT',
        arch=dict(
            embed_dim=sizes['embed_dim'],
            num_heads=list(facts.num_heads),
            mlp_ratio=[ratio_of(width, sizes['embed_dim']) for width in sizes['mlp_width']],
        ),
        img_size=facts.img_size,
        patch_size=sizes['patch_size'],
        in_channels=sizes['in_channels'],
        head_dim=int(head_dim),
        max_relative_position=None,
        style={k: v for k, v in style.to_dict().items() if v != getattr(ViTStyle(), k)},
        out_type=facts.out_type,
    )


def _moments(facts: Facts, library: str) -> list[list[float]]:
    """Mean and deviation of the channels, from 0 to 255."""
    found = dict(mean=facts.mean, std=facts.std)
    for name, values in found.items():
        right = isinstance(values, Sequence) and len(values) == len(facts.mean) > 0
        right = right and all(map(_is_number, values)) and (name == 'mean' or min(values) > 0)
        rule = 'one finite number for each channel, and deviations above 0'
        check_parts(library, [(f'the {name} of its images', values, right, rule)])
    return [[round(facts.scale * value, 6) for value in values] for values in found.values()]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from logging: what goes wrong is reported in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def image_side(img_size: int | None, own: int, conv: nn.Module, library: str) -> int:
    """Side of the images, by default the original's; it must hold whole patches."""
    side, patch = positive(img_size or own, 'img_size', int, most=MOST_PIXELS), conv.kernel_size[0]
    advice = f'a multiple of the patch, {patch}, such as {max(side - side % patch, patch)}'
    check_parts(library, [('img_size', side, side % patch == 0, advice)])
    return side


def check_parts(library: str, parts: Iterable[tuple[str, object, bool, str]]) -> None:
    """Refuse the first part that a supernet does not have.

    Args:
        library: Name of the library.
        parts: Name of a part, its value, whether it is supported, and what is.

    Raises:
        UserError: Naming the part, its value, and what is supported.
    """
    for part, value, is_supported, supported in parts:
        if not is_supported:
            raise UserError(f'{library}: {part} is {value}; a supernet has {supported}')


def kind(module: object) -> str:
    """Name of a part's class."""
    return type(module).__name__


def is_none(module: nn.Module | None) -> bool:
    """Whether there is no such part: None or an identity."""
    return module is None or kind(module) == 'Identity'


def side_of(value, part: str, library: str) -> int:
    """One side of a square, given as a number or a pair."""
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    square = len(sides) == 2 and sides[0] == sides[1] and isinstance(sides[0], int)
    check_parts(library, [(part, sides, square, 'squares')])
    return sides[0]


def check_patches(conv: nn.Module, library: str, part: str = 'patch_embed') -> None:
    """Refuse patches that overlap, leave gaps, or are not cut by one convolution."""
    check_parts(library, [(part, kind(conv), isinstance(conv, nn.Conv2d), 'one convolution')])
    options = dict(
        stride=(tuple(conv.stride), tuple(conv.kernel_size)),
        padding=(tuple(conv.padding), (0, 0)),
        dilation=(tuple(conv.dilation), (1, 1)),
        groups=(conv.groups, 1),
    )
    side_of(tuple(conv.kernel_size), f'{part}.kernel_size', library)
    check_parts(
        library,
        ((f'{part}.{name}', value, value == own, own) for name, (value, own) in options.items()),
    )


def norm_eps(norms: Mapping[str, nn.Module], library: str) -> float:
    """The epsilon of all norms, which must be LayerNorms and agree."""
    for name, norm in norms.items():
        right = isinstance(norm, nn.LayerNorm) and kind(norm) in _NORMS
        check_parts(library, [(name, kind(norm), right, 'LayerNorms')])
        missing = [part for part in ('weight', 'bias') if getattr(norm, part) is None]
        check_parts(library, [(name, f'without {missing}', not missing, 'both')])
    found = sorted({norm.eps for norm in norms.values()})
    check_parts(library, [('eps of the norms', found, len(found) == 1, 'one for all norms')])
    return found[0]


def activation(module: nn.Module, library: str, part: str) -> str:
    """The activation of an MLP, as ``ViTStyle`` names it."""
    name = 'GELUTanh' if getattr(module, 'approximate', None) == 'tanh' else kind(module)
    known = ', '.join(sorted(set(_ACTIVATIONS.values())))
    check_parts(library, [(part, kind(module), name in _ACTIVATIONS, f'one of {known}')])
    return _ACTIVATIONS[name]


def common(values: Iterable[str], part: str, library: str) -> str:
    """The one value that all blocks have."""
    found = sorted(set(values))
    check_parts(library, [(part, ' and '.join(found), len(found) == 1, 'one for all blocks')])
    return found[0]


def head_part(head: nn.Module | None, library: str, part: str) -> tuple[str, str, bool, str]:
    """The check that a classifier is linear, or not there."""
    right = is_none(head) or isinstance(head, nn.Linear)
    return part, kind(head), right, 'a linear layer, or none'
