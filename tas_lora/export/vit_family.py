"""Several subnets of one exported network, as small deltas that are switched at run time.

Needs torch, safetensors, and ``plain_vit.py`` next to it.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.plain_vit import PlainViT, check_network, read_description, read_weights, shapes_of

FORMAT = 'tas_lora.vit_family/1'
PARENT = 'parent'  # the member that is the whole network, as it was
LAYERS = ('attn.qkv', 'attn.proj', 'fc1', 'fc2')  # with experts, in the order of the gates

_MEMBER = ('embed_dim', 'num_heads', 'hidden_dims')


class ViTFamily(nn.Module):
    """A network and members cut out of it: images to logits of the active member.

    A member has the first channels, heads and hidden units of the parent's best blocks. Its weights
    are the parent's, plus a delta that its gates p mix from experts which all members share:

        W' = W[:o, :i] + sum_k p_k U_k[:o] D_k[:, :i] / r

    It begins with the parent, which has no delta.

    Args:
        description: Content of ``family.json``.
        weights: Content of ``family.safetensors``.
    """

    def __init__(self, description: dict, weights: dict[str, Tensor]):
        super().__init__()
        self.description, own = description, {}
        for name, value in weights.items():
            if name.startswith('parent.'):
                own[name.removeprefix('parent.')] = value
            else:
                self.register_buffer(name.replace('.', '/'), value)
        self.parent = PlainViT(**description['network'])
        self.parent.load_state_dict(own)
        self.requires_grad_(False)
        self.set_subnet(PARENT)

    @property
    def members(self) -> list[str]:
        """Names that :meth:`set_subnet` takes."""
        return [PARENT, *self.description['members']]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of the active member, for normalised images."""
        return self.net(images)

    def set_subnet(self, name: str) -> PlainViT:
        """Make a member the active one; returns it, an ordinary network of its own.

        Raises:
            ValueError: If there is no such member.
        """
        if name not in self.members:
            raise ValueError(f'there is no member {name!r}; choose one of {self.members}')
        self.net = self.parent if name == PARENT else self._cut(name)
        return self.net.eval().bake()

    def _cut(self, name: str) -> PlainViT:
        network = member_network(self.description, name)
        with torch.device('meta'):
            net = PlainViT(**network)
        net.grid = self.parent.grid
        blocks = running_blocks(self.description, len(network['num_heads']))
        state, whole = {}, self.parent.state_dict()
        for key, value in net.state_dict().items():
            source = _in_parent(key, blocks)
            rows, columns = self._parts(key)
            state[key] = _first(whole[source], value.shape, rows, columns)
        if self.description['members'][name].get('num_experts'):
            self._add_experts(state, self.get_buffer(f'gates/{name}'), blocks)
        net.load_state_dict(state, assign=True)
        return net.requires_grad_(False)

    def _parts(self, key: str) -> tuple[int, int]:
        """Parts that the rows and columns of a tensor consist of, each of which is cut."""
        if key.endswith('qkv.weight'):
            return 3, 1
        if key.endswith('qkv.bias'):  # AutoFormer cuts them as one vector
            return (3 if self.description['qkv_bias_by_part'] else 1), 1
        return 1, 2 if key == 'head.weight' and self.parent.pooling == 'cls_avg' else 1

    def _add_experts(self, state: dict[str, Tensor], gates: Tensor, blocks: list[int]) -> None:
        """Add the deltas, in place; ``gates`` are (L, 4, K)."""
        for i, block in enumerate(blocks):
            for layer, gate in zip(LAYERS, gates[i], strict=True):
                source, name = f'blocks.{block}.{layer}', f'blocks.{i}.{layer}.weight'
                if source in self.description['experts']:
                    place = f'experts.{source}'.replace('.', '/')
                    factors = self.get_buffer(f'{place}/down'), self.get_buffer(f'{place}/up')
                    state[name] = merged(state[name], *factors, gate, self._parts(name)[0])


def merged(weight: Tensor, down: Tensor, up: Tensor, gates: Tensor, parts: int = 1) -> Tensor:
    """W' = W + sum_k p_k U_k D_k / r, in one product.

    Args:
        weight: W, (o, i).
        down: Down projections D of the parent, (K, r, I).
        up: Up projections U, (K, O, r).
        gates: p; of neighbouring experts they are summed if the layer has fewer.
        parts: Parts that the rows consist of, each of which is cut.
    """
    count, rank, _ = down.shape
    place = torch.arange(len(gates), device=gates.device) * count // len(gates)
    gates = gates.new_zeros(count).index_add(0, place, gates)
    down = down[..., : weight.shape[1]] * (gates / rank)[:, None, None]
    up = up.unflatten(1, (parts, -1))[:, :, : len(weight) // parts].flatten(1, 2)
    return torch.addmm(weight, up.transpose(0, 1).flatten(1), down.flatten(0, 1))


def load_family(folder: str | Path) -> ViTFamily:
    """Load what ``tools/export_family.py`` wrote: ``family.json`` and ``family.safetensors``.

    The JSON's ``preprocess`` says how to prepare images, as for ``load_plain_vit``.

    Raises:
        ValueError: If a file is missing or damaged, or the two do not belong together.
    """
    path = Path(folder) / 'family.json'
    description = read_description(path, FORMAT)
    try:
        _check(description)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    file = Path(folder) / 'family.safetensors'
    weights = read_weights(
        file, description, lambda count: _shapes(description, count), described_in=path.name
    )
    return ViTFamily(description, weights).eval()


def is_name(name: str) -> bool:
    """Whether a member can be called so."""
    return name != PARENT and re.fullmatch(r'[\w-]+', name, re.ASCII) is not None


def member_network(description: dict, name: str) -> dict:
    """Arguments of the ``PlainViT`` that a member is."""
    member = description['members'][name]
    return description['network'] | {size: member[size] for size in _MEMBER}


def running_blocks(description: dict, depth: int) -> list[int]:
    """The parent's blocks that a member of this depth runs, in order."""
    return sorted(description['block_order'][:depth])


def _first(value: Tensor, shape: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """The first entries of each part along the axes of a tensor."""
    value = value.unflatten(0, (rows, -1))[:, : shape[0] // rows].flatten(0, 1)
    if len(shape) == 2:
        value = value.unflatten(1, (columns, -1))[..., : shape[1] // columns].flatten(1)
    elif len(shape) == 3:  # tokens (1, N, C)
        value = value[..., : shape[2]]
    return value


def _in_parent(key: str, blocks: list[int]) -> str:
    if not key.startswith('blocks.'):
        return key
    _, i, rest = key.split('.', 2)
    return f'blocks.{blocks[int(i)]}.{rest}'


def _check(description: dict) -> None:
    """Refuse fields that are not valid; those of ``plain_vit`` have been checked."""
    parent, depth = description['network'], len(description['network']['num_heads'])
    order, members, experts = (description.get(x) for x in ('block_order', 'members', 'experts'))
    if not isinstance(order, list) or sorted(order, key=str) != sorted(range(depth), key=str):
        raise ValueError(f'block_order must hold each block from 0 to {depth - 1} once')
    if type(description.get('qkv_bias_by_part')) is not bool:
        raise ValueError('qkv_bias_by_part must be true or false')
    if not isinstance(members, dict) or not all(map(is_name, members)):
        raise ValueError(
            'members must be a dict of names: letters, digits, dashes and underscores, and not '
            f'{PARENT!r}'
        )
    for name, member in members.items():
        fits = isinstance(member, dict) and set(_MEMBER) <= set(member)
        if not fits or type(member.get('num_experts', 0)) is not int:
            raise ValueError(f'members.{name} must be a dict of {_MEMBER} and num_experts')
        check_network(member_network(description, name))
        if not _is_inside(member, parent, order):
            raise ValueError(f'members.{name} must be a slice of the parent')
    names = [f'blocks.{i}.{layer}' for i in range(depth) for layer in LAYERS]
    if not isinstance(experts, dict) or not set(experts) <= set(names):
        raise ValueError(f'experts must be a dict of layers such as {names[0]}')
    for name, sizes in experts.items():
        pair = isinstance(sizes, list) and len(sizes) == 2
        if not pair or any(type(x) is not int or not 0 < x < 10**6 for x in sizes):
            raise ValueError(f'experts.{name} must be the number of experts and their rank')


def _is_inside(member: dict, parent: dict, order: list[int]) -> bool:
    depth = len(member['num_heads'])
    blocks = sorted(order[:depth])
    if depth > len(order) or member['embed_dim'] > parent['embed_dim']:
        return False
    return all(
        size <= parent[name][block]
        for name in ('num_heads', 'hidden_dims')
        for size, block in zip(member[name], blocks, strict=True)
    )


def _shapes(description: dict, count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by name."""
    parent = shapes_of(description['network'], count)
    found = {f'parent.{name}': shape for name, shape in parent.items()}
    for name, (experts, rank) in description['experts'].items():
        rows, columns = parent[f'{name}.weight']
        found[f'experts.{name}.down'] = experts, rank, columns
        found[f'experts.{name}.up'] = experts, rows, rank
    for name, member in description['members'].items():
        if member.get('num_experts'):
            depth = len(member['num_heads'])
            found[f'gates.{name}'] = depth, len(LAYERS), member['num_experts']
    return found
