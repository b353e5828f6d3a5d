"""Load SAM files of several origins into MMPretrain's ``ViTSAM`` and our mask decoder.

Meta, Hugging Face and OpenMMLab store the same tensors under different names. No code in a file is
run. A file that does not fit is refused; the error names its first wrong tensor.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.models.safe_load import read_state_dict

# By the prefix of an encoder's names: replacements, applied in order, that give our names.
_NAMINGS = {
    'image_encoder.': (  # Meta
        (r'^image_encoder\.neck', 'encoder.channel_reduction'),
        (r'^image_encoder\.patch_embed\.proj\.', 'encoder.patch_embed.projection.'),
        (r'^image_encoder\.blocks', 'encoder.layers'),
        (r'^image_encoder', 'encoder'),
        (r'^(encoder\.layers\.\d+)\.norm', r'\1.ln'),
        (r'^(encoder\.layers\.\d+)\.mlp\.lin1', r'\1.ffn.layers.0.0'),
        (r'^(encoder\.layers\.\d+)\.mlp\.lin2', r'\1.ffn.layers.1'),
        (r'^mask_decoder', 'decoder'),
        (r'^prompt_encoder\.(no_mask_embed)', r'decoder.\1'),
        (r'^prompt_encoder\.pe_layer', 'decoder'),
    ),
    'vision_encoder.': (  # Hugging Face
        (r'^vision_encoder\.neck\.conv1', 'encoder.channel_reduction.0'),
        (r'^vision_encoder\.neck\.layer_norm1', 'encoder.channel_reduction.1'),
        (r'^vision_encoder\.neck\.conv2', 'encoder.channel_reduction.2'),
        (r'^vision_encoder\.neck\.layer_norm2', 'encoder.channel_reduction.3'),
        (r'^vision_encoder', 'encoder'),
        (r'^(encoder\.layers\.\d+)\.layer_norm', r'\1.ln'),
        (r'^(encoder\.layers\.\d+)\.mlp\.lin1', r'\1.ffn.layers.0.0'),
        (r'^(encoder\.layers\.\d+)\.mlp\.lin2', r'\1.ffn.layers.1'),
        (r'^mask_decoder\.upscale_conv1', 'decoder.output_upscaling.0'),
        (r'^mask_decoder\.upscale_layer_norm', 'decoder.output_upscaling.1'),
        (r'^mask_decoder\.upscale_conv2', 'decoder.output_upscaling.3'),
        (r'^mask_decoder', 'decoder'),
        (r'^(decoder\.transformer\.)layer_norm_final', r'\1norm_final'),
        (r'^(decoder\.transformer\.layers\.\d+)\.layer_norm', r'\1.norm'),
        (r'^(decoder\.output_hypernetworks_mlps\.\d+)\.layers\.0', r'\1.layers.1'),
        (r'^(decoder\.output_hypernetworks_mlps\.\d+)\.proj_in', r'\1.layers.0'),
        (r'^(decoder\.output_hypernetworks_mlps\.\d+)\.proj_out', r'\1.layers.2'),
        (r'^prompt_encoder\.(no_mask_embed)', r'decoder.\1'),
        (
            r'^(prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding',
            'decoder.positional_encoding_gaussian_matrix',
        ),
    ),
    'backbone.': ((r'^backbone', 'encoder'),),  # OpenMMLab
    'encoder.': (),  # our own
}
# Tensors that a decoder for one mask without prompts does not need, by their names after renaming.
_UNUSED = re.compile(
    r'prompt_encoder\.(point_embed|not_a_point_embed|mask_embed|mask_downscaling)'
    r'|decoder\.iou_prediction_head|decoder\.output_hypernetworks_mlps\.[123]\.'
)
_ADVICE = "take a file of the model's own size (arch: base, large, huge) and kind"
_RESIZED = re.compile(r'\.pos_embed$|\.rel_pos_[hw]$')  # ViTSAM resizes them while loading


def sam_names(names: list[str]) -> dict[str, str]:
    """Our name for each tensor of a file, without unused tensors.

    Args:
        names: As written by Meta, Hugging Face, OpenMMLab or ``SAMSegmentor``.

    Returns:
        From names in the file to names in ``SAMSegmentor`` (``encoder.*``, ``decoder.*``).

    Raises:
        UserError: If they include no encoder of SAM.
    """
    prefix = next((p for p in _NAMINGS if any(n.startswith(p) for n in names)), None)
    if prefix is None:
        raise UserError(
            f'it holds no encoder of SAM, whose names begin with one of {tuple(_NAMINGS)}; '
            f'its first is {names[0]!r}'
        )
    renamed = {name: _renamed(name, prefix) for name in names}
    return {name: ours for name, ours in renamed.items() if not _UNUSED.match(ours)}


def load_sam(parts: Mapping[str, nn.Module], path: str | Path) -> list[str]:
    """Load the weights of a SAM file.

    A file with an encoder only, such as OpenMMLab's, leaves the decoder unchanged. The encoder's
    positions are resized to its image and window size.

    Args:
        parts: The modules of a ``SAMSegmentor``: ``encoder``, and ``decoder`` if it has one.
        path: The file, .pth or .safetensors, or the http(s) address of one.

    Returns:
        The parts that the file has.

    Raises:
        UserError: If the file cannot be read, holds anything but weights, or its tensors differ
            from those of the parts.
    """
    state = read_state_dict(path)
    try:
        found = _for_parts(parts, state)
    except UserError as error:
        raise UserError(f'{path} does not fit: {error}') from error
    for part, tensors in found.items():
        parts[part].load_state_dict(tensors)
    return [part for part in parts if part in found]


def _renamed(name: str, prefix: str) -> str:
    for pattern, replacement in _NAMINGS[prefix]:
        name = re.sub(pattern, replacement, name)
    return name


def _for_parts(
    parts: Mapping[str, nn.Module], state: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Tensors by part and name in the part, checked against the part's own."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, ours in sam_names(list(state)).items():
        part, _, inside = ours.partition('.')
        if part == 'decoder' and part not in parts:
            continue
        own = parts[part].state_dict() if part in parts else {}
        if inside not in own:
            raise UserError(f'its tensor {name} has no place in the model; {_ADVICE}')
        _check_shape(name, state[name], own[inside])
        found.setdefault(part, {})[inside] = state[name]
    for missing in _missing(parts, found):
        raise UserError(f'it lacks {missing}; {_ADVICE}')
    return found


def _check_shape(name: str, theirs: Tensor, own: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (theirs, own)]
    if _RESIZED.search(name):
        shapes = [(len(shape), shape[-1]) for shape in shapes]
    if shapes[0] != shapes[1]:
        raise UserError(
            f'its tensor {name} is {tuple(theirs.shape)}, the model has {tuple(own.shape)}; '
            f'{_ADVICE}'
        )


def _missing(parts: Mapping[str, nn.Module], found: Mapping) -> Iterator[str]:
    """Names of tensors missing from the parts that a file has."""
    for part, tensors in found.items():
        for name in parts[part].state_dict():
            if name not in tensors:
                yield f'{part}.{name}'
