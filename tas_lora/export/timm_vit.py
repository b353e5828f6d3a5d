"""``timm.create_model('tas_lora_vit', pretrained=True)``, once this module is imported.

It reads ``weights.safetensors`` and ``architecture.json`` from ``folder``, its own by default.
"""

from pathlib import Path

from timm.models import register_model
from torch import Tensor, nn

from ..models.plain_vit import PlainViT, load_plain_vit

_POOLINGS = dict(avg='avg_featmap', token='cls_token')


class TimmViT(PlainViT):
    """``PlainViT`` with the names that timm's tools and training scripts use.

    Args:
        preprocess: Of ``architecture.json``.
        **network: Likewise.
    """

    def __init__(self, preprocess: dict, **network):
        super().__init__(**network)
        self.num_classes = network['num_classes']
        self.num_features = self.head_hidden_size = self.embed_dim = network['embed_dim']
        self.pretrained_cfg = self.default_cfg = _pretrained_cfg(preprocess, network)

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of all tokens (B, N, C), normalised."""
        return self.tokens(images)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes), or what the classifier sees, (B, C)."""
        pooled = self.pool(tokens)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for other classes, 0 for none; 'avg' or 'token' for other pooling."""
        if global_pool is not None:
            self.pooling = _POOLINGS[global_pool]
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()


@register_model
def tas_lora_vit(
    pretrained: bool = False,
    folder: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    pretrained_cfg=None,
    pretrained_cfg_overlay=None,
    cache_dir=None,
) -> TimmViT:
    """The exported network.

    Args:
        pretrained: Take its weights, too.
        folder: Where they are; by default where this file is.
        num_classes: Other than the export's gives a new, untrained classifier.
        in_chans: Only the export's.
        drop_rate: Only 0.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: Given by timm, and not needed.
    """
    plain, description = load_plain_vit(folder or Path(__file__).parent)
    network = description['network']
    if in_chans not in (None, network['in_channels']) or drop_rate:
        raise ValueError(
            f'tas_lora_vit has {network["in_channels"]} input channels and no dropout, got '
            f'in_chans={in_chans}, drop_rate={drop_rate}'
        )
    model = TimmViT(description['preprocess'], **network)
    if pretrained:
        model.load_state_dict(plain.state_dict())
    else:
        model.apply(_initialise)
    if num_classes not in (None, model.num_classes):
        model.reset_classifier(num_classes)
    return model


def _initialise(module: nn.Module) -> None:
    """As in vision transformers: normal weights, no biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    for name, value in module.named_parameters(recurse=False):
        if name in ('cls_token', 'pos_embed') or name.endswith(('_rows', '_columns')):
            nn.init.trunc_normal_(value, std=0.02)


def _pretrained_cfg(preprocess: dict, network: dict) -> dict:
    """What timm's data tools read; there, mean and deviation are of values from 0 to 1."""
    side, channels = network['img_size'], network['in_channels']
    mean, std = (
        [x / 255 for x in preprocess[name] or [default] * channels]
        for name, default in (('mean', 0.0), ('std', 255.0))
    )
    return dict(
        input_size=(channels, side, side),
        fixed_input_size=True,
        mean=tuple(mean),
        std=tuple(std),
        interpolation='bicubic',
        crop_pct=1.0,
        num_classes=network['num_classes'],
        first_conv='patch_embed',
        classifier='head',
    )
