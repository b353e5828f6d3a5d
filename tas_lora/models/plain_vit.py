"""An exported subnet as an ordinary vision transformer. Needs torch and safetensors, no more."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

FORMAT = 'tas_lora.plain_vit/1'

_SIZES = ('embed_dim', 'img_size', 'patch_size', 'in_channels', 'num_classes')
_SIZES += ('head_dim', 'max_relative_position')
_MOST_PATCHES = 64  # along a side: a table of positions grows with its fourth power


class PlainAttention(nn.Module):
    """Multi-head self-attention with AutoFormer's 2-D relative positions.

    Args:
        width: C.
        num_heads: H.
        head_dim: D.
        max_offset: Offset R at which relative positions are clipped.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, max_offset: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, width)
        rows = 2 * max_offset + 2  # row 0: pairs with the class token
        self.key_rows = nn.Parameter(torch.zeros(rows, head_dim))
        self.key_columns = nn.Parameter(torch.zeros(rows, head_dim))
        self.value_rows = nn.Parameter(torch.zeros(rows, head_dim))
        self.value_columns = nn.Parameter(torch.zeros(rows, head_dim))

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Map (B, N, C) to itself; ``rows`` and ``columns`` are table indices (N, N)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        rel_k = self.key_rows[rows] + self.key_columns[columns]  # (N, N, D)
        rel_v = self.value_rows[rows] + self.value_columns[columns]
        # Per query: one product against all positions, (N, B H, D) x (N, D, N).
        by_query = q.flatten(0, 1).transpose(0, 1)
        position = (by_query @ rel_k.transpose(1, 2)).transpose(0, 1).unflatten(0, q.shape[:2])
        weights = ((q @ k.transpose(2, 3) + position) * self.head_dim**-0.5).softmax(-1)
        by_query = weights.flatten(0, 1).transpose(0, 1)
        position = (by_query @ rel_v).transpose(0, 1).unflatten(0, q.shape[:2])
        return self.proj((weights @ v + position).transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    """Pre-norm block of :class:`PlainAttention` and an MLP of width ``hidden``."""

    def __init__(self, width: int, num_heads: int, head_dim: int, max_offset: int, hidden: int):
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = PlainAttention(width, num_heads, head_dim, max_offset)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Map (B, N, C) to itself."""
        x = x + self.attn(self.attn_norm(x), rows, columns)
        return x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x))))


class PlainViT(nn.Module):
    """A vision transformer of fixed size: images (B, channels, side, side) to logits.

    Args:
        embed_dim: Width C.
        num_heads: Heads of each block.
        hidden_dims: MLP width of each block.
        img_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        in_channels: Image channels.
        num_classes: Number of logits.
        head_dim: Width of a head.
        max_relative_position: Offset at which relative positions are clipped.
        pooling: 'avg_featmap' or 'cls_token'.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: list[int],
        hidden_dims: list[int],
        img_size: int,
        patch_size: int,
        in_channels: int,
        num_classes: int,
        head_dim: int,
        max_relative_position: int,
        pooling: str,
    ):
        super().__init__()
        grid, self.pooling = img_size // patch_size, pooling
        self.patch_embed = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + 1, embed_dim))
        self.blocks = nn.ModuleList(
            PlainBlock(embed_dim, heads, head_dim, max_relative_position, hidden)
            for heads, hidden in zip(num_heads, hidden_dims, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        patch = torch.arange(grid**2)
        for name, position in (('rows', patch // grid), ('columns', patch % grid)):
            offset = (position[None, :] - position[:, None]).clamp(
                -max_relative_position, max_relative_position
            )
            index = F.pad(offset + max_relative_position + 1, (1, 0, 1, 0))  # class token: row 0
            self.register_buffer(name, index, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, self.rows, self.columns)
        x = self.norm(x)
        return self.head(x[:, 0] if self.pooling == 'cls_token' else x[:, 1:].mean(dim=1))


def load_plain_vit(folder: str | Path) -> tuple[PlainViT, dict]:
    """Load what ``tools/export.py`` wrote.

    Args:
        folder: Holds ``architecture.json`` and ``weights.safetensors``.

    Returns:
        The network in evaluation mode, and the whole content of the JSON; its ``preprocess``
        says how to normalise images.

    Raises:
        ValueError: If a file is missing or damaged, or the two do not belong together.
    """
    path = Path(folder) / 'weights.safetensors'
    description = _read_description(Path(folder) / 'architecture.json')
    weights = _read_weights(path, description.get('weights_sha256'))
    expected = _shapes(description['network'], len(weights))
    found = {name: tuple(value.shape) for name, value in weights.items()}
    odd = sorted(name for name, _ in expected.items() ^ found.items())
    if odd:  # so that no memory is asked for that the weights do not fill
        raise ValueError(
            f'{path} and architecture.json differ in {len(set(odd))} tensors, the first {odd[0]}: '
            f'{found.get(odd[0], "missing")} in the weights, {expected.get(odd[0], "none")} in the '
            'architecture'
        )
    model = PlainViT(**description['network'])
    model.load_state_dict(weights)
    return model.eval(), description


def _read_description(path: Path) -> dict:
    try:
        description = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    found = description.get('format') if isinstance(description, dict) else description
    if not isinstance(description, dict) or found != FORMAT:
        raise ValueError(f'{path} is of format {found!r:.100}, expected {FORMAT}')
    try:
        _check_network(description.get('network'))
        _check_preprocess(description.get('preprocess'), description['network']['in_channels'])
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return description


def _read_weights(path: Path, digest: str | None) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        weights = load(content)
    except Exception as error:  # of safetensors, the system, or torch
        raise ValueError(f'{path} cannot be read: {error}') from error
    if digest not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f'{path} is damaged, or not of architecture.json: its SHA-256 differs')
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f'{path}: {name} is of {value.dtype}, expected floating point')
    return weights


def _check_network(network) -> None:
    fields = {*_SIZES, 'num_heads', 'hidden_dims', 'pooling'}
    if not isinstance(network, dict) or set(network) != fields:
        raise ValueError(f'network must be a dict of {sorted(fields)}, got {network!r:.200}')
    for name in _SIZES:
        _check_size(network[name], f'network.{name}')
    for name in ('num_heads', 'hidden_dims'):
        if not isinstance(network[name], list) or not network[name]:
            raise ValueError(f'network.{name} must be a list, got {network[name]!r:.100}')
        for block, size in enumerate(network[name]):
            _check_size(size, f'network.{name}[{block}]')
    if len(network['num_heads']) != len(network['hidden_dims']):
        raise ValueError('network.num_heads and network.hidden_dims must be of one length')
    if network['pooling'] not in ('avg_featmap', 'cls_token'):
        raise ValueError(
            f"network.pooling must be 'avg_featmap' or 'cls_token', got {network['pooling']!r:.100}"
        )
    patches, rest = divmod(network['img_size'], network['patch_size'])
    if rest or patches > _MOST_PATCHES:
        raise ValueError(
            f'network.img_size must be a multiple of network.patch_size, {network["patch_size"]}, '
            f'up to {_MOST_PATCHES} times, got {network["img_size"]}'
        )


def _check_size(value, field: str) -> None:
    if type(value) is not int or not 0 < value < 10**9:  # a bool is an int, too
        raise ValueError(f'{field} must be a positive integer, got {value!r:.100}')


def _check_preprocess(preprocess, channels: int) -> None:
    if not isinstance(preprocess, dict):
        raise ValueError(f'preprocess must be a dict with mean and std, got {preprocess!r:.100}')
    for name in ('mean', 'std'):
        values = preprocess.get(name)
        fits = isinstance(values, list) and len(values) in (1, channels)
        if values is not None and not (fits and all(map(_is_finite, values))):
            raise ValueError(
                f'preprocess.{name} must be None or {channels} numbers, got {values!r:.100}'
            )
    if 0 in (preprocess.get('std') or ()):
        raise ValueError('preprocess.std must not be 0')


def _is_finite(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _shapes(network: dict, most: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a network of at most ``most`` tensors, without memory for them."""
    if len(network['num_heads']) > most:
        raise ValueError('the architecture has more blocks than the weights')
    try:
        with torch.device('meta'):
            state = PlainViT(**network).state_dict()
    except RuntimeError as error:  # more elements than can be counted
        raise ValueError(f'the architecture is too large: {error}') from error
    return {name: tuple(value.shape) for name, value in state.items()}
