"""The router of TAS-LoRA: reads an architecture, answers with mixture weights."""

from collections.abc import Sequence
from itertools import product

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import UserError
from ...registry import MODELS
from ...structures import SearchSpace, Subnet

LAYERS_PER_BLOCK = 4  # qkv, proj, fc1, fc2
BLOCK_ATTRIBUTES = ('num_heads', 'mlp_ratio')
SUBNET_ATTRIBUTES = ('embed_dim', 'depth')


def group_wise_bias(num_experts: int, num_blocks: int, beta: float) -> Tensor:
    """Initial biases c' of the router heads, one head a group (group-wise initialisation).

    Zero, but ``beta`` at the expert assigned to the group: expert g to group g. With zero
    weights the softmax is then e^beta / (e^beta + K - 1) on that expert.

    Returns:
        (groups, blocks, layers, K), with as many groups as experts.
    """
    bias = beta * torch.eye(num_experts)
    return bias[:, None, None, :].repeat(1, num_blocks, LAYERS_PER_BLOCK, 1)


def block_attributes(subnet: Subnet, block: int, attributes: Sequence[str]) -> tuple:
    """Values of ``attributes`` at one block, e.g. (num_heads, mlp_ratio, embed_dim)."""
    values = dict(
        num_heads=subnet.num_heads[block],
        mlp_ratio=subnet.mlp_ratio[block],
        embed_dim=subnet.embed_dim,
        depth=subnet.depth,
    )
    return tuple(values[attribute] for attribute in attributes)


@MODELS.register_module()
class LSTMRouterHead(BaseModule):
    """LSTM over the blocks of a subnet, and one linear head per group of blocks.

    Each step embeds the block's attributes and the subnet's, a learned vector per choice; those
    of one level are summed, the two levels concatenated. The hidden state of block b goes
    through the head of the group that block belongs to, and a softmax gives the mixture weights
    of its four linear layers. Two blocks share a group when they agree in ``attributes``; there
    are as many experts K as groups. Sizes follow from the published parameter counts: the paper
    does not print them.

    Args:
        space: The search space, or its dict.
        attributes: What the router reads and groups by, out of 'num_heads', 'mlp_ratio',
            'embed_dim', 'depth'.
        hidden_size: Width d of the LSTM and of each embedding.
        beta: Initial logit of the expert assigned to a group.
        init_cfg: MMEngine's initialisation config.

    Raises:
        UserError: On an attribute that does not exist.
    """

    def __init__(
        self,
        space: SearchSpace | dict,
        attributes: Sequence[str] = ('num_heads', 'mlp_ratio', 'embed_dim'),
        hidden_size: int = 128,
        beta: float = 3.0,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.space = SearchSpace.coerce(space)
        known = BLOCK_ATTRIBUTES + SUBNET_ATTRIBUTES
        self.attributes = tuple(attributes)
        distinct = [name for name in known if name in self.attributes]
        if not distinct or sorted(distinct) != sorted(map(str, self.attributes)):
            raise UserError(f'attributes must be some of {known}, each once, got {attributes!r}')
        choices = {name: getattr(self.space, name) for name in self.attributes}
        self.groups = {values: g for g, values in enumerate(product(*choices.values()))}
        self.num_blocks = max(self.space.depth)

        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(len(values), hidden_size) for name, values in choices.items()}
        )
        self.lstm = nn.LSTM(len(self._levels()) * hidden_size, hidden_size)
        K = self.num_experts
        self.head_weight = nn.Parameter(
            torch.zeros(K, self.num_blocks, LAYERS_PER_BLOCK, hidden_size, K)
        )
        self.head_bias = nn.Parameter(group_wise_bias(K, self.num_blocks, beta))

    @property
    def num_experts(self) -> int:
        """K, the number of groups."""
        return len(self.groups)

    def forward(self, subnet: Subnet) -> Tensor:
        """Mixture weights of every layer of ``subnet``.

        Returns:
            (L, 4, K), each last axis on the simplex; layers in the order qkv, proj, fc1, fc2.

        Raises:
            UserError: If a block belongs to no group.
        """
        group, block = self.group_of_blocks(subnet), torch.arange(subnet.depth)
        hidden, _ = self.lstm(self._embed(subnet))  # (L, d)
        logits = torch.einsum('ld,ljdk->ljk', hidden, self.head_weight[group, block])
        return (logits + self.head_bias[group, block]).softmax(dim=-1)

    def group_of_blocks(self, subnet: Subnet) -> list[int]:
        """Index of the group, and of the head, of every block."""
        if subnet.depth > self.num_blocks:
            raise UserError(
                f'the subnet has {subnet.depth} blocks, the router {self.num_blocks} positions; '
                f'choose a depth of {self.space.depth}'
            )
        return [self._group(subnet, b) for b in range(subnet.depth)]

    def _group(self, subnet: Subnet, block: int) -> int:
        values = block_attributes(subnet, block, self.attributes)
        if values not in self.groups:
            has = ', '.join(f'{n} {v:g}' for n, v in zip(self.attributes, values, strict=True))
            choices = ', '.join(f'{n} {list(getattr(self.space, n))}' for n in self.attributes)
            raise UserError(
                f'block {block} of the subnet ({has}) belongs to no group of experts; '
                f'choose from {choices}'
            )
        return self.groups[values]

    def _levels(self) -> list[list[str]]:
        """The attributes of each level, block and subnet, levels without any left out."""
        levels = (BLOCK_ATTRIBUTES, SUBNET_ATTRIBUTES)
        return [used for level in levels if (used := [n for n in self.attributes if n in level])]

    def _embed(self, subnet: Subnet) -> Tensor:
        """Input of the LSTM, one step a block: (L, levels x d)."""
        blocks = [block_attributes(subnet, b, self.attributes) for b in range(subnet.depth)]
        embedded = {}
        for name, values in zip(self.attributes, zip(*blocks, strict=True), strict=True):
            choices = getattr(self.space, name)
            index = torch.tensor([choices.index(v) for v in values], device=self.head_bias.device)
            embedded[name] = self.embeddings[name](index)
        return torch.cat([sum(embedded[n] for n in level) for level in self._levels()], dim=-1)
