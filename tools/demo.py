"""All stages on real images, in minutes on two cores: supernet, experts, search, export.

Runs the commands that a user would type, in the current folder, and shows their
progress. Exits with 0 only if every step succeeds. Full logs are in work_dirs/demo.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

LOGS = Path('work_dirs/demo')
SUPERNET = 'work_dirs/digits_supernet/epoch_30.pth'
EXPERTS = 'work_dirs/digits_moLE/epoch_12.pth'
FOUND = 'work_dirs/digits_search/best_subnet.json'
HISTORY = 'work_dirs/digits_search/search_history.jsonl'
REPORT = 'work_dirs/digits_search/report.html'
EXPORT = 'work_dirs/digits_export'
GOAL = 95.0  # test top-1 of the found subnet, in percent

STEPS = [
    ('Write the digits in the format of MNIST', 'prepare_digits'),
    ('Stage 1: train the supernet', 'train digits_supernet'),
    (
        'Stage 2: freeze it, train experts and router',
        f'train digits_moLE --cfg-options load_from={SUPERNET}',
    ),
    (
        'Stage 3: search under a parameter limit, on held-out images',
        f'search digits_search {EXPERTS}',
    ),
    (
        'Export the found subnet, read it back, compare logits',
        f'export digits_moLE {EXPERTS} --subnet {FOUND} --out {EXPORT}',
    ),
    (
        'Test without experts',
        f'test digits_supernet {SUPERNET} --subnet smallest largest {FOUND} --out {LOGS}/bare.json',
    ),
    (
        'Test with experts',
        f'test digits_moLE {EXPERTS} --subnet smallest largest {FOUND} --out {LOGS}/experts.json',
    ),
]
# Lines of the tools' output that show progress.
PROGRESS = re.compile(
    r'INFO - ((Epoch\((train|val|test)\)|Experts after|Generation|Best after|Report|'
    r'The checkpoint is).*)'
)
console = Console(highlight=False)


def run_step(number: int, title: str, command: str) -> None:
    """Run one tool, show its progress and log its output; stop the demo if it fails."""
    console.print(f'\n[bold]\\[{number}/{len(STEPS)}] {title}[/bold]')
    console.print(f'$ tas-lora {command}', markup=False, soft_wrap=True)
    started = time.monotonic()
    log = LOGS / f'{number}.log'
    with log.open('w') as file:
        process = subprocess.Popen(
            [sys.executable, '-u', '-m', 'tas_lora', *command.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # On such small tensors a second thread gains nothing, and loses much under load.
            env=os.environ | dict(OMP_NUM_THREADS='1'),
        )
        for line in process.stdout:
            file.write(line)
            show(line)
    if process.wait() != 0:
        tail = log.read_text().splitlines()[-15:]
        console.print('\n'.join(tail), markup=False)
        sys.exit(f'Step {number} failed; its full output is in {log}')
    console.print(f'  done in {time.monotonic() - started:.0f} s', style='dim')


def show(line: str) -> None:
    """Print a tool's line if it shows progress or reports a result."""
    progress = PROGRESS.search(line)
    if progress or line.startswith(('data/', 'Exported')):
        text = progress.group(1) if progress else line.rstrip()
        console.print('  ' + text, markup=False, soft_wrap=True)


def measure_export() -> float:
    """Top-1 of the exported files on the test images, in plain torch."""
    import torch
    from mmpretrain.datasets import MNIST

    from tas_lora.models.plain_vit import load_plain_vit

    warnings.filterwarnings('ignore', message='The given NumPy array is not writable')  # MNIST's
    model, description = load_plain_vit(EXPORT)
    data = MNIST('data/digits', split='test', test_mode=True)
    images = torch.stack([torch.from_numpy(d['img'].copy()) for d in data])[:, None].float()
    labels = torch.tensor([int(d['gt_label']) for d in data])
    mean, std = (torch.tensor(description['preprocess'][k]) for k in ('mean', 'std'))
    with torch.no_grad():
        predicted = model((images - mean) / std).argmax(1)
    return float((predicted == labels).float().mean() * 100)


def report() -> float:
    """Print the table and return the top-1 of the found subnet with experts."""
    from tas_lora import count_flops, count_params, load_supernet, read_subnet

    model = load_supernet('digits_moLE')
    space = model.router.space
    found = read_subnet(FOUND)
    subnets = dict(smallest=space.smallest(), largest=space.largest(), best_subnet=found)
    top1 = {k: json.loads((LOGS / f'{k}.json').read_text()) for k in ('bare', 'experts')}
    table = Table(title='Test top-1 (%) on 360 digits that no step has seen')
    for column in ('subnet', 'params', 'FLOPs', 'bare supernet', 'with experts'):
        table.add_column(column, justify='left' if column == 'subnet' else 'right')
    for name, subnet in subnets.items():
        scores = [f'{top1[k][f"{name}/accuracy/top1"]:.2f}' for k in ('bare', 'experts')]
        label = 'found' if subnet is found else name
        costs = [count(subnet, **model.image_spec) for count in (count_params, count_flops)]
        table.add_row(label, *(f'{cost:,.0f}' for cost in costs), *scores)
    console.print()
    console.print(table)
    return top1['experts']['best_subnet/accuracy/top1']


def main():
    """Run all steps and report."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for number, (title, command) in enumerate(STEPS, 1):
        run_step(number, title, command)
    found = report()
    exported = measure_export()
    console.print(
        f'At this size experts may not help; the table says what was measured.\n'
        f'The exported files alone, in plain torch: {exported:.2f} %\n\n'
        f'supernet  {SUPERNET}\nexperts   {EXPERTS}\nsubnet    {FOUND}\n'
        f'export    {EXPORT}/weights.safetensors, {EXPORT}/architecture.json\n'
        f'history   {HISTORY}\nreport    {REPORT}\nlogs      {LOGS}/\n\n'
        f'{time.monotonic() - started:.0f} s in all',
        soft_wrap=True,
    )
    if found < GOAL:
        sys.exit(f'The found subnet has {found:.2f} % on the test set, expected at least {GOAL} %')
    if abs(exported - found) > 1e-3:
        sys.exit(f'The export has {exported:.2f} % on the test set, the supernet {found:.2f} %')


if __name__ == '__main__':
    main()
