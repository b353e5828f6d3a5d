"""Weights of a DINOv2 backbone out of an exported ONNX graph, by timm's names.

The exporter kept the names of biases, norms, tokens and LayerScale. Matrices lost theirs: they are
found through the nodes that multiply by them, and are stored (in, out).
"""

import numpy as np
import onnx
from onnx import numpy_helper

_BLOCK = {
    'norm1.weight': 'norm1.weight',
    'norm1.bias': 'norm1.bias',
    'attention.output.dense.weight': 'attn.proj.weight',
    'attention.output.dense.bias': 'attn.proj.bias',
    'layer_scale1.lambda1': 'ls1.gamma',
    'norm2.weight': 'norm2.weight',
    'norm2.bias': 'norm2.bias',
    'mlp.fc1.weight': 'mlp.fc1.weight',
    'mlp.fc1.bias': 'mlp.fc1.bias',
    'mlp.fc2.weight': 'mlp.fc2.weight',
    'mlp.fc2.bias': 'mlp.fc2.bias',
    'layer_scale2.lambda1': 'ls2.gamma',
}
_OUTSIDE = {
    'embeddings.cls_token': 'cls_token',
    'embeddings.patch_embeddings.projection.weight': 'patch_embed.proj.weight',
    'embeddings.patch_embeddings.projection.bias': 'patch_embed.proj.bias',
    'layernorm.weight': 'norm.weight',
    'layernorm.bias': 'norm.bias',
}
_QKV = [f'attention.attention.{part}' for part in ('query', 'key', 'value')]
_PATCH_POSITIONS = '/backbone/embeddings/Reshape_1'
_ALL_POSITIONS = '/backbone/embeddings/Concat_6'  # the class token's, then those of patches


def timm_state(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """State dict of timm's ``vit_small_patch14_dinov2`` (no classes) from the graph.

    Raises:
        KeyError: If the graph lacks a weight.
    """
    weights = _named_weights(graph)
    state = {timm: weights[f'backbone.{name}'] for name, timm in _OUTSIDE.items()}
    state['pos_embed'] = _positions(graph)
    depth = sum(name.endswith('layer_scale1.lambda1') for name in weights)
    for i in range(depth):
        block = f'backbone.encoder.layer.{i}.'
        for name, timm in _BLOCK.items():
            state[f'blocks.{i}.{timm}'] = weights[block + name]
        for kind in ('weight', 'bias'):
            parts = [weights[f'{block}{part}.{kind}'] for part in _QKV]
            state[f'blocks.{i}.attn.qkv.{kind}'] = np.concatenate(parts)
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def _named_weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initialisers by Hugging Face's names; matrices by those of their nodes, as (out, in)."""
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    named = {name: array for name, array in arrays.items() if name.startswith('backbone.')}
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in arrays:
            module = node.name.removesuffix('/MatMul').strip('/').replace('/', '.')
            named[f'{module}.weight'] = arrays[node.input[1]].T
    return named


def _positions(graph: onnx.GraphProto) -> np.ndarray:
    """Positions (1, 1 + patches, width), before they are resized to an image."""
    arrays = {one.name: one for one in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    tables = nodes[_ALL_POSITIONS].input[0], nodes[_PATCH_POSITIONS].input[0]
    return np.concatenate([numpy_helper.to_array(arrays[name]) for name in tables], axis=1)
