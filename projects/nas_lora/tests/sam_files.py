"""A small SAM, ours and that of transformers, and its weights under the names of three houses."""

import re

import torch
from mmengine.config import Config
from nas_lora.segmentation.segmentor import SAMSegmentor
from tool_calls import PROJECT

WIDTH, LAYERS, CHANNELS, SIZE = 64, 4, 32, 64
TINY = Config.fromfile(PROJECT / 'configs/_base_/sam_tiny.py').model


def tiny_segmentor(**options) -> SAMSegmentor:
    config = {key: value for key, value in TINY.items() if key != 'type'}
    model = SAMSegmentor(**config | options)
    model.eval()
    return model


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


def tiny_sam():
    """A SamModel with random weights in float64, of the size of configs/_base_/sam_tiny.py."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config=dict(
            hidden_size=WIDTH,
            output_channels=CHANNELS,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1, 3],
            num_pos_feats=CHANNELS // 2,
            mlp_dim=128,
        ),
        prompt_encoder_config=dict(hidden_size=CHANNELS, image_size=SIZE, patch_size=8),
        mask_decoder_config=dict(
            hidden_size=CHANNELS,
            mlp_dim=128,
            num_attention_heads=4,
            iou_head_hidden_dim=CHANNELS,
            layer_norm_eps=1e-5,  # as in Meta's code, where transformers' own default is 1e-6
        ),
    )
    torch.manual_seed(0)
    model = SamModel(config).double()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.5)
    model.eval()
    return model


def meta_names(layers: int = LAYERS) -> dict[str, str]:
    """Names in Meta's code (segment_anything/modeling) by those of transformers, written out."""
    names = {'pos_embed': 'pos_embed'}
    pairs = [('patch_embed.projection', 'patch_embed.proj')]
    for i in range(layers):
        ours, theirs = f'layers.{i}', f'blocks.{i}'
        pairs += [
            (f'{ours}.layer_norm1', f'{theirs}.norm1'),
            (f'{ours}.layer_norm2', f'{theirs}.norm2'),
            (f'{ours}.attn.qkv', f'{theirs}.attn.qkv'),
            (f'{ours}.attn.proj', f'{theirs}.attn.proj'),
            (f'{ours}.mlp.lin1', f'{theirs}.mlp.lin1'),
            (f'{ours}.mlp.lin2', f'{theirs}.mlp.lin2'),
        ]
        names |= {f'{ours}.attn.rel_pos_{a}': f'{theirs}.attn.rel_pos_{a}' for a in 'hw'}
    pairs += [('neck.layer_norm1', 'neck.1'), ('neck.layer_norm2', 'neck.3')]
    names |= {'neck.conv1.weight': 'neck.0.weight', 'neck.conv2.weight': 'neck.2.weight'}
    names |= _both(pairs)
    names = {f'vision_encoder.{k}': f'image_encoder.{v}' for k, v in names.items()}
    return names | _meta_decoder() | _meta_prompts()


def _both(pairs: list[tuple[str, str]]) -> dict[str, str]:
    return {f'{k}.{kind}': f'{v}.{kind}' for k, v in pairs for kind in ('weight', 'bias')}


def _meta_decoder() -> dict[str, str]:
    pairs = [
        ('upscale_conv1', 'output_upscaling.0'),
        ('upscale_layer_norm', 'output_upscaling.1'),
        ('upscale_conv2', 'output_upscaling.3'),
        ('transformer.layer_norm_final_attn', 'transformer.norm_final_attn'),
    ]
    attentions = ['transformer.final_attn_token_to_image']
    for i in range(2):
        block = f'transformer.layers.{i}'
        pairs += [(f'{block}.layer_norm{k}', f'{block}.norm{k}') for k in (1, 2, 3, 4)]
        pairs += [(f'{block}.mlp.lin{k}',) * 2 for k in (1, 2)]
        attentions += [
            f'{block}.self_attn',
            f'{block}.cross_attn_token_to_image',
            f'{block}.cross_attn_image_to_token',
        ]
    pairs += [(f'{a}.{m}_proj',) * 2 for a in attentions for m in ('q', 'k', 'v', 'out')]
    mlps = [*(f'output_hypernetworks_mlps.{i}' for i in range(4)), 'iou_prediction_head']
    for mlp in mlps:
        theirs = ('proj_in', 'layers.0', 'proj_out')
        pairs += [(f'{mlp}.{name}', f'{mlp}.layers.{i}') for i, name in enumerate(theirs)]
    names = _both(pairs) | {f'{n}.weight': f'{n}.weight' for n in ('iou_token', 'mask_tokens')}
    return {f'mask_decoder.{k}': f'mask_decoder.{v}' for k, v in names.items()}


def _meta_prompts() -> dict[str, str]:
    same = ('no_mask_embed.weight', 'not_a_point_embed.weight')
    names = {f'prompt_encoder.{n}': f'prompt_encoder.{n}' for n in same}
    for i in range(4):
        points = f'prompt_encoder.point_embeddings.{i}.weight'
        names[f'prompt_encoder.point_embed.{i}.weight'] = points
    masks = (('conv1', 0), ('layer_norm1', 1), ('conv2', 3), ('layer_norm2', 4), ('conv3', 6))
    pairs = [
        (f'prompt_encoder.mask_embed.{k}', f'prompt_encoder.mask_downscaling.{v}') for k, v in masks
    ]
    matrix = 'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'
    for place in ('shared_image_embedding', 'prompt_encoder.shared_embedding'):
        names[f'{place}.positional_embedding'] = matrix
    return names | _both(pairs)


def open_mmlab_names(layers: int = LAYERS) -> dict[str, str]:
    """Names of MMPretrain's ViTSAM in its classifier, by those of transformers."""
    names = {}
    for ours, meta in meta_names(layers).items():
        if ours.startswith('vision_encoder.'):
            name = meta.replace('image_encoder.', 'backbone.').replace('.proj.', '.projection.')
            name = re.sub(r'attn\.projection', 'attn.proj', name).replace('blocks', 'layers')
            name = re.sub(r'layers\.(\d+)\.norm', r'layers.\1.ln', name)
            name = name.replace('mlp.lin1', 'ffn.layers.0.0').replace('mlp.lin2', 'ffn.layers.1')
            names[ours] = name.replace('neck', 'channel_reduction')
    return names
