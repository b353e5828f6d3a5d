"""Convert an official AutoFormer checkpoint to the toolkit's format."""

import argparse
from io import BytesIO

import torch

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic
from tas_lora.models.checkpoint import describe, from_autoformer, is_autoformer
from tas_lora.models.safe_load import read_state_dict


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='official file: supernet-tiny.pth, or a trainer checkpoint')
    parser.add_argument('dst', help='file to write, for load_from and all tools')
    return parser.parse_args()


def main():
    """Parse, convert and report the sizes."""
    args = parse_args()
    cli.check_output(args.dst)
    official = read_state_dict(args.src)
    if not is_autoformer(official):
        raise UserError(f'{args.src} is not an official AutoFormer checkpoint')
    state_dict = from_autoformer(official)
    sizes = describe(state_dict)
    content = BytesIO()
    torch.save(dict(meta=dict(source='autoformer', **sizes), state_dict=state_dict), content)
    write_atomic(args.dst, content.getvalue())
    cli.say(
        f'{args.dst}: {len(state_dict)} tensors, embed_dim {sizes["embed_dim"]}, '
        f'depth {sizes["depth"]}, heads {max(sizes["num_heads"])}'
    )


if __name__ == '__main__':
    cli.run(main)
