"""Import this module to use ``timm.create_model('tas_lora_vit', pretrained=True)``.

It reads ``weights.safetensors`` and ``architecture.json`` from ``folder``, its own by default.
``model.eval().bake()`` makes inference faster; ``train()`` undoes it.
"""

from pathlib import Path

import torch
from timm.models import register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..models.plain_vit import PlainViT, load_plain_vit

_POOLINGS = dict(avg='avg_featmap', token='cls_token', cls_avg='cls_avg')


class TimmViT(PlainViT):
    """``PlainViT`` with the names that timm's tools and training scripts use.

    Args:
        data: Field 'timm' of ``architecture.json``: how timm prepares images.
        **network: Field 'network'.
    """

    def __init__(self, data: dict, **network):
        super().__init__(**network)
        self.num_classes = network['num_classes']
        self.num_features = self.embed_dim = network['embed_dim']
        self.head_hidden_size = self.width_of(self.pooling)
        side = network['img_size']
        self.pretrained_cfg = self.default_cfg = data | dict(  # read by timm's data tools
            input_size=(network['in_channels'], side, side),
            fixed_input_size=True,
            num_classes=network['num_classes'],
            first_conv='patch_embed',
            classifier='head',
        )

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of all tokens (B, N, C), normalised unless the norm is after pooling."""
        return self.tokens(images)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the patches after chosen blocks, as in timm's ``VisionTransformer``.

        Args:
            images: (B, channels, side, side).
            indices: Indices of blocks; a number means that many last blocks, None means all.
            return_prefix_tokens: Also return the class token and registers (B, P, C) of each, so
                that the list has pairs.
            norm: Also apply the final norm.
            stop_early: Do not run blocks after the last chosen one.
            output_fmt: 'NCHW' for maps (B, C, G, G), or 'NLC' for (B, G * G, C).
            intermediates_only: Return only the list.

        Returns:
            :meth:`forward_features` after the last block run, and the list of features.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x, found = self.embed(images), []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = block(x, self.grid)
            if i in wanted:
                tokens, count = self.finish(x) if norm else x, self.num_prefix_tokens
                patches = tokens[:, count:]
                if output_fmt == 'NCHW':
                    maps = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
                    patches = maps.contiguous()
                found.append((patches, tokens[:, :count]) if return_prefix_tokens else patches)
        return found if intermediates_only else (self.finish(x), found)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of prefix tokens and of all position embeddings, relative ones included."""
        return {name for name, _ in self.named_parameters() if _is_embedding(name)}

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes); with ``pre_logits`` the input of the classifier."""
        pooled = self.pool(tokens)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; 0 classes means none. Pooling as in :meth:`pooling_of`."""
        self.pooling, self.num_classes = self.pooling_of(global_pool), num_classes
        self.head_hidden_size = width = self.width_of(self.pooling)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def set_pooling(self, global_pool: str | None) -> None:
        """Set :meth:`pooling_of`; raises ``ValueError`` if the classifier takes other features."""
        pooling = self.pooling_of(global_pool)
        if self.num_classes and self.width_of(pooling) != self.head_hidden_size:
            raise ValueError(
                f'global_pool {global_pool!r} gives features of {self.width_of(pooling)}, the '
                f'classifier takes {self.head_hidden_size}; call reset_classifier for a new one'
            )
        self.pooling, self.head_hidden_size = pooling, self.width_of(pooling)

    def pooling_of(self, global_pool: str | None) -> str:
        """Pooling for 'avg', 'token' or 'cls_avg'; that in use for None. Raises ``ValueError``."""
        known = [name for name in _POOLINGS if name == 'avg' or self.num_prefix_tokens]
        if self.final_norm == 'pooled':  # over one feature
            known = [name for name in known if name != 'cls_avg']
        if global_pool not in (None, *known):
            either = ' or '.join(map(repr, known))
            raise ValueError(f'global_pool must be {either}, got {global_pool!r}')
        return self.pooling if global_pool is None else _POOLINGS[global_pool]

    def width_of(self, pooling: str) -> int:
        """Width of the pooled feature."""
        return self.embed_dim * (2 if pooling == 'cls_avg' else 1)


@register_model
def tas_lora_vit(
    pretrained: bool = False,
    folder: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    pretrained_cfg=None,
    pretrained_cfg_overlay=None,
    cache_dir=None,
    **others,
) -> TimmViT:
    """The exported network.

    Args:
        pretrained: Load the weights; otherwise they are random.
        folder: Folder of the export; by default that of this file.
        num_classes: If not the export's number, the classifier is new and untrained.
        in_chans: Must be the export's number.
        global_pool: 'avg', 'token' or 'cls_avg'; by default the export's.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: Passed by timm, and ignored.
        **others: Arguments of timm's other networks; must be 0, False or None.

    Raises:
        ValueError: If the network does not support an argument.
    """
    plain, description = load_plain_vit(folder or Path(__file__).parent)
    network = description['network']
    if in_chans not in (None, network['in_channels']):
        raise ValueError(f'in_chans must be {network["in_channels"]}, got {in_chans}')
    if unknown := {name: value for name, value in others.items() if value}:
        raise ValueError(
            f'tas_lora_vit accepts folder, num_classes, in_chans and global_pool, got {unknown}; '
            'for features, use forward_intermediates'
        )
    model = TimmViT(description['timm'], **network)
    if pretrained:
        model.load_state_dict(plain.state_dict())
    else:
        model.apply(_initialise)
    if num_classes in (None, model.num_classes):
        model.set_pooling(global_pool)
    else:
        model.reset_classifier(num_classes, global_pool)
    return model


def _initialise(module: nn.Module) -> None:
    """Initialise as vision transformers: truncated normal weights, zero biases."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    for name, value in module.named_parameters(recurse=False):
        if _is_embedding(name):
            nn.init.trunc_normal_(value, std=0.02)


def _is_embedding(name: str) -> bool:
    return name in ('cls_token', 'pos_embed') or name.endswith(('_rows', '_columns'))
