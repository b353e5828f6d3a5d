"""Score the importance of each layer of a supernet, for ``mole.importance``.

Each batch of the training set is scored with a random subnet. A layer's score is the mean over the
batches in which its block is active.
"""

import json

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.runner import Runner
from rich.progress import track

from tas_lora import SearchSpace, UserError, apis, cli
from tas_lora.analysis.importance import layer_importance
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive, usable_device
from tas_lora.datasets.agreement import check_sources


def parse_args():
    """Parse the command line."""
    parser = cli.config_parser(__doc__, work_dir=False)
    parser.add_argument('checkpoint', help='checkpoint of the supernet (stage 1)')
    parser.add_argument('--out', required=True, help='JSON file to write')
    parser.add_argument('--batches', type=int, default=50, help='number of batches')
    parser.add_argument('--seed', type=int, default=0, help='seed of subnets and images')
    parser.add_argument('--device', default=get_device(), help='device to compute on')
    return parser.parse_args()


def main():
    """Score and write."""
    args = parse_args()
    positive(args.batches, '--batches', int)
    usable_device(args.device, '--device')
    cli.check_output(args.out)
    cfg = apis.load_config(args.config, args.cfg_options)
    apis.check_data(cfg, ('train_dataloader',))
    check_sources(cfg, ('train_dataloader',))
    if 'space' not in (cfg.get('train_cfg') or {}):
        raise UserError(f'{args.config} has no train_cfg.space; use the config of a supernet')
    space = SearchSpace.coerce(cfg.train_cfg.space)
    model = apis.load_supernet(cfg, args.checkpoint, args.device).requires_grad_(True)
    torch.manual_seed(args.seed)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=args.seed)
    total, seen = torch.zeros(model.backbone.arch.depth, 4), torch.zeros(model.backbone.arch.depth)
    batches = zip(range(args.batches), loader, strict=False)
    for i, data in track(batches, 'Scoring layers', total=min(args.batches, len(loader))):
        model.set_subnet(space.sample(np.random.default_rng((args.seed, i))))
        total += layer_importance(model, model.data_preprocessor(data, training=True)).cpu()
        seen[: model.subnet.depth] += 1
    if not seen.all():
        unseen = ', '.join(map(str, seen.eq(0).nonzero().flatten().tolist()))
        raise UserError(f'blocks {unseen} were active in no batch; raise --batches')
    scores = (total / seen[:, None]).tolist()
    write_atomic(args.out, json.dumps(scores) + '\n')
    cli.say(f'{args.out}: {len(scores)} blocks; set model.backbone.mole.importance={args.out}')


if __name__ == '__main__':
    cli.run(main)
