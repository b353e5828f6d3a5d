"""Torch-Pruning's own pruner on timm's network, to a share of its multiply-adds."""

import warnings
from copy import deepcopy

import torch
import torch_pruning
from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from .pictures import normalised

_HALVINGS = 12  # of the interval of the ratio


def macs_of(model: nn.Module, img_size: int) -> int:
    """Multiply-adds of all matrix products of timm's ViT, pruned or not, for one image."""
    tokens = (img_size // model.patch_embed.patch_size[0]) ** 2 + 1
    embed = model.patch_embed.proj.weight.numel() * (tokens - 1)
    blocks = 0
    for block in model.blocks:
        layers = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
        inner = block.attn.proj.in_features
        blocks += tokens * sum(layer.weight.numel() for layer in layers) + 2 * tokens**2 * inner
    return embed + blocks + model.head.weight.numel()


def prune(
    model: nn.Module, share: float, batches: list[tuple[Tensor, Tensor]], img_size: int
) -> nn.Module:
    """Cut a copy down to ``share`` of the multiply-adds, or just below, by Taylor scores.

    MLPs and head widths of all blocks compete, each kind by itself (isomorphic pruning); blocks and
    the width of the residual stream stay.

    Args:
        model: timm's ViT.
        share: Of the multiply-adds of ``model``.
        batches: Bytes and labels that the scores are summed over.
        img_size: Side of the images.
    """
    model.eval()
    gradients = _gradients(model, batches, img_size)
    most, (low, high) = share * macs_of(model, img_size), (0.0, 1.0)
    best = None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        pruned = _pruned(model, gradients, ratio, img_size)
        if macs_of(pruned, img_size) <= most:
            best, high = pruned, ratio
        else:
            low = ratio
    return best


def _gradients(model: nn.Module, batches, img_size: int) -> dict[str, Tensor]:
    model.zero_grad()
    for images, labels in batches:
        resized = F.interpolate(images.float(), (img_size, img_size), mode='bilinear')
        F.cross_entropy(model(normalised(resized)), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _pruned(
    model: nn.Module, gradients: dict[str, Tensor], ratio: float, img_size: int
) -> nn.Module:
    """A copy that lacks a share of its channels."""
    model = deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.fused_attn = False
    kept = [model.head, model.patch_embed, *(attention.proj for attention in attentions)]
    kept += [m.fc2 for m in model.modules() if isinstance(m, Mlp)]
    with warnings.catch_warnings():  # LayerScale and tokens are cut as they should be
        warnings.filterwarnings('ignore', 'Unwrapped parameters')
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, 3, img_size, img_size),
            torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=kept,
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
            round_to=2,
        )
    pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
        attention.scale = attention.head_dim**-0.5
        attention.fused_attn = True
    model.zero_grad()
    return model
