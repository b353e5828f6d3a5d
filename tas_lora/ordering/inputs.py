"""Inputs of tools/order.py: the supernet and its images, from a config and the command line."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ..analysis.subjects import Images
from ..datasets.agreement import check_same_classes, trained_classes
from ..datasets.replay import check_readable, readable, seed_everything
from ..errors import UserError, blame
from ..models import SupernetClassifier, load_supernet
from ..models.checkpoint import pretrained_file
from ..models.safe_load import read_checkpoint
from ..provenance import sha256
from .couplings import couplings
from .outputs import labels_of
from .scores import ChannelScore


def read_limits(texts: Sequence[str], form: str = 'COST=SHARE, such as macs=0.5') -> dict:
    """Parse ``COST=NUMBER`` arguments; ``form`` says in a message what they look like."""
    limits = {}
    for text in texts:
        name, _, share = text.partition('=')
        if name in limits:
            raise UserError(f'--limit {name} is given twice; give it once')
        try:
            limits[name] = float(share)
        except ValueError:
            raise UserError(f'--limit takes {form}, got {text!r}') from None
    return limits


def check_multiple(text: str) -> None:
    """Raise :class:`UserError` unless it is 'auto' or a positive integer."""
    if text != 'auto' and not (text.isdecimal() and 0 < int(text) <= 4096):
        raise UserError(f"--multiple must be 'auto' or an integer from 1 to 4096, got {text!r}")


def load(
    cfg: Config, args: argparse.Namespace, score: ChannelScore
) -> tuple[SupernetClassifier, dict]:
    """Load the supernet that is to be ordered, and describe where its weights are from.

    Raises:
        UserError: If there are no weights, they do not fit, the model has experts, or the score
            needs a head and the weights have none.
    """
    own = pretrained_file((cfg.model.get('backbone') or {}).get('init_cfg'))
    file = args.checkpoint or cfg.get('load_from')
    if not (file or own):
        raise UserError(
            f'{args.config} names no weights (load_from, or init_cfg of the backbone); give a '
            'CHECKPOINT: the order of random weights means nothing'
        )
    if score.needs_labels and not file:
        raise UserError(
            f'{type(score).__name__} needs a trained head, and init_cfg holds a backbone alone; '
            'give a CHECKPOINT with a head, or use --score tas_lora.OutputScore'
        )
    torch.manual_seed(args.seed)  # a head that no file holds
    model = load_supernet(cfg, file, args.device)
    couplings(model)  # refuses experts
    if not file:
        model.backbone.init_weights()
    file = str(file or own)
    local = Path(file).is_file()
    return model, dict(
        checkpoint=file,
        sha256=sha256(file) if local else None,
        classes=trained_classes(read_checkpoint(file)) if local else {},
        has_head=bool(args.checkpoint or cfg.get('load_from')),
    )


def linear_widths(model: SupernetClassifier) -> list[tuple[int, int]]:
    """Input and output widths of the linear layers of a block."""
    arch = model.backbone.arch
    width, hidden = arch.embed_dim, arch.hidden_dims[0]
    inner = arch.num_heads[0] * model.backbone.image_spec['head_dim']
    return [(width, inner), (inner, width), (width, hidden), (hidden, width)]


def scored_batches(
    model: SupernetClassifier, cfg: Config, args: argparse.Namespace, score: ChannelScore
) -> tuple[list[dict], list[str]]:
    """The first batches of the training pipeline, and the classes of which they have no image.

    Raises:
        UserError: If there are fewer, or, for a score that needs labels, too few images for the
            classes.
    """
    seed_everything(args.seed)
    with blame('train_dataloader cannot be built'):
        loader = Runner.build_dataloader(readable(cfg.train_dataloader), seed=args.seed)
    found = []
    for _, data in zip(range(args.batches), loader, strict=False):
        check_readable(data)
        found.append(model.data_preprocessor(data, training=False))
    if len(found) < args.batches:
        raise UserError(
            f'--batches is {args.batches}, but train_dataloader has {len(found)} of '
            f'{loader.batch_size} images; ask for fewer, or lower its batch_size'
        )
    return found, _unseen(model, loader, found, score) if score.needs_labels else []


def _unseen(model, loader, batches: list[dict], score: ChannelScore) -> list[str]:
    """Names of the classes without an image; none if images have several labels, or no label."""
    labels = labels_of(model, batches)
    if labels is None:
        return []
    count, classes = len(labels), model.head.num_classes
    names = dict(enumerate(getattr(loader.dataset, 'metainfo', {}).get('classes') or ()))
    unseen = [str(names.get(i, i)) for i in sorted(set(range(classes)) - set(labels.tolist()))]
    if count < classes or len(unseen) > classes / 2:  # that many random images show 63 %
        wanted = min(len(loader), max(-(-classes * len(batches) // count), 2 * len(batches)))
        more = f'give --batches {wanted}, or ' if wanted > len(batches) else ''
        raise UserError(
            f'--batches {len(batches)} gives {count} images for {classes} classes, none of '
            f'{shortened(unseen)}, too few for {type(score).__name__}; {more}use --score '
            'tas_lora.OutputScore, which needs no labels'
        )
    return unseen


def shortened(names: Sequence[str]) -> str:
    """The first three names."""
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def held_out_batches(
    model: SupernetClassifier, cfg: Config, args: argparse.Namespace, classes: Mapping
) -> list[dict]:
    """As many random validation images as ``--batches`` hold, preprocessed.

    Raises:
        UserError: If there is no data set, or it has other ``classes`` than the checkpoint records.
    """
    if not cfg.get('val_dataloader'):
        raise UserError(
            f'{args.config} has no val_dataloader; damage is measured on images that no score has '
            'seen: add one'
        )
    images = Images(cfg.val_dataloader, None, args.seed, 'val_dataloader')
    metainfo = getattr(images.held_out.dataset, 'metainfo', {})
    check_same_classes('the checkpoint', classes, 'val_dataloader', metainfo)
    count = min(len(images.indices), args.batches * images.held_out.batch_size)
    drawn = np.random.default_rng(args.seed).choice(len(images.indices), count, replace=False)
    images.indices = np.sort(drawn).tolist()
    return [model.data_preprocessor(batch, training=False) for batch in images]
