"""The network that a user has: DINOv2-small fine-tuned on the emoji, with timm alone.

python projects/from_pretrained/finetune.py --amp

Writes weights by timm's names, and a record next to them.
"""

import argparse
import json
import sys
from pathlib import Path

import timm
import torch
from from_pretrained.pictures import SPLITS, accuracy, fit, load_images
from safetensors.torch import load_file, save
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.checks import positive

MODEL = 'vit_small_patch14_dinov2'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--data', default='data/emoji', help='class folders by split, by fetch.py')
    add('--weights', default='data/dinov2_s.safetensors', help='by fetch.py')
    add('--out', default='data/emoji_vit_s_98.safetensors', help='file to write')
    add('--img-size', type=int, default=98, help='multiple of 14')
    add('--pool', choices=['token', 'avg'], default='token', help='feature of the head')
    add('--steps', type=int, default=700)
    add('--batch-size', type=int, default=24)
    add('--lr', type=float, default=4e-5)
    add('--head-lr', type=float, default=2e-3)
    add('--weight-decay', type=float, default=0.05)
    add('--label-smoothing', type=float, default=0.1)
    add('--crop', type=float, default=0.6, help='smallest share of a picture that a crop keeps')
    add('--seed', type=int, default=0)
    add('--amp', action='store_true', help='bfloat16 products in training')
    args = parser.parse_args()
    for field in ('img_size', 'steps', 'batch_size'):
        positive(getattr(args, field), f'--{field.replace("_", "-")}', int)
    return args


def main() -> None:
    """Fine-tune, evaluate, write."""
    args = parse_args()
    torch.manual_seed(args.seed)
    splits = {name: load_images(Path(args.data, name)) for name in ('train', *SPLITS)}
    model = pretrained(args.weights, args.img_size, splits['train'][1].max().item() + 1, args.pool)
    seconds = train(model, *splits['train'], args)
    top1 = {name: accuracy(model, *splits[name], args.img_size) for name in SPLITS}
    record = dict(model=MODEL, command=' '.join(['finetune.py', *sys.argv[1:]]), **vars(args))
    record |= dict(top1=top1, threads=torch.get_num_threads(), seconds_per_step=round(seconds, 3))
    write_atomic(args.out, save(model.state_dict()))
    write_atomic(Path(args.out).with_suffix('.json'), json.dumps(record, indent=1) + '\n')
    cli.say(f'{args.out}: ' + ', '.join(f'{name} {value:.2f}' for name, value in top1.items()))


def pretrained(weights: str, img_size: int, num_classes: int, pool: str) -> torch.nn.Module:
    """timm's network with the pretrained backbone and a new head."""
    if img_size % 14:
        raise UserError(f'--img-size {img_size} is not a multiple of 14, the side of a patch')
    model = timm.create_model(
        MODEL, img_size=img_size, num_classes=num_classes, global_pool=pool, fc_norm=False
    )
    state = load_file(weights)
    if 'pos_embed' in state:
        state['pos_embed'] = resample_abs_pos_embed(
            state['pos_embed'], list(model.patch_embed.grid_size), num_prefix_tokens=1
        )
    expected = {n: v.shape for n, v in model.state_dict().items() if not n.startswith('head.')}
    if {name: value.shape for name, value in state.items()} != expected:
        raise UserError(f'{weights} is not the backbone of {MODEL}; fetch.py writes it')
    model.load_state_dict(state, strict=False)
    return model


def train(model, images, labels, args: argparse.Namespace) -> float:
    """Fine-tune; the new head has a rate of its own. Returns the seconds of a step."""
    head = list(model.head.parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith('head.')]
    groups = [dict(params=body, lr=args.lr), dict(params=head, lr=args.head_lr)]

    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(inputs).float()
        return F.cross_entropy(logits, labels, label_smoothing=args.label_smoothing)

    names = ('steps', 'batch_size', 'img_size', 'weight_decay', 'crop', 'amp')
    options = {name: getattr(args, name) for name in names}
    return fit(model, (images, labels), loss_of, groups, **options)


if __name__ == '__main__':
    cli.run(main)
