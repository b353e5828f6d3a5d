"""From a pretrained vision transformer of another library to the supernet that it is the top of."""

from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ...checks import inside, positive
from ...errors import UserError, blame
from ..checkpoint import adapt_state_dict
from ..classifiers import SupernetClassifier
from ..safe_load import read_state_dict
from .original import MOST_PIXELS, Original

# Reader of each library, by the first name of its modules; and by the first word of a source.
_READERS = dict(timm='from_timm', transformers='from_transformers', mmpretrain='from_mmpretrain')
_SOURCES = dict(timm='from_timm', hf='from_transformers', mmpretrain='from_mmpretrain')
_NEEDED = dict(timm='timm', hf='transformers', mmpretrain='mmpretrain')
_TOLERANCE = 1e-5  # of the largest output, in float32


def supernet_from(
    source: nn.Module | str,
    *,
    checkpoint: str | Path | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
) -> SupernetClassifier:
    """Make a pretrained vision transformer the largest subnet of a supernet.

    It is compared with the original on random images: the supernet computes what it does. A file
    of weights alone tells neither heads, epsilon nor activation: they are those of ``source``, and
    with a wrong one both would be wrong.

    Args:
        source: A model of timm (``VisionTransformer``), of transformers (ViT, DeiT, DINOv2 and
            CLIP, with or without a classifier) or of MMPretrain (``VisionTransformer``, also in an
            ``ImageClassifier``); or 'timm:NAME', 'hf:FOLDER' or 'mmpretrain:NAME'. It is not
            changed.
        checkpoint: File with the weights of this model; by default a model's own, those in the
            folder, or those that the library downloads.
        img_size: Side of the images. For another than the original's, positions are resized as
            its library does.
        num_classes: Classes of the head. It is new if the original has another number of them;
            None keeps what the original has. Without a head the model has none, either, and
            ``model.backbone(images)[-1]`` is its feature: of ViT and DeiT the normalised class
            token, not the ``pooler_output`` of transformers; of DINOv2 in transformers (B, 2 C),
            the class token and the mean of the patches.

    Returns:
        The supernet on the CPU in evaluation mode, in float32; on the meta device, without values,
        if the source is there.

    Raises:
        UserError: If a part of the model is not supported, or a file is missing or does not fit.
    """
    return convert(source, checkpoint, img_size, num_classes)[0]


def convert(
    source: nn.Module | str,
    checkpoint: str | Path | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
) -> tuple[SupernetClassifier, dict, float | None]:
    """The supernet of :func:`supernet_from`, its config, and how far it is from the original.

    The difference is that of the outputs for two random images, divided by the largest output;
    None on the meta device.
    """
    original = read_original(source, checkpoint, img_size)
    model, found = _built(original)
    config = _with_head(original.config, num_classes)
    if config == original.config:
        return model, config, found
    other = _supernet(config, _on_meta(model))
    other.backbone.load_state_dict(model.backbone.state_dict())
    return other, config, found


def model_config_of(
    source: nn.Module, *, img_size: int | None = None, num_classes: int | None = None
) -> dict:
    """Config of the supernet whose largest subnet is a pretrained vision transformer.

    Arguments and errors as in :func:`supernet_from`.
    """
    return _with_head(read_original(source, None, img_size).config, num_classes)


def read_original(
    source: nn.Module | str, checkpoint: str | Path | None, img_size: int | None
) -> Original:
    """Read a model into float32 on the CPU, or on the meta device; the source stays as it is."""
    if img_size is not None:
        positive(img_size, 'img_size', int, most=MOST_PIXELS)
    opened, reader = _opened(source, checkpoint, img_size)
    opened.eval()
    if not _on_meta(opened):
        opened = opened.float().cpu()
    with torch.no_grad():
        return reader.read(opened, img_size)


def open_model(
    source: str, checkpoint: str | Path | None = None, img_size: int | None = None
) -> nn.Module:
    """Build a model of another library, with its weights.

    Args:
        source: 'timm:NAME', 'hf:FOLDER' or 'mmpretrain:NAME'.
        checkpoint: File with its weights; by default those in the folder, or those that the
            library downloads.
        img_size: Side of the images; positions are resized. Only timm builds for another size.

    Raises:
        UserError: If there is no such model, a part of it is not supported, or a file is missing
            or does not fit.
    """
    library, _, name = source.partition(':')
    if library not in _SOURCES or not name:
        raise UserError(
            f"must be a model, 'timm:NAME', 'hf:FOLDER' or 'mmpretrain:NAME', got {source!r}",
            'source',
        )
    with blame(f'{_NEEDED[library]} cannot be imported; install it with pip'):
        import_module(_NEEDED[library])
    size = (img_size,) if library == 'timm' else ()
    return _reader(_SOURCES[library]).open_model(name, checkpoint, *size)


def _opened(
    source: nn.Module | str, checkpoint: str | Path | None, img_size: int | None
) -> tuple[nn.Module, ModuleType]:
    """A model that may be changed, and the reader of its library."""
    if isinstance(source, str):
        return open_model(source, checkpoint, img_size), _reader(_SOURCES[source.partition(':')[0]])
    library = type(source).__module__.partition('.')[0]
    if library not in _READERS or not isinstance(source, nn.Module):
        raise UserError(
            f'must be a model of timm, transformers or MMPretrain, got a {type(source).__name__} '
            f'of {library}',
            'source',
        )
    with blame('the model cannot be copied; remove what was registered on it (weight_norm, ...)'):
        reader, model = _reader(_READERS[library]), deepcopy(source)
    if checkpoint is not None:
        if _on_meta(model):
            raise UserError('has no values: build it outside of torch.device("meta")', 'source')
        model = reader.load(model.float(), read_state_dict(checkpoint), checkpoint)
    return model, reader


def _reader(name: str) -> ModuleType:
    return import_module(f'.{name}', __package__)


def _built(original: Original) -> tuple[SupernetClassifier, float | None]:
    """The supernet with the original's weights and head, and its difference from it."""
    on_meta = any(value.is_meta for value in original.weights.values())
    model, weights = _supernet(original.config, on_meta), dict(original.weights)
    with inside('the parts of the original (checkpoint) do not fit its sizes (config)'):
        adapt_state_dict(weights, model.state_dict())
    if on_meta:
        return model, None
    wrong = sorted(name for name, value in weights.items() if not value.isfinite().all())
    if wrong:
        raise UserError(f'the original has weights that are infinite or NaN, such as {wrong[0]}')
    model.load_state_dict(weights)
    found = _difference(model, original)
    if not found <= _TOLERANCE:
        raise UserError(
            f'the supernet differs from the original by {found:.1e} of its largest output, more '
            f'than {_TOLERANCE:.0e}: a part was changed after the model was built, or this release '
            'of its library has another forward; use the class as a recent release has it'
        )
    return model, found


def _supernet(config: dict, on_meta: bool) -> SupernetClassifier:
    with (
        torch.device('meta' if on_meta else 'cpu'),
        DefaultScope.overwrite_default_scope('mmpretrain'),
    ):
        return MODELS.build(deepcopy(config)).eval()  # a build adds to its config


@torch.no_grad()
def _difference(model: SupernetClassifier, original: Original) -> float:
    """Largest difference of features and logits for two random images, relative to the largest.

    Features are compared also because a head that is new, such as one of zeros, would hide them.
    """
    spec = model.backbone.image_spec
    shape = (2, spec['in_channels'], spec['img_size'], spec['img_size'])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu')
    features = []
    if original.head is not None:
        hook = original.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    with blame(f'the original cannot run on images of {spec["img_size"]} pixels'):
        output = original.output(images)
    pairs = [(model.backbone(images)[-1], (features or [output])[0])]
    if original.head is not None:
        hook.remove()
        pairs.append((model(images, mode='tensor'), output))
    return max(_relative(found, expected) for found, expected in pairs)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _with_head(config: dict, num_classes: int | None) -> dict:
    """The config with a head for as many classes, by default its own."""
    if num_classes is None:
        return config
    positive(num_classes, 'num_classes', int, most=10**6)
    own = config.get('head', dict(type='tas_lora.ElasticClsHead'))
    return config | dict(head=own | dict(num_classes=num_classes))


def _on_meta(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())
