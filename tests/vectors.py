"""Rebuilds the supernets whose outputs the official AutoFormer code recorded.

``data/autoformer.json`` holds those outputs (microsoft/Cream, AutoFormer, commit 4a13c40, CPU,
fp32, eval mode). Weights are not stored: they follow from a seed, as below.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tas_lora import Subnet

VECTORS = json.loads((Path(__file__).parent / 'data' / 'autoformer.json').read_text())


def official_shapes(net: dict) -> dict[str, tuple]:
    """Keys and shapes of an official state dict."""
    C, L, side = net['embed_dim'], net['depth'], net['patch_size']
    hidden, tokens = int(C * net['mlp_ratio']), (net['img_size'] // side) ** 2 + 1
    table = (2 * net['max_relative_position'] + 2, C // net['num_heads'])
    shapes = {
        'pos_embed': (1, tokens, C),
        'cls_token': (1, 1, C),
        'patch_embed_super.proj.weight': (C, net['in_chans'], side, side),
        'patch_embed_super.proj.bias': (C,),
        'norm.weight': (C,),
        'norm.bias': (C,),
        'head.weight': (net.get('num_classes', 10), C),
        'head.bias': (net.get('num_classes', 10),),
    }
    for i in range(L):
        block = {
            'attn.qkv.weight': (3 * C, C),
            'attn.qkv.bias': (3 * C,),
            'attn.proj.weight': (C, C),
            'attn.proj.bias': (C,),
            'fc1.weight': (hidden, C),
            'fc1.bias': (hidden,),
            'fc2.weight': (C, hidden),
            'fc2.bias': (C,),
        }
        for norm in ('attn_layer_norm', 'ffn_layer_norm'):
            block |= {f'{norm}.weight': (C,), f'{norm}.bias': (C,)}
        for which in 'kv':
            for axis in 'vh':
                block[f'attn.rel_pos_embed_{which}.embeddings_table_{axis}'] = table
        shapes |= {f'blocks.{i}.{name}': shape for name, shape in block.items()}
    return shapes


def seeded(seed: int, i: int, shape: tuple) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64([seed, i]))
    return generator.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def official_weights(entry: dict) -> dict[str, torch.Tensor]:
    """The official state dict of one recorded supernet."""
    emb = np.float32(entry['emb'])

    def value(key: str, n: np.ndarray) -> np.ndarray:
        if 'norm' in key and key.endswith('weight'):
            return 1 + np.float32(0.3) * n
        if 'norm' in key:
            return np.float32(0.2) * n
        if 'embeddings_table' in key:
            return np.float32(0.3) * n
        if key in ('pos_embed', 'cls_token'):
            return np.float32(0.5) * emb * n
        if key.startswith('patch_embed'):
            return np.float32(0.2 if key.endswith('weight') else 0.3) * emb * n
        if key.endswith('bias'):
            return np.float32(0.3) * n
        return np.float32(0.12 if '.qkv.' in key else 0.08) * n

    shapes = official_shapes(entry['supernet'])
    return {
        key: torch.from_numpy(value(key, seeded(entry['seed'], i, shapes[key])))
        for i, key in enumerate(sorted(shapes))
    }


def images(entry: dict) -> torch.Tensor:
    return torch.from_numpy(seeded(entry['seed'], 10**6, (2, 3, 32, 32)))


def model_config(entry: dict) -> dict:
    """Our config of one recorded supernet."""
    net = entry['supernet']
    return dict(
        model=dict(
            type='tas_lora.SupernetClassifier',
            backbone=dict(
                type='tas_lora.ElasticViT',
                arch=dict(
                    embed_dim=net['embed_dim'],
                    num_heads=[net['num_heads']] * net['depth'],
                    mlp_ratio=[net['mlp_ratio']] * net['depth'],
                ),
                img_size=net['img_size'],
                patch_size=net['patch_size'],
                max_relative_position=net['max_relative_position'],
                out_type='avg_featmap' if net['gp'] else 'cls_token',
            ),
            head=dict(type='tas_lora.ElasticClsHead', num_classes=10, in_channels=net['embed_dim']),
        )
    )


def subnet(config: dict) -> Subnet:
    """A subnet in the official form, as ours."""
    return Subnet(config['embed_dim'][0], config['num_heads'], config['mlp_ratio'])


@cache
def cases() -> list[tuple[str, int]]:
    return [(name, i) for name, entry in VECTORS.items() for i in range(len(entry['cases']))]
