"""Make a pretrained vision transformer of timm, Hugging Face or MMPretrain a supernet."""

import argparse
from pathlib import Path

from tas_lora import UserError, cli
from tas_lora.models import SupernetClassifier
from tas_lora.models.pretrained import convert, write_supernet
from tas_lora.structures import ViTStyle

MOMENTS = ('mean', 'std')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='timm:NAME, hf:FOLDER or mmpretrain:NAME')
    parser.add_argument('--out', required=True, help='folder for supernet.py and supernet.pth')
    parser.add_argument('--checkpoint', help="weights of this model, if not the library's own")
    parser.add_argument('--img-size', type=int, help='side of the images, if not its own')
    parser.add_argument(
        '--num-classes',
        type=int,
        help="classes of the head; a new one unless the original's",
    )
    return parser.parse_args()


def lines(source: str, model: SupernetClassifier, difference: float) -> list[str]:
    """What was read."""
    arch, spec, style = model.backbone.arch, model.backbone.image_spec, model.backbone.style
    count = sum(value.numel() for value in model.parameters())
    head = 'no head' if model.head is None else f'a head of {model.head.num_classes} classes'
    own = {k: v for k, v in style.to_dict().items() if v != getattr(ViTStyle(), k)}
    parts = ', '.join(f'{name} {value}' for name, value in own.items())
    data = model.data_preprocessor
    known = getattr(data, '_enable_normalize', False)
    moments = [[round(v, 3) for v in getattr(data, k).flatten().tolist()] for k in MOMENTS if known]
    images = f'mean {moments[0]}, std {moments[1]}' if known else 'unknown; set data_preprocessor'
    return [
        f'{source}: {arch.depth} blocks, {arch.embed_dim} wide, {max(arch.num_heads)} heads of '
        f'{spec["head_dim"]}, MLPs of {max(arch.hidden_dims)}',
        f'Images of {spec["img_size"]} pixels in patches of {spec["patch_size"]}; '
        f'{model.backbone.out_type}, {head}; {count:,} parameters',
        f'Parts: {parts}',
        f'Normalisation of the images (0 to 255): {images}',
        f'The supernet differs from the original by {difference:.1e} of its largest output.',
    ]


def main():
    """Parse, convert, report and write."""
    args = parse_args()
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UserError(f'--out {out} is a file; name a folder')
    options = args.checkpoint, args.img_size, args.num_classes
    model, config, difference = convert(args.source, *options)
    write_supernet(out, args.source, model, config)
    for line in (*lines(args.source, model, difference), f'Written: {out}/supernet.py and .pth'):
        cli.say(line)


if __name__ == '__main__':
    cli.run(main)
