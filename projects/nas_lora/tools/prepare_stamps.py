"""Write images of Tux Paint's stamps on photographs, with masks: free data for segmentation.

The stamps (Debian's package tuxpaint-stamps-default, GPL-2) are images with an alpha channel, which
is the object's mask. The photographs come with scikit-image (BSD-3). No object and no photograph is
in more than one of the parts train, val and test.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import project_path  # noqa: F401
from nas_lora.images.folders import written_whole
from nas_lora.images.made_of import write_record
from nas_lora.images.photographs import photographs
from nas_lora.images.stamps import PARTS, made_of, parts_of, stamps_in, write_part

from tas_lora import UserError, cli
from tas_lora.checks import natural, positive
from tas_lora.provenance import sha256

PACKAGE = 'tuxpaint-stamps-default'


def unpack(deb: Path | None, folder: Path) -> str:
    """Unpack the package into a folder, from ``deb`` or downloaded from Debian.

    Returns:
        Its name and SHA-256.
    """
    if deb is None:
        cli.say(f'fetching {PACKAGE}, 161 MB')
        _run(['apt-get', 'download', PACKAGE], folder)
        deb = next(folder.glob('*.deb'))
    if not deb.is_file():
        raise UserError(f'--deb {deb}: there is no such file')
    _run(['dpkg-deb', '-x', str(deb.resolve()), 'unpacked'], folder)
    return f'{PACKAGE}, SHA-256 {sha256(deb)}'


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, 'stderr', None) or str(error)  # OSError: the command does not exist
        raise UserError(
            f'{" ".join(command)} failed: {reason.strip()}; get {PACKAGE} from Debian by other '
            'means and give it by --deb FILE, or its pictures by --folder DIR'
        ) from error


def main():
    """Download, split, composite and record the sources."""
    args = _parse_args()
    for name in ('size', *PARTS):
        positive(vars(args)[name], f'--{name}', int)
    natural(args.seed, '--seed')
    with written_whole(args.out) as out, tempfile.TemporaryDirectory() as temporary:
        source = args.folder or Path(temporary)
        sources = ['scikit-image']
        if args.folder is None:
            sources.append(unpack(args.deb, source))
        if not source.is_dir():
            raise UserError(f'--folder {source}: there is no such folder')
        parts = parts_of(stamps_in(source, args.leave_out), photographs(), args.seed)
        for i, part in enumerate(parts):
            write_part(part, out / part.name, vars(args)[part.name], args.size, (args.seed, i))
        split = 'no kind of stamps and no photograph is in two parts'
        facts = dict(seed=args.seed, size=args.size, leave_out=args.leave_out)
        write_record(out, args.out, facts | dict(sources=sources, split=split), made_of(parts))


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('data/stamps'), help='folder to write to')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--deb', type=Path, help=f'the package {PACKAGE}; else it is fetched')
    source.add_argument('--folder', type=Path, help='a folder of stamps, or the unpacked package')
    parser.add_argument('--size', type=int, default=64, help='pixels')
    for part, count in zip(PARTS, (2000, 200, 400), strict=True):
        parser.add_argument(f'--{part}', type=int, default=count, help=f'pictures to {part} on')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--leave-out',
        nargs='*',
        default=['symbols'],
        help='classes not to use; symbols are letters and coins, many times the same shape',
    )
    return parser.parse_args()


if __name__ == '__main__':
    cli.run(main)
