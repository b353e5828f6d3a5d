"""Measure and check on a GPU what was never measured on one: one command, some ten minutes.

Each part runs in a process of its own and leaves a JSON record in a folder. A part that fails does
not stop the others. Called again, it runs what is missing, on this device and these versions.
"""

import argparse
import os
from pathlib import Path

_DEVICE = argparse.ArgumentParser(add_help=False)
_DEVICE.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='where')
if _DEVICE.parse_known_args()[0].device == 'cpu':  # MMEngine takes a GPU that it sees on import
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

import torch  # noqa: E402

from tas_lora import UserError, cli  # noqa: E402
from tas_lora.checks import positive  # noqa: E402
from tas_lora.gpu_check import PARTS, Setting, run_parts, write_page  # noqa: E402
from tas_lora.gpu_check.runs import MACHINE  # noqa: E402


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, parents=[_DEVICE])
    parser.add_argument(
        '--quick', action='store_true', help='tiny sizes: shows that all parts run, no more'
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, help='these alone')
    parser.add_argument('--again', action='store_true', help='also what has a record already')
    parser.add_argument('--minutes', type=float, default=9, help='when to stop')
    parser.add_argument('--fashion', help='folder with the files of Fashion-MNIST, zipped or not')
    parser.add_argument('--out', default='work_dirs/gpu', help='folder of the records')
    parser.add_argument('--page', help='Markdown page to write, by default gpu.md in --out')
    args = parser.parse_args()
    positive(args.minutes, '--minutes', float)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: torch finds no GPU; --device cpu --quick tries all parts')
    if args.page:
        cli.check_output(args.page)
    return args


def main():
    """Run the parts, write the page, tell what failed."""
    args = parse_args()
    folder = Path(args.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    names = [MACHINE, *(args.parts or PARTS)]
    parts = {name: PARTS[name] for name in PARTS if name in names}
    if args.again:
        for name in parts:
            (folder / f'{name}.json').unlink(missing_ok=True)
    fashion = args.fashion and str(Path(args.fashion).resolve())
    setting = Setting(args.device, args.quick, str(folder), fashion)
    page = args.page or folder / 'gpu.md'
    records = run_parts(
        parts,
        setting,
        args.minutes,
        tell=lambda text: cli.say(text, flush=True),
        keep=lambda records: write_page(page, parts, records),
    )
    cli.say(f'page: {page}')
    failed = [name for name, r in records.items() if r['status'] not in ('done', 'skipped')]
    if failed:
        cli.say(f'not done: {", ".join(failed)}; logs are in {folder}')
        raise SystemExit(1)


if __name__ == '__main__':
    cli.run(main)
