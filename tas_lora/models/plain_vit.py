"""An exported subnet as an ordinary vision transformer. Needs only torch and safetensors."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

FORMAT = 'tas_lora.plain_vit/1'
POOLINGS = ('avg_featmap', 'cls_token', 'cls_avg')

_SIZES = ('embed_dim', 'img_size', 'patch_size', 'in_channels', 'num_classes', 'head_dim')
_FIELDS = {*_SIZES, 'max_relative_position', 'num_heads', 'hidden_dims', 'pooling'}
_CHOICES = dict(  # of optional fields; the first is the default
    prefix_positions=(True, False),
    pre_norm=(False, True),
    final_norm=('tokens', 'pooled', 'none'),
    act=('gelu', 'gelu_tanh', 'quick_gelu'),
)
_ORDERS = ('RGB', 'BGR', 'as loaded')
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming')
_MOST_PATCHES = 64  # along a side; indices of relative positions grow with its third power


class Grid(nn.Module):
    """Table indices of the offset of each token from each row and column of patches.

    A token sees W lines: G rows, G columns, a blank, one line that holds all tokens, and more
    blanks that make D + W a multiple of 16, which is fast in kernels. ``to_offset`` (N, W) maps
    lines to the 2 (2G - 1) offsets of both axes. ``to_line`` (N, 4G - 1) maps back, its last entry
    to the line of all tokens. Both map to a blank if there is no counterpart. ``marks`` (N, W) are
    1 at the lines of a token. The class token, the first, is on no row or column.
    """

    def __init__(self, side: int, max_offset: int, head_dim: int):
        super().__init__()
        self.sizes = side, max_offset, head_dim
        for name, value in self.indices().items():
            self.register_buffer(name, value, persistent=False)

    def indices(self) -> dict[str, Tensor]:
        """Compute all buffers, by name."""
        side, most, head_dim = self.sizes
        span, blanks = 2 * side - 1, 2 + -(head_dim + 2 * side + 2) % 16
        patch, axis, shift = torch.arange(side**2), torch.arange(2)[:, None], side - 1
        place = torch.stack([patch // side, patch % side], dim=1)[..., None]  # (patches, 2, 1)
        offset = torch.arange(span) - shift
        to_offset, line = torch.arange(side) - place + shift + span * axis, place + offset
        to_line = torch.where((line >= 0) & (line < side), line + side * axis, 2 * side)
        to_line = F.pad(to_line.flatten(1), (0, 1, 1, 0), value=2 * side)
        marks = F.pad(F.one_hot(place[..., 0], side).flatten(1).float(), (0, blanks, 1, 0))
        to_line[:, -1], marks[:, 2 * side + 1] = 2 * side + 1, 1  # the line of all tokens
        return dict(
            table_rows=offset.clamp(-most, most) + most + 1,  # row 0: pairs with the class token
            to_offset=F.pad(to_offset.flatten(1), (0, blanks, 1, 0), value=2 * span),
            to_line=to_line,
            marks=marks,
        )


class PlainAttention(nn.Module):
    """Attention of H heads of width D, with AutoFormer's relative positions clipped at R, or none.

    Softmax ignores what all keys of a query share, so key positions may be taken relative to the
    class token's. What is left depends only on a key's row and column. Queries are extended by
    their products with these positions, keys and values by marks. The output then holds how much
    attention each row and column got, which weights their value positions. Those of the class
    token, which all keys share, have a weight of 1. A single kernel computes this exactly.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, max_offset: int | None):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, width)
        tables = () if max_offset is None else ('key_rows', 'key_columns')
        for name in (*tables, *(name.replace('key', 'value') for name in tables)):
            table = nn.Parameter(torch.zeros(2 * max_offset + 2, head_dim))
            self.register_parameter(name, table)
        for name in ('baked_keys', 'baked_values'):
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: Tensor, grid: Grid | None) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        (B, N, _), H, D = x.shape, self.num_heads, self.head_dim
        qkv = self.qkv(x).view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, D)
        y = F.scaled_dot_product_attention(*qkv) if grid is None else self.relative(*qkv, grid)
        return self.proj(y.transpose(1, 2).flatten(2))

    def relative(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """Attention with relative positions; all are (B, H, N, D)."""
        (B, H, _, D), (keys, values) = q.shape, self.by_offset(grid)
        marks = grid.marks.to(q.dtype).expand(B, H, -1, -1)
        seen = (q @ keys.T).gather(-1, grid.to_offset.expand(B, H, -1, -1))  # (B, H, N, W)
        wide = (torch.cat(pair, dim=-1) for pair in ((q, seen), (k, marks), (v, marks)))
        y = F.scaled_dot_product_attention(*wide, scale=D**-0.5)  # (B, H, N, D + W)
        by_offset = y[..., D:].gather(-1, grid.to_line.expand(B, H, -1, -1))
        return y[..., :D] + by_offset @ values

    def by_offset(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Key and value vectors of all offsets relative to the class token's: (4G - 1, D) each.

        The last one is for all tokens: zero for keys, the class token's own for values.
        """
        if self.baked_keys is not None:
            return self.baked_keys, self.baked_values
        pairs = (self.key_rows, self.key_columns), (self.value_rows, self.value_columns)
        keys, values = ([(table - table[0])[grid.table_rows] for table in pair] for pair in pairs)
        rows, columns = pairs[1]
        last = (rows + columns)[:1]
        return torch.cat([*keys, torch.zeros_like(last)]), torch.cat([*values, last])

    @torch.no_grad()
    def bake(self, grid: Grid | None) -> None:
        """Cache the result of :meth:`by_offset`; with None, drop it and read the tables again."""
        self.baked_keys = self.baked_values = None
        if grid is not None:
            self.baked_keys, self.baked_values = self.by_offset(grid)

    def train(self, mode: bool = True) -> 'PlainAttention':
        """As in ``nn.Module``; training mode drops the cached vectors."""
        if mode:
            self.bake(None)
        return super().train(mode)

    def _load_from_state_dict(self, *args) -> None:
        self.bake(None)
        super()._load_from_state_dict(*args)


class PlainBlock(nn.Module):
    """Pre-norm block of :class:`PlainAttention` and an MLP of width ``hidden``."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        max_offset: int | None,
        hidden: int,
        norm_eps: float = 1e-5,
        act: str = 'gelu',
    ):
        super().__init__()
        self.act = act
        self.attn_norm = nn.LayerNorm(width, norm_eps)
        self.attn = PlainAttention(width, num_heads, head_dim, max_offset)
        self.ffn_norm = nn.LayerNorm(width, norm_eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: Grid | None) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        x = x + self.attn(self.attn_norm(x), grid)
        return x + self.fc2(self.activate(self.fc1(self.ffn_norm(x))))

    def activate(self, x: Tensor) -> Tensor:
        """Activation of the MLP."""
        if self.act == 'quick_gelu':
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x, approximate='tanh' if self.act == 'gelu_tanh' else 'none')


class PlainViT(nn.Module):
    """A vision transformer of fixed size: images (B, channels, side, side) to logits.

    Args:
        embed_dim: Width C.
        num_heads, hidden_dims: Heads and MLP width of each block.
        img_size, patch_size: Sides of the image and of a patch in pixels.
        in_channels, num_classes: Numbers of image channels and of logits. Without classes the
            output is the pooled feature.
        head_dim: Width of a head.
        max_relative_position: Offset at which relative positions are clipped; None: there are none.
        pooling: 'avg_featmap', the mean over patches; 'cls_token'; or 'cls_avg', both, one after
            the other.
        num_prefix_tokens: Learned tokens P in front of the patches: the class token, and registers.
        prefix_positions: Whether they have position embeddings.
        pre_norm: Whether a LayerNorm precedes the blocks.
        final_norm: The last LayerNorm is over the 'tokens', over the 'pooled' feature, or 'none'.
        norm_eps: Epsilon of LayerNorms.
        act: Activation of the MLPs: 'gelu', 'gelu_tanh' or 'quick_gelu'.
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
        max_relative_position: int | None,
        pooling: str,
        num_prefix_tokens: int = 1,
        prefix_positions: bool = True,
        pre_norm: bool = False,
        final_norm: str = 'tokens',
        norm_eps: float = 1e-5,
        act: str = 'gelu',
    ):
        super().__init__()
        self.side, self.pooling, self.final_norm = img_size // patch_size, pooling, final_norm
        self.num_prefix_tokens, self.prefix_positions = num_prefix_tokens, prefix_positions
        self.image_shape = in_channels, img_size, img_size
        self.patch_embed = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        rows = self.side**2 + num_prefix_tokens * prefix_positions
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim))
        if num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.zeros(1, num_prefix_tokens, embed_dim))
        self.pre_norm = nn.LayerNorm(embed_dim, norm_eps) if pre_norm else nn.Identity()
        rest = norm_eps, act
        self.blocks = nn.ModuleList(
            PlainBlock(embed_dim, heads, head_dim, max_relative_position, hidden, *rest)
            for heads, hidden in zip(num_heads, hidden_dims, strict=True)
        )
        has_norm, parts = final_norm != 'none', 2 if pooling == 'cls_avg' else 1
        self.norm = nn.LayerNorm(embed_dim, norm_eps) if has_norm else nn.Identity()
        self.head = nn.Linear(parts * embed_dim, num_classes) if num_classes else nn.Identity()
        has_grid = max_relative_position is not None
        self.grid = Grid(self.side, max_relative_position, head_dim) if has_grid else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images; raises the errors of :meth:`embed`."""
        return self.head(self.pool(self.tokens(images)))

    def tokens(self, images: Tensor) -> Tensor:
        """Features of all tokens (B, N, C), prefix tokens first; raises those of :meth:`embed`."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x, self.grid)
        return self.finish(x)

    def embed(self, images: Tensor) -> Tensor:
        """Input of the first block, (B, N, C).

        Raises:
            ValueError: If the images are not (B, channels, side, side).
        """
        if tuple(images.shape[1:]) != self.image_shape:
            expected = ', '.join(map(str, self.image_shape))
            raise ValueError(f'images must be (B, {expected}), got {tuple(images.shape)}')
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = x if self.prefix_positions else x + self.pos_embed
        if self.num_prefix_tokens:  # len(x) would be exported as a constant
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pre_norm(x + self.pos_embed if self.prefix_positions else x)

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm, if it is over tokens, to the last block's output (B, N, C)."""
        return self.norm(tokens) if self.final_norm == 'tokens' else tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """Input of the classifier, (B, C), or (B, 2 C) with 'cls_avg'."""
        if self.pooling == 'cls_token':
            x = tokens[:, 0]
        else:
            x = tokens[:, self.num_prefix_tokens :].mean(dim=1)
        if self.pooling == 'cls_avg':
            x = torch.cat([tokens[:, 0], x], dim=1)
        return self.norm(x) if self.final_norm == 'pooled' else x

    def bake(self) -> 'PlainViT':
        """Compute once what depends only on weights, for faster inference; return itself.

        ``train()`` and ``load_state_dict`` undo it. Do not change the tables of relative positions
        in place otherwise: it would have no effect.
        """
        for block in self.blocks:
            block.attn.bake(self.grid)
        return self


def load_plain_vit(folder: str | Path) -> tuple[PlainViT, dict]:
    """Load what ``tools/export.py`` wrote.

    Args:
        folder: Has ``architecture.json`` and ``weights.safetensors``.

    Returns:
        The network in evaluation mode, baked (call ``train()`` before you train it), and the
        content of the JSON. Its ``preprocess`` says how to prepare images: ``mean`` and ``std`` of
        values 0..255, or None; ``channel_order``; ``interpolation``; and ``crop_ratio``, the part
        of the short edge that a central crop keeps, or None to resize without a crop. Where the
        test differed it also has ``backend`` 'cv2' for OpenCV's resizing; ``color`` 'grey' if
        images are read as grey; ``squash`` to resize to a square before the crop; ``pad_value``
        to fit the long edge and fill the rest; or ``unknown_steps``, those it has no terms for.

    Raises:
        ValueError: If a file is missing or damaged, or the two do not belong together.
    """
    description = read_description(Path(folder) / 'architecture.json', FORMAT)
    path, network = Path(folder) / 'weights.safetensors', description['network']
    weights = read_weights(path, description, lambda count: shapes_of(network, count))
    model = PlainViT(**network)
    model.load_state_dict(weights)
    return model.eval().bake(), description


def read_description(path: Path, form: str) -> dict:
    """Read a JSON file that says what the weights next to it are; ``form`` is its format.

    Raises:
        ValueError: If it cannot be read, or a field is not valid.
    """
    _check_file(path)
    try:
        description = json.loads(path.read_text('utf-8'))
        json.dumps(description, ensure_ascii=False).encode('utf-8')  # no half of a surrogate pair
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    found = description.get('format') if isinstance(description, dict) else description
    if not isinstance(description, dict) or found != form:
        raise ValueError(f'{path} is of format {found!r:.100}, expected {form}')
    try:
        check_network(description.get('network'))
        _check_preprocess(description.get('preprocess'), description['network']['in_channels'])
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return description


def read_weights(
    path: Path,
    description: dict,
    expected: Callable[[int], dict[str, tuple[int, ...]]],
    described_in: str = 'architecture.json',
) -> dict[str, Tensor]:
    """Read weights by name.

    Args:
        path: File in safetensors.
        description: Of :func:`read_description`; has the file's digest, if it is known.
        expected: Gives the shapes by name that belong to the description; it is told the number
            of tensors in the file.
        described_in: File of the description.

    Raises:
        ValueError: If the file is missing or damaged, or does not belong to the description.
    """
    _check_file(path)
    try:
        digest = hashlib.sha256()
        with path.open('rb') as file:
            while block := file.read(2**20):
                digest.update(block)
        with safe_open(path, 'pt') as weights:
            names = weights.keys()
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # from safetensors, the system or torch
        raise ValueError(f'{path} cannot be read: {error}') from error
    if description.get('weights_sha256') not in (None, digest.hexdigest()):
        raise ValueError(f'{path} is damaged, or does not match {described_in}: SHA-256 differs')
    expected = expected(len(found))
    odd = sorted({name for name, _ in expected.items() ^ found.items()})
    if odd:  # checked first, so that only memory that the weights fill is allocated
        was, is_now = expected.get(odd[0], 'none'), found.get(odd[0], 'missing')
        raise ValueError(
            f'{path} and {described_in} differ in {len(odd)} tensors, the first {odd[0]}: '
            f'{is_now} in the weights, {was} in the architecture'
        )
    try:
        weights = load_file(path)
    except Exception as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    odd = [name for name, value in weights.items() if not value.is_floating_point()]
    if odd:
        raise ValueError(f'{path}: {odd[0]} is of {weights[odd[0]].dtype}, expected floating point')
    return weights


def _check_file(path: Path) -> None:
    """Refuse a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f'{path} cannot be read: it is not a file')


def check_network(network) -> None:
    """Raise ``ValueError`` unless these are arguments of :class:`PlainViT`."""
    optional = {*_CHOICES, 'num_prefix_tokens', 'norm_eps'}
    is_whole = isinstance(network, dict) and _FIELDS <= set(network) <= _FIELDS | optional
    what = f'a dict of {sorted(_FIELDS)}, and of any of {sorted(optional)}'
    _require(is_whole, 'network', what, network)
    for name in _SIZES:
        _check_size(network[name], f'network.{name}', least=int(name != 'num_classes'))
    for name in ('num_heads', 'hidden_dims'):
        sizes = network[name]
        _require(isinstance(sizes, list) and sizes, f'network.{name}', 'a list', sizes)
        for block, size in enumerate(sizes):
            _check_size(size, f'network.{name}[{block}]')
    if len(network['num_heads']) != len(network['hidden_dims']):
        raise ValueError('network.num_heads and network.hidden_dims must have the same length')
    side, patch, reach = (network[n] for n in ('img_size', 'patch_size', 'max_relative_position'))
    most = 10**9 if reach is None else _MOST_PATCHES
    _check_size(1 if reach is None else reach, 'network.max_relative_position')
    multiple = f'a multiple of network.patch_size, {patch}, up to {most} times'
    fits = side % patch == 0 and side // patch <= most
    _require(fits, 'network.img_size', multiple, side)
    _check_style(network)


def _check_style(network: dict) -> None:
    """Fields that most exports lack, and the pooling."""
    for name, known in dict(_CHOICES, pooling=POOLINGS).items():
        value = network.get(name, known[0])
        fits = any(value is each or (type(value) is str and value == each) for each in known)
        _require(fits, f'network.{name}', ' or '.join(map(repr, known)), value)
    eps, prefix = network.get('norm_eps', 1e-5), network.get('num_prefix_tokens', 1)
    _require(_is_finite(eps) and eps > 0, 'network.norm_eps', 'a positive number', eps)
    least = 0 if network['pooling'] == 'avg_featmap' else 1  # the others need a class token
    _check_size(prefix, 'network.num_prefix_tokens', least)
    if prefix != 1 and network['max_relative_position'] is not None:
        raise ValueError('network.num_prefix_tokens must be 1 with relative positions')
    if network['pooling'] == 'cls_avg' and network.get('final_norm') == 'pooled':
        raise ValueError("network.final_norm must not be 'pooled' with the pooling 'cls_avg'")


def _check_size(value, field: str, least: int = 1) -> None:
    fits = type(value) is int and least <= value < 10**9  # a bool is also an int
    _require(fits, field, 'a positive integer' if least else 'an integer from 0', value)


def _check_preprocess(preprocess, channels: int) -> None:
    is_dict = isinstance(preprocess, dict)
    _require(is_dict, 'preprocess', 'a dict with mean and std', preprocess)
    for name in ('mean', 'std'):
        values = preprocess.get(name)
        fits = isinstance(values, list) and len(values) in (1, channels)
        fits = values is None or (fits and all(map(_is_finite, values)))
        _require(fits, f'preprocess.{name}', f'None or {channels} numbers', values)
    if 0 in (preprocess.get('std') or ()):
        raise ValueError('preprocess.std must not be 0')
    for name, known in (('channel_order', _ORDERS), ('interpolation', INTERPOLATIONS)):
        value = preprocess.get(name, known[0])
        _require(value in known, f'preprocess.{name}', ' or '.join(map(repr, known)), value)
    ratio = preprocess.get('crop_ratio', 1.0)  # None: resize without a crop
    fits = ratio is None or (_is_finite(ratio) and 0.1 <= ratio <= 1)
    _require(fits, 'preprocess.crop_ratio', 'None or a number from 0.1 to 1', ratio)
    _check_rarer(preprocess)


def _check_rarer(preprocess: dict) -> None:
    """Fields of ``preprocess`` that most exports lack."""
    backend, method = preprocess.get('backend', 'pillow'), preprocess.get('interpolation')
    fits = backend == 'pillow' or (backend == 'cv2' and method in INTERPOLATIONS[:3])
    what = f"'pillow', or 'cv2' with interpolation {' or '.join(map(repr, INTERPOLATIONS[:3]))}"
    _require(fits, 'preprocess.backend', what, backend)
    color, squash = preprocess.get('color', 'grey'), preprocess.get('squash', False)
    _require(color == 'grey', 'preprocess.color', "'grey' or absent", color)
    _require(type(squash) is bool, 'preprocess.squash', 'true or false', squash)
    value, steps = preprocess.get('pad_value'), preprocess.get('unknown_steps', [])
    fits = value is None or (type(value) is int and 0 <= value <= 255)
    _require(fits, 'preprocess.pad_value', 'None or an integer from 0 to 255', value)
    fits = isinstance(steps, list) and all(isinstance(step, str) for step in steps)
    _require(fits, 'preprocess.unknown_steps', 'a list of names', steps)


def _is_finite(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _require(fits, field: str, what: str, value) -> None:
    if not fits:
        raise ValueError(f'{field} must be {what}, got {value!r:.200}')


def shapes_of(network: dict, most: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a network of up to ``most`` blocks, without allocating tensors."""
    if len(network['num_heads']) > most:
        raise ValueError('the architecture has more blocks than the weights')
    try:
        with torch.device('meta'):
            state = PlainViT(**network).state_dict()
    except RuntimeError as error:  # more elements than an integer can count
        raise ValueError(f'the architecture is too large: {error}') from error
    return {name: tuple(value.shape) for name, value in state.items()}
