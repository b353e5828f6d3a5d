"""What the analysis tools are asked to look at: checkpoints, images, subnets."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from .. import apis
from ..checks import natural, of_part, positive
from ..config import check_data, load_config
from ..datasets.held_out_images import HeldOutImages
from ..errors import UserError, blame
from ..models import SupernetClassifier
from ..packaged import command
from ..provenance import versions, weights_sha256
from ..structures import SearchSpace, Subnet
from .experts import require_experts

LOADERS = ('heldout', 'val', 'test')


@dataclass(frozen=True)
class Net:
    """A checkpoint to look at, with the config it was trained by.

    Attributes:
        name: What figures call it.
        config: Path of the config.
        checkpoint: Path of the weights.
        sha256: That of the weights.

    Raises:
        UserError: If the weights are not a file here.
    """

    name: str
    config: str
    checkpoint: str
    sha256: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, 'sha256', weights_sha256(self.checkpoint))

    @classmethod
    def parse(cls, text: str, option: str) -> 'Net':
        """From ``NAME=CONFIG:CHECKPOINT``, as ``option`` was given it."""
        name, equals, files = text.partition('=')
        config, colon, checkpoint = files.partition(':')
        if not (name and equals and config and colon and checkpoint):
            raise UserError(f'{option} takes NAME=CONFIG:CHECKPOINT, got {text!r}')
        return cls(name, config, checkpoint)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what each analysis tool takes after CONFIG."""
    parser.add_argument('checkpoint', help='checkpoint that was trained by CONFIG')
    parser.add_argument('--out', required=True, help='folder for JSON and PNG')
    parser.add_argument('--seed', type=int, default=0, help='seed of subnets and images')
    parser.add_argument('--device', default=get_device(), help='where to compute')
    parser.add_argument(
        '--beside',
        nargs='+',
        default=[],
        metavar='NAME=CONFIG:CHECKPOINT',
        help='other checkpoints to look at in the same way',
    )


def add_images(parser: argparse.ArgumentParser, count: int | None) -> None:
    """Add the choice of images; ``count`` is the default number, None for all."""
    parser.add_argument(
        '--data',
        choices=LOADERS,
        default='heldout',
        help='images of CONFIG: of its heldout_dataloader (default), val_ or test_dataloader',
    )
    parser.add_argument(
        '--images', type=int, default=count, help=f'how many (default: {count or "all"})'
    )


def add_subnets(parser: argparse.ArgumentParser, count: int) -> None:
    """Add the choice of subnets; ``count`` is the default number of draws."""
    parser.add_argument(
        '--subnets',
        nargs='+',
        default=[],
        help="'smallest', 'largest', or JSON files as the search writes (default: draws)",
    )
    parser.add_argument(
        '--count', type=int, default=count, help=f'subnets to draw (default: {count})'
    )


def nets_of(args: argparse.Namespace) -> list[Net]:
    """CONFIG and CHECKPOINT, named as the config, then those of ``--beside``.

    Raises:
        UserError: If two have one name, or a file is not there, or the folder is a file.
    """
    natural(args.seed, '--seed')
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UserError(f'--out {args.out} is a file; give a folder')
    first = Net(Path(args.config).stem, args.config, args.checkpoint)
    nets = [first, *(Net.parse(text, '--beside') for text in args.beside)]
    check_names([net.name for net in nets], '--beside')
    for net in nets:
        if '/' in net.name:
            raise UserError(f'--beside: {net.name!r} is to name files; leave out the /')
    return nets


def origin(args: argparse.Namespace, nets: Sequence[Net]) -> dict:
    """By what a result was made: command, seed, checkpoints and versions."""
    return dict(
        command=command(),
        seed=args.seed,
        checkpoints={
            net.name: dict(config=net.config, checkpoint=net.checkpoint, sha256=net.sha256)
            for net in nets
        },
        versions=versions(),
    )


def check_names(names: Sequence[str], option: str) -> None:
    """Refuse a name that is given twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f'{option}: two are called {twice[0]!r}; give each another name')


def config_of(net: Net, args: argparse.Namespace) -> Config:
    """Its config; ``--cfg-options`` are for CONFIG, not for those of ``--beside``."""
    return load_config(net.config, args.cfg_options if net.config == args.config else None)


def load(net: Net, args: argparse.Namespace, experts: bool = False) -> SupernetClassifier:
    """The model of a checkpoint; raises :class:`UserError` if it must have experts and has none."""
    cfg = config_of(net, args)
    torch.manual_seed(args.seed)  # by which experts start that the checkpoint does not have
    model = apis.load_supernet(cfg, net.checkpoint, args.device)
    if experts:
        require_experts(model, net.name)
    return model


def loader_name(cfg: Config, data: str, config: str) -> str:
    """Field of a config that holds the dataloader of ``data``, out of ``LOADERS``."""
    field = f'{data}_dataloader'
    if not cfg.get(field):
        there = [name for name in LOADERS if cfg.get(f'{name}_dataloader')]
        raise UserError(f'{config} has no {field}; choose by --data from {there}')
    return field


class Images:
    """Some images of a dataloader, drawn without repetition; each iteration gives the same ones.

    Args:
        config: Of the dataloader.
        count: How many, None for all.
        seed: Of the draw.
        field: Its place in the config, for messages.

    Raises:
        UserError: If it cannot be built, or has fewer images.
    """

    def __init__(self, config: Mapping, count: int | None, seed: int, field: str):
        with of_part(field), blame('cannot be built', ''):
            self.held_out = HeldOutImages(Runner.build_dataloader(dict(config)))
        there = len(self.held_out)
        count = there if count is None else positive(count, '--images', int)
        if count > there:
            raise UserError(f'--images is {count}, but {field} has {there}; ask for fewer')
        rng = np.random.default_rng(seed)
        self.indices = np.sort(rng.choice(there, count, replace=False)).tolist()

    def __iter__(self) -> Iterator[dict]:
        return self.held_out.batches(self.indices)


def images_of(args: argparse.Namespace) -> Images:
    """The images of CONFIG that ``--data`` and ``--images`` choose."""
    cfg = load_config(args.config, args.cfg_options)
    field = loader_name(cfg, args.data, args.config)
    check_data(cfg, (field,))
    return Images(cfg[field], args.images, args.seed, field)


def space_of(net: Net, args: argparse.Namespace, model: SupernetClassifier) -> SearchSpace:
    """The space that a checkpoint was trained in."""
    if model.router is not None:
        return model.router.space
    space = config_of(net, args).get('space')
    if space is None:
        raise UserError(
            f'{net.config} has no space, it is that of one network; give a supernet config'
        )
    return SearchSpace.coerce(space)


def subnets_of(args: argparse.Namespace, space: SearchSpace) -> dict[str, Subnet]:
    """The subnets that were named, or distinct draws called 0, 1 and so on."""
    if not args.subnets:
        count = positive(args.count, '--count', int, most=1000)
        drawn = space.sample_distinct(count, np.random.default_rng(args.seed))
        return {str(i): subnet for i, subnet in enumerate(drawn)}
    check_names([Path(name).stem for name in args.subnets], '--subnets')
    return {
        Path(name).stem: getattr(space, name)()
        if name in ('smallest', 'largest')
        else Subnet.coerce(Path(name))
        for name in args.subnets
    }
