"""Give a merged encoder to its own library, and to others by the toolkit's export."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from safetensors.torch import save
from torch import Tensor, nn

from tas_lora.atomic_files import write_atomic
from tas_lora.errors import UserError
from tas_lora.export import find_formats, onnx
from tas_lora.export.formats import ROOT, Format
from tas_lora.export.job import export_from_config
from tas_lora.models.pretrained import convert, write_supernet

from ..evaluation import images_of
from ..vits.encoders import ViTEncoder
from .take_away import adapted_part

TOLERANCE = 1e-4  # of the largest output
OWN = 'timm.safetensors'  # weights by timm's names, with what builds the model in the metadata
EXPORT = 'export'  # folder of the toolkit's formats
FEATURES = 'features.onnx'  # the encoder as the decoder sees it


def leave(
    taken: nn.Module, cfg: Config, formats: Sequence[str], out: Path, say: Callable = print
) -> None:
    """Write a merged encoder, with its linear classification head if it has one.

    The network of timm becomes the largest subnet of a supernet, which the toolkit exports and
    compares format by format. Next to it are the weights by timm's names, :data:`OWN`; and for an
    encoder whose output is a map, which those formats lack, :data:`FEATURES` if ONNX is asked for.
    The toolkit's files of such an encoder have the class token as their output. A ``ViTSAM`` is no
    such network: it leaves as :data:`FEATURES` alone.

    Args:
        taken: A merged ``AdaptedModel``.
        cfg: Its config.
        formats: Names of ``tas_lora.export.FORMATS``, or 'all'.
        out: Folder.
        say: Takes a line for each file.

    Raises:
        UserError: If a format cannot hold the encoder, or an output differs by more than
            :data:`TOLERANCE`.
    """
    found, skipped = check_formats(taken, 'merged', formats)
    encoder, names = adapted_part(taken), [each.name for each in found]
    is_timm = _is_timm(encoder)
    if 'onnx' in names and (not is_timm or encoder.out == 'map'):
        say(write_features(encoder, _images(cfg, taken), out / FEATURES))
    if is_timm:
        network = timm_network(taken)
        say(write_own(network, out / OWN))
        with TemporaryDirectory() as folder:
            config, subnet = _supernet(network, cfg, Path(folder))
            forms = [ROOT, *(each for each in found if each != ROOT)]
            file = str(Path(folder, 'supernet.pth'))
            checks = export_from_config(config, file, subnet, out / EXPORT, forms, say=say)
        for line in (*checks, *(f'Skipped: {advice}' for advice in skipped)):
            say(str(line))
        if failed := [check.name for check in checks if not check.held]:
            raise UserError(f'--formats: {", ".join(failed)} not written, for the reason above')


def check_formats(
    model: nn.Module, level: str, formats: Sequence[str]
) -> tuple[list[Format], list[str]]:
    """The formats, and a line for each that 'all' leaves out.

    Raises:
        UserError: If they cannot hold the model's encoder at this level.
    """
    if level == 'fold':
        raise UserError('--formats: a folded cell is no part of a plain network; merge it')
    found, skipped = find_formats(formats)
    encoder, names = adapted_part(model), [each.name for each in found]
    if not _is_timm(encoder) and names != ['onnx']:
        raise UserError(
            f'--formats: a {type(encoder).__name__} that is not of timm leaves as onnx and in '
            f'weights.safetensors, got {" ".join(formats)}'
        )
    return found, skipped


def _is_timm(encoder: nn.Module) -> bool:
    return isinstance(encoder, ViTEncoder) and encoder.library == 'timm'


def timm_network(taken: nn.Module) -> nn.Module:
    """timm's own model with the merged weights, and with the head of a linear classifier."""
    encoder = adapted_part(taken)
    vit, head = deepcopy(encoder.vit), getattr(taken.model, 'head', None)
    if encoder.out == 'mean':
        vit.global_pool = 'avg'
    if isinstance(getattr(head, 'fc', None), nn.Linear):
        vit.head, vit.num_classes = deepcopy(head.fc), head.fc.out_features
    return vit.eval()


def write_own(vit: nn.Module, path: Path) -> str:
    """Write weights by timm's names; the metadata 'timm' hold arguments of ``create_model``."""
    known = dict(
        model_name=vit.pretrained_cfg['architecture'],
        img_size=list(vit.patch_embed.img_size),
        num_classes=vit.num_classes,
        global_pool=vit.global_pool,
        fc_norm=False,
    )
    state = {name: value.contiguous() for name, value in vit.state_dict().items()}
    write_atomic(path, save(state, dict(timm=json.dumps(known))))
    return f'Written {path}: timm.create_model(**{known}).load_state_dict(...)'


@torch.no_grad()
def write_features(encoder: nn.Module, images: Tensor, path: Path) -> str:
    """Write the encoder's last output as ONNX and compare it with ONNX Runtime's.

    Raises:
        UserError: If it differs by more than :data:`TOLERANCE`; the file is removed.
    """
    net = _Last(encoder).eval()
    onnx.save(net, images, path, output='features')
    (found,), expected = onnx.run(path.parent, [images], path.name), net(images)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(f'{path.name} differs by {difference:.1e} of the largest output')
    shape = 'x'.join(map(str, expected.shape[1:]))
    return f'Written {path}: features {shape}, {difference:.1e} of the largest off'


class _Last(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)[-1]


def _supernet(vit: nn.Module, cfg: Config, folder: Path) -> tuple[Config, dict]:
    """Write the supernet whose largest subnet is the network; its config, and that subnet."""
    model, config, _ = convert(vit)
    config['data_preprocessor'] = _preprocessor(cfg)
    write_supernet(folder, 'the merged encoder', model, config)
    # Features have no classes to test, and MMPretrain prepares files for a test only.
    names = ('test_dataloader', 'test_evaluator') if vit.num_classes else ()
    return Config(dict(model=config, **{name: cfg[name] for name in names})), model.subnet.to_dict()


def _preprocessor(cfg: Config) -> dict:
    """That of a classifier, from the model's."""
    own = cfg.model.model.data_preprocessor
    to_rgb = own.get('to_rgb', own.get('bgr_to_rgb', False))
    return dict(mean=own.get('mean'), std=own.get('std'), to_rgb=to_rgb)


def _images(cfg: Config, model: nn.Module) -> Tensor:
    return next(images_of(cfg, model, 'test', 2))
