"""Files of tools/order.py: weights, config, measurements, space."""

import argparse
import json
import shlex
from collections.abc import Mapping
from functools import partial
from inspect import signature
from io import BytesIO
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import LOOPS

from ..analysis.output import plain, rendered
from ..atomic_files import seal, write_together
from ..errors import UserError
from ..models import SupernetClassifier
from ..packaged import command
from ..provenance import versions
from ..structures import SearchSpace
from .drawing import draw_damage

_LOOPS = ('train_cfg', 'val_cfg', 'test_cfg')


def write(
    cfg: Config,
    args: argparse.Namespace,
    weights: Mapping,
    model: SupernetClassifier,
    found: Mapping,
    space: Mapping,
) -> list[Path]:
    """Write all files together, so that none is there without the others; returns the paths."""
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    made_by = dict(
        command=command(),
        **{name: getattr(args, name) for name in ('seed', 'score', 'batches', 'config')},
        **{name: weights[name] for name in ('checkpoint', 'sha256')},
        versions=versions(),
    )
    measure = 'KL divergence' if 'agreement' in found['smallest'] else '1 - cosine'
    draw = partial(draw_damage, found['before'], found['after'], measure)
    contents = rendered(folder, 'damage', made_by, found, dict(damage=draw))
    record = dict(made_by=plain(made_by)) | dict(space)
    contents[folder / 'space.json'] = json.dumps(record, indent=2)
    contents[folder / 'ordered.pth'] = checkpoint_of(model, weights, made_by)
    contents[folder / 'ordered.py'] = config_text(cfg, model, space['space'])
    write_together(contents)
    return list(contents)


def checkpoint_of(model: SupernetClassifier, weights: Mapping, made_by: Mapping) -> bytes:
    """A sealed checkpoint of ours."""
    meta = dict(ordered_by=plain(made_by), block_order=list(model.backbone.block_order))
    if weights['classes']:
        meta['dataset_meta'] = dict(weights['classes'])
    content, state = BytesIO(), {name: value.cpu() for name, value in model.state_dict().items()}
    torch.save(dict(meta=meta, state_dict=state), content)
    return seal(content.getvalue())


def config_text(cfg: Config, model: SupernetClassifier, space: Mapping) -> str:
    """The config of the ordered supernet, whole; the loops that have a space get the proposed one.

    The weights are those in the folder of the config, wherever it is moved.
    """
    whole = cfg.copy()
    whole.model.backbone.update(block_order=list(model.backbone.block_order), init_cfg=None)
    whole.update(load_from='{{ fileDirname }}/ordered.pth', space=dict(space))
    for name in _LOOPS:
        if _takes_space(cfg.get(name)):
            whole[name].space = dict(space)
    title = '# A supernet in order, and the space proposed for it; load_from has its weights.'
    return f'{title}\n# {json.dumps(shlex.join(command()))[1:-1]}\n\n{whole.pretty_text}'


def check_out(cfg: Config, args: argparse.Namespace) -> None:
    """Raise :class:`UserError` if a file of the output is one that is read."""
    read = {Path(x).resolve() for x in (cfg.filename, args.checkpoint, cfg.get('load_from')) if x}
    for name in ('ordered.py', 'ordered.pth'):
        path = Path(args.out, name)
        if path.resolve() in read:
            raise UserError(f'{path} is read, and --out would replace it; give another folder')


def _takes_space(config: Mapping | None) -> bool:
    kind = (config or {}).get('type')
    loop = LOOPS.get(kind) if isinstance(kind, str) else kind
    return loop is not None and 'space' in signature(loop).parameters


def as_dict(space: SearchSpace) -> dict:
    """The fields of a space, for JSON and configs."""
    return {name: list(getattr(space, name)) for name in SearchSpace.field_names()}
