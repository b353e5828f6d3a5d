"""Inputs of the analysis tools: checkpoints, images and subnets from the command line."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ..checks import natural, of_part, positive, usable_device, usable_folder
from ..config import check_data, load_config
from ..datasets.agreement import check_same_classes, check_sources, trained_classes
from ..datasets.held_out_images import HeldOutImages
from ..datasets.replay import readable
from ..errors import UserError, blame
from ..models import SupernetClassifier, load_supernet
from ..models.safe_load import read_checkpoint
from ..packaged import command
from ..provenance import versions, weights_sha256
from ..structures import SearchSpace, Subnet
from .experts import require_experts

LOADERS = ('heldout', 'val', 'test')
_READ = ('space', 'heldout_dataloader')  # variables of a config that the tools read


@dataclass(frozen=True)
class Net:
    """A checkpoint to analyse and its training config.

    Attributes:
        name: Name in figures.
        config: Path of the config.
        checkpoint: Path of the weights.
        sha256: SHA-256 of the weights.

    Raises:
        UserError: If ``checkpoint`` is not a file.
    """

    name: str
    config: str
    checkpoint: str
    sha256: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, 'sha256', weights_sha256(self.checkpoint))

    @classmethod
    def parse(cls, text: str, option: str) -> 'Net':
        """Parse ``NAME=CONFIG:CHECKPOINT``, an argument of ``option``."""
        name, equals, files = text.partition('=')
        config, colon, checkpoint = files.partition(':')
        if not (name and equals and config and colon and checkpoint):
            raise UserError(f'{option} takes NAME=CONFIG:CHECKPOINT, got {text!r}')
        return cls(name, config, checkpoint)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all analysis tools have after CONFIG."""
    parser.add_argument('checkpoint', help='checkpoint trained with CONFIG')
    parser.add_argument('--out', required=True, help='folder for JSON and PNG')
    parser.add_argument('--seed', type=int, default=0, help='seed of subnets and images')
    parser.add_argument('--device', default=get_device(), help='device to compute on')
    parser.add_argument(
        '--beside',
        nargs='+',
        default=[],
        metavar='NAME=CONFIG:CHECKPOINT',
        help='more checkpoints to analyse in the same way',
    )


def add_images(parser: argparse.ArgumentParser, count: int | None) -> None:
    """Add the choice of images; ``count`` is the default number, None means all."""
    parser.add_argument(
        '--data',
        choices=LOADERS,
        default='heldout',
        help='dataloader of CONFIG to use: heldout_, val_ or test_dataloader (default: heldout)',
    )
    parser.add_argument(
        '--images', type=int, default=count, help=f'number of images (default: {count or "all"})'
    )


def add_subnets(parser: argparse.ArgumentParser, count: int) -> None:
    """Add the choice of subnets; ``count`` is the default number of draws."""
    parser.add_argument(
        '--subnets',
        nargs='+',
        default=[],
        help="'smallest', 'largest', or JSON files written by a search (default: random ones)",
    )
    parser.add_argument(
        '--count', type=int, default=count, help=f'number of random subnets (default: {count})'
    )


def nets_of(args: argparse.Namespace) -> list[Net]:
    """Return CONFIG and CHECKPOINT, named after the config, then those of ``--beside``.

    Raises:
        UserError: If two have the same name, a file does not exist, or the folder is a file.
    """
    natural(args.seed, '--seed')
    usable_device(args.device, '--device')
    usable_folder(args.out, '--out')
    first = Net(Path(args.config).stem, args.config, args.checkpoint)
    nets = [first, *(Net.parse(text, '--beside') for text in args.beside)]
    check_names([net.name for net in nets], '--beside')
    for net in nets:
        if '/' in net.name:
            raise UserError(f'--beside: {net.name!r} becomes a file name; leave out the /')
    return nets


def origin(args: argparse.Namespace, nets: Sequence[Net]) -> dict:
    """Return the origin of a result: command, seed, checkpoints and versions."""
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
        raise UserError(f'{option}: two are called {twice[0]!r}; give each its own name')


def config_of(net: Net, args: argparse.Namespace) -> Config:
    """Load its config; ``--cfg-options`` apply to CONFIG, not to those of ``--beside``."""
    options = args.cfg_options if net.config == args.config else None
    return load_config(net.config, options, _READ)


def load(net: Net, args: argparse.Namespace, experts: bool = False) -> SupernetClassifier:
    """Load the model; raises :class:`UserError` if it must have ``experts`` but has none."""
    cfg = config_of(net, args)
    torch.manual_seed(args.seed)  # initialises experts that are not in the checkpoint
    model = load_supernet(cfg, net.checkpoint, args.device)
    if experts:
        require_experts(model, net.name)
    return model


class Images:
    """Random images of a dataloader, without repetition; each iteration yields the same ones.

    Args:
        config: Config of the dataloader.
        count: Number of images; None means all.
        seed: Seed of the draw.
        field: Name of the dataloader in the config, for messages.

    Raises:
        UserError: If it cannot be built, or has fewer images.
    """

    def __init__(self, config: Mapping, count: int | None, seed: int, field: str):
        with of_part(field), blame('cannot be built', ''):
            self.held_out = HeldOutImages(Runner.build_dataloader(readable(config)))
        there = len(self.held_out)
        count = there if count is None else positive(count, '--images', int)
        if count > there:
            raise UserError(f'--images is {count}, but {field} has {there}; ask for fewer')
        rng = np.random.default_rng(seed)
        self.indices = np.sort(rng.choice(there, count, replace=False)).tolist()

    def __iter__(self) -> Iterator[dict]:
        return self.held_out.batches(self.indices)


def images_of(args: argparse.Namespace) -> Images:
    """Return the images of CONFIG that ``--data`` and ``--images`` choose."""
    cfg = load_config(args.config, args.cfg_options, _READ)
    field = f'{args.data}_dataloader'
    if not cfg.get(field):
        there = [name for name in LOADERS if cfg.get(f'{name}_dataloader')]
        raise UserError(f'{args.config} has no {field}; choose by --data from {there}')
    check_data(cfg, (field,))
    check_sources(cfg, (field,))
    images = Images(cfg[field], args.images, args.seed, field)
    trained = trained_classes(read_checkpoint(args.checkpoint))
    check_same_classes('the checkpoint', trained, field, images.held_out.dataset.metainfo)
    return images


def space_of(net: Net, args: argparse.Namespace, model: SupernetClassifier) -> SearchSpace:
    """Return the search space in which a checkpoint was trained."""
    if model.router is not None:
        return model.router.space
    space = config_of(net, args).get('space')
    if space is None:
        raise UserError(f'{net.config} has no space: it is of a single network; use a supernet')
    return SearchSpace.coerce(space)


def subnets_of(args: argparse.Namespace, space: SearchSpace) -> dict[str, Subnet]:
    """Return the subnets named by ``--subnets``, or distinct draws called 0, 1 and so on."""
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
