"""The router of TAS-LoRA: from an architecture to mixture weights."""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...checks import natural, one_of, positive
from ...errors import UserError
from ...registry import MODELS, TASK_UTILS, build_part
from ...structures import SearchSpace, Subnet
from ..layers import LAYER_KINDS, check_weights
from .grouping import (
    BLOCK_ATTRIBUTES,
    SUBNET_ATTRIBUTES,
    ArchitectureGroups,
    BlockGroups,
    block_attributes,
    checked_attributes,
)

LAYERS_PER_BLOCK = len(LAYER_KINDS)


def group_wise_bias(num_experts: int, num_blocks: int, beta: float) -> Tensor:
    """Initial biases c' of the router heads, one head per group (group-wise initialisation).

    They are zero, except for ``beta`` at expert g of group g. With zero weights the softmax is
    then e^beta / (e^beta + K - 1) at that expert.

    Returns:
        (groups, blocks, layers, K), with as many groups as experts.
    """
    bias = beta * torch.eye(num_experts)
    return bias[:, None, None, :].repeat(1, num_blocks, LAYERS_PER_BLOCK, 1)


class Router(BaseModule):
    """Base class: gives every layer of a subnet its mixture weights."""

    num_shared = 0  # experts at the start that every subnet uses, with the constant gate 1
    block_order: Sequence[int] | None = None  # the backbone's, set by the classifier


class RouterHead(Router):
    """From the blocks of a subnet to mixture weights; subclasses define the encoder.

    Every attribute of a block or of the subnet has a learned embedding per choice. Embeddings are
    summed within each of the two levels, then concatenated. The encoder turns the sequence into
    one hidden state per block, which goes through a linear head per (position, layer kind) and a
    softmax. The paper does not print the sizes; they follow from its parameter counts.

    Args:
        space: The search space, or its dict.
        attributes: Input of the router and, by default, of the grouping. Some of 'num_heads',
            'mlp_ratio', 'embed_dim', 'depth', and 'patch_size' if the space has several.
        init: 'group_wise': each group of blocks has its own head, which starts at the group's
            own expert, so K is the number of groups. 'random': one head for all.
        grouping: Config of the groups, by default ``tas_lora.ArchitectureGroups`` of the
            attributes.
        num_experts: Experts to route to, by default the number of groups; any other needs
            ``init='random'``.
        hidden_size: Width d of the hidden state and of each embedding.
        beta: Initial logit of the expert assigned to a group.
        shared: Further experts that every subnet uses with the constant gate 1, and so trains, next
            to those it is routed to. They are the first ones of a layer, and count in K.
        init_cfg: MMEngine's initialisation config.

    Raises:
        UserError: On an unknown attribute or ``init``, or if the number of experts must be that
            of the groups and is not.
    """

    def __init__(
        self,
        space: SearchSpace | dict,
        attributes: Sequence[str] = ('num_heads', 'mlp_ratio', 'embed_dim'),
        init: str = 'group_wise',
        grouping: dict | None = None,
        num_experts: int | None = None,
        hidden_size: int = 128,
        beta: float = 3.0,
        shared: int = 0,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.space = SearchSpace.coerce(space)
        self.attributes = checked_attributes(attributes, self.space)
        self.num_blocks = max(self.space.depth)
        self.groups = self._build_groups(grouping)
        routed = self._count_experts(init, num_experts)
        self.num_shared = natural(shared, 'shared', most=64)
        self.num_experts = routed + self.num_shared  # K
        shape = self._head_shape(init, positive(hidden_size, 'hidden_size', int), routed)
        choices = {name: getattr(self.space, name) for name in self.attributes}
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(len(values), hidden_size) for name, values in choices.items()}
        )
        self.encoder = self.build_encoder(len(self._levels()) * hidden_size, hidden_size)
        self._build_heads(init, shape, positive(beta, 'beta', float))
        # Indices are made of these on the device: a GPU waits for copies from the host.
        largest = max(*shape[:2], *map(len, choices.values()))
        self.register_buffer('numbers', torch.arange(largest), persistent=False)

    def build_encoder(self, in_features: int, hidden_size: int) -> nn.Module:
        """Build the module that :meth:`encode` runs."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Map (L, in_features), one row per block, to hidden states (L, d)."""
        raise NotImplementedError

    def forward(self, subnet: Subnet) -> Tensor:
        """Mixture weights of every layer of ``subnet``.

        Returns:
            (L, 4, K): ones for shared experts, then a point of the simplex; layers in the order
            qkv, proj, fc1, fc2.

        Raises:
            UserError: If a block is outside the space's choices, or in no group.
        """
        head, block, *choices = self._index(subnet)
        hidden = self.encode(self._embed(choices))  # (L, d)
        logits = torch.einsum('ld,ljdk->ljk', hidden, self.head_weight[head, block])
        gates = (logits + self.head_bias[head, block]).softmax(dim=-1)
        return F.pad(gates, (self.num_shared, 0), value=1.0) if self.num_shared else gates

    def places_of(self, subnet: Subnet) -> list[int]:
        """Position of every block: its place in ``block_order``, so that it is its own always."""
        if self.block_order is None:
            return list(range(subnet.depth))
        return [self.block_order.index(i) for i in sorted(self.block_order[: subnet.depth])]

    def head_of_blocks(self, subnet: Subnet) -> list[int]:
        """Index of the head of every block."""
        self.check(subnet)
        if len(self.head_weight) == 1:
            return [0] * subnet.depth
        return self.groups(subnet)

    def check(self, subnet: Subnet) -> None:
        """Raise :class:`UserError` unless the router can read and group ``subnet``."""
        if subnet.depth > self.num_blocks:
            raise UserError(
                f'the subnet has {subnet.depth} blocks, the router {self.num_blocks} positions; '
                f'choose a depth of {self.space.depth}'
            )
        self._readable_groups(subnet)  # raises if a choice has no embedding
        self.groups(subnet)

    def _build_groups(self, grouping: dict | None):
        self._readable_groups = ArchitectureGroups(self.space, self.attributes)
        grouping = dict(type='tas_lora.ArchitectureGroups') if grouping is None else grouping
        default = dict(num_groups=len(self._readable_groups))
        if isinstance(grouping, Mapping) and 'ArchitectureGroups' in str(grouping.get('type')):
            default = dict(attributes=self.attributes)
        return build_part(
            TASK_UTILS, grouping, BlockGroups, 'grouping', space=self.space, **default
        )

    def _count_experts(self, init: str, num_experts: int | None) -> int:
        one_of(init, 'init', ('group_wise', 'random'))
        if num_experts is None:
            return len(self.groups)
        positive(num_experts, 'num_experts', int)
        if init == 'group_wise' and num_experts != len(self.groups):
            raise UserError(
                f'is {num_experts}, but there are {len(self.groups)} groups; with '
                "init='group_wise' both must be equal",
                'num_experts',
            )
        return num_experts

    def _head_shape(self, init: str, hidden_size: int, routed: int) -> tuple[int, ...]:
        """(heads, blocks, layers, d, routed); raises an error if heads or encoder are too large."""
        heads = routed if init == 'group_wise' else 1
        shape = (heads, self.num_blocks, LAYERS_PER_BLOCK, hidden_size, routed)
        check_weights(prod(shape) + 16 * hidden_size**2, 'hidden_size or groups')
        return shape

    def _build_heads(self, init: str, shape: tuple[int, ...], beta: float) -> None:
        self.head_weight = nn.Parameter(torch.zeros(shape))
        if init == 'group_wise':
            self.head_bias = nn.Parameter(group_wise_bias(shape[0], self.num_blocks, beta))
        else:  # as nn.Linear
            self.head_bias = nn.Parameter(torch.zeros(shape[:-2] + shape[-1:]))
            for parameter in (self.head_weight, self.head_bias):
                nn.init.uniform_(parameter, -(shape[-2] ** -0.5), shape[-2] ** -0.5)

    def _levels(self) -> list[list[str]]:
        """The attributes of each level, block and subnet; empty levels are left out."""
        levels = (BLOCK_ATTRIBUTES, SUBNET_ATTRIBUTES)
        return [used for level in levels if (used := [n for n in self.attributes if n in level])]

    def _index(self, subnet: Subnet) -> Tensor:
        """Head, position and choice of every attribute of each block, (2 + attributes, L)."""
        rows = [self.head_of_blocks(subnet), self.places_of(subnet)]
        blocks = [block_attributes(subnet, b, self.attributes) for b in range(subnet.depth)]
        for name, values in zip(self.attributes, zip(*blocks, strict=True), strict=True):
            rows.append([getattr(self.space, name).index(value) for value in values])
        numbers = self.numbers.unbind()
        return torch.stack([numbers[i] for row in rows for i in row]).view(len(rows), -1)

    def _embed(self, choices: Sequence[Tensor]) -> Tensor:
        """Input of the encoder, one row per block: (L, levels x d)."""
        embedded = {
            name: self.embeddings[name](index)
            for name, index in zip(self.attributes, choices, strict=True)
        }
        levels = ([embedded[name] for name in level] for level in self._levels())
        return torch.cat([reduce(torch.add, level) for level in levels], dim=-1)


@MODELS.register_module()
class LSTMRouterHead(RouterHead):
    """The paper's router: one LSTM layer over the blocks. Arguments as :class:`RouterHead`."""

    layer = nn.LSTM

    def build_encoder(self, in_features: int, hidden_size: int) -> nn.Module:
        """One recurrent layer."""
        return self.layer(in_features, hidden_size)

    def encode(self, x: Tensor) -> Tensor:
        """Hidden states of the sequence of blocks."""
        return self.encoder(x)[0]


@MODELS.register_module()
class GRURouterHead(LSTMRouterHead):
    """A GRU instead of the LSTM. Arguments as :class:`RouterHead`."""

    layer = nn.GRU


@MODELS.register_module()
class MLPRouterHead(RouterHead):
    """Two linear layers on each block alone: a router that does not see neighbouring blocks.

    Arguments as :class:`RouterHead`. The paper does not print the sizes of its MLP.
    """

    def build_encoder(self, in_features: int, hidden_size: int) -> nn.Module:
        """Two linear layers with a ReLU between."""
        return nn.Sequential(
            nn.Linear(in_features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Hidden state of each block from that block alone."""
        return self.encoder(x)


@MODELS.register_module()
class SingleExpertHead(Router):
    """No routing: one LoRA shared by all subnets (K = 1, the paper's ablation).

    Args:
        space: The search space, or its dict.
        init_cfg: MMEngine's initialisation config.
    """

    num_experts = 1
    attributes = ()

    def __init__(self, space: SearchSpace | dict, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        self.space = SearchSpace.coerce(space)
        self.register_buffer('gate', torch.ones(()), persistent=False)

    def check(self, subnet: Subnet) -> None:
        """Accept any subnet."""

    def forward(self, subnet: Subnet) -> Tensor:
        """Ones, (L, 4, 1)."""
        return self.gate.expand(subnet.depth, LAYERS_PER_BLOCK, 1)
