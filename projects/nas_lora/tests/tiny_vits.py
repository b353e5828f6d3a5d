"""A vision transformer of each library that runs in milliseconds, without a download."""

import timm
import torch
import transformers
from mmpretrain.models import DistilledVisionTransformer, VisionTransformer
from nas_lora.cells.linear import NASLoRALinear
from nas_lora.vits.subnets import cut_out
from tiny import tiny_model
from tiny_encoder import plain_cell, tiny_encoder
from torch import Tensor, nn

from tas_lora.models.plain_vit import PlainViT

WIDTH, HEADS, HIDDEN, DEPTH, SIDE, PATCH = 24, 2, 48, 2, 24, 8
EXTRA = dict(  # class, distillation and register tokens, as the authors have them
    timm=1, timm_registers=5, timm_wide=3, mmpretrain=1, mmpretrain_mean=0, mmpretrain_deit=2,
    vit=1, deit=2, dinov2=1, dinov2_registers=5, clip=1, plain=3, subnet=1, sam=0,
)  # fmt: skip
GRIDS = dict.fromkeys(EXTRA, (3, 3)) | dict(timm_wide=(2, 3), subnet=(4, 4))  # sam: windows
SEPARATE = ('vit', 'deit', 'dinov2', 'dinov2_registers', 'clip')


def small_timm(reg_tokens: int = 0, img_size=SIDE, depth: int = DEPTH, **options) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size, PATCH, embed_dim=WIDTH, depth=depth, num_heads=HEADS, mlp_ratio=HIDDEN // WIDTH,
        num_classes=0, reg_tokens=reg_tokens, init_values=0.5, **options,
    )  # fmt: skip


def _mmpretrain(kind=VisionTransformer, **options) -> nn.Module:
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=HIDDEN)
    return kind(arch=arch, img_size=SIDE, patch_size=PATCH, **dict(out_type='raw') | options)


def _huggingface(kind: str, **options) -> nn.Module:
    config = getattr(transformers, f'{kind.removesuffix("Model")}Config')
    mlp = dict(mlp_ratio=HIDDEN // WIDTH) if kind.startswith('Dino') else {}
    sizes = dict(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIDE,
        intermediate_size=HIDDEN, patch_size=PATCH,
    )  # fmt: skip
    if mlp:
        sizes.pop('intermediate_size')
    return getattr(transformers, kind)(config(**sizes, **mlp, **options))


def _plain() -> PlainViT:
    return PlainViT(
        WIDTH, [HEADS] * DEPTH, [HIDDEN] * DEPTH, SIDE, PATCH, 3, 0, WIDTH // HEADS, None,
        'cls_token', num_prefix_tokens=3,
    )  # fmt: skip


BUILDERS = dict(
    timm=small_timm,
    timm_registers=lambda: small_timm(4),
    timm_wide=lambda: small_timm(2, (16, SIDE)),
    mmpretrain=_mmpretrain,
    mmpretrain_mean=lambda: _mmpretrain(out_type='featmap', with_cls_token=False),
    mmpretrain_deit=lambda: _mmpretrain(DistilledVisionTransformer),
    vit=lambda: _huggingface('ViTModel'),
    deit=lambda: _huggingface('DeiTModel'),
    dinov2=lambda: _huggingface('Dinov2Model'),
    dinov2_registers=lambda: _huggingface('Dinov2WithRegistersModel', num_register_tokens=4),
    clip=lambda: _huggingface('CLIPVisionModel'),
    plain=_plain,
    subnet=lambda: cut_out(tiny_model(mole=False)),
    sam=tiny_encoder,
)


def vit(name: str) -> nn.Module:
    """The same weights at each call; in evaluation mode and float64."""
    torch.manual_seed(0)
    model = BUILDERS[name]().double()
    for value in model.parameters():
        nn.init.normal_(value, std=0.2)
    model.eval()  # returns None in MMPretrain
    return model


def images(name: str, count: int = 2) -> Tensor:
    sides = {'timm_wide': (3, 16, SIDE), 'subnet': (1, 8, 8), 'sam': (3, 64, 64)}
    shape = sides.get(name, (3, SIDE, SIDE))
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def features(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """What the network gives: all tokens where the library lets them out."""
    if name.startswith('timm'):
        return model.forward_features(x)
    if name in ('plain', 'subnet'):
        return model.tokens(x)
    y = model(x)
    return y[-1] if isinstance(y, tuple) else y.last_hidden_state


def plain_update(layer: NASLoRALinear, x: Tensor, extra: int, grid: tuple[int, int]) -> Tensor:
    """Up cell(down x) of each part by its formula, for maps or for a sequence of tokens."""
    if x.ndim == 4:
        maps = [x]
    else:
        maps = [x[:, i].reshape(len(x), 1, 1, -1) for i in range(extra)]
        maps.append(x[:, extra:].unflatten(1, grid))
    updates = []
    for branch in layer.branches.values():
        each = []
        for tokens in maps:
            down = torch.einsum('ri,bhwi->brhw', branch.down.weight, tokens)
            mixed = plain_cell(branch.cell, down, 2)
            each.append(torch.einsum('or,brhw->bhwo', branch.up.weight, mixed))
        rows = [update.flatten(1, 2) for update in each]
        updates.append(torch.cat(rows, dim=1))
    return torch.cat(updates, dim=-1).reshape(*x.shape[:-1], -1)
