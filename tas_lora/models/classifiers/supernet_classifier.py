"""The supernet as a classifier: owner of the active subnet."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.classifiers import ImageClassifier
from torch import nn

from ...checks import boolean
from ...errors import UserError, blame
from ...registry import MODELS, build_part
from ...structures import Subnet
from ..backbones import ElasticViT
from ..checkpoint import adapt_state_dict
from ..heads import ElasticClsHead, Router
from ..heads.elastic_cls_head import check_labels
from ..layers import expert_parameters

# What the arguments may be that go on to others; None may stand for all but the first.
_KINDS = dict(
    backbone=(dict, nn.Module),
    neck=(dict, list, nn.Module),
    data_preprocessor=(dict, nn.Module),
    train_cfg=(dict,),
    init_cfg=(dict, list),
)


@MODELS.register_module()
class SupernetClassifier(ImageClassifier):
    """MMPretrain's ``ImageClassifier`` around an ``ElasticViT``, of which it runs one subnet.

    The active subnet is the one fact that changes. With a router, a forward always uses the
    experts: merged before it by :meth:`merge_experts` (a hook does it once per iteration or
    evaluation), or else for that call alone.

    Args:
        backbone: Config of the ``tas_lora.ElasticViT``.
        head: Config of the head, usually ``tas_lora.ElasticClsHead``, which gets its
            ``in_channels`` from the backbone.
        router: Config of the router of the experts, needed when the backbone has ``mole``.
        freeze_supernet: With a router, train the experts and the router alone (TAS-LoRA).
        **kwargs: As in ``ImageClassifier``: ``data_preprocessor``, ``train_cfg``, ...

    Raises:
        UserError: If router and backbone disagree, a part cannot be built, or a label is none of
            the head's classes.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict | None = None,
        router: dict | None = None,
        freeze_supernet: bool = True,
        **kwargs,
    ):
        _refuse_pretrained(dict(kwargs, backbone=backbone, head=head, router=router))
        for name, value in dict(kwargs, backbone=backbone).items():
            _check_kind(value, name, _KINDS.get(name, (object,)))
        with blame('backbone, neck, data_preprocessor or train_cfg cannot be built'):
            super().__init__(backbone, **kwargs)
        if not isinstance(self.backbone, ElasticViT):
            raise UserError(f'must be a tas_lora.ElasticViT, got {backbone!r}', 'backbone')
        self.head = self._build_head(head)
        self.router = None if router is None else build_part(MODELS, router, Router, 'router')
        self._check_router()
        self._check_data_preprocessor()
        for name, part in (('backbone', self.backbone), ('router', self.router)):
            _check_kind(part and part.init_cfg, f'{name}.init_cfg', _KINDS['init_cfg'])
        if boolean(freeze_supernet, 'freeze_supernet') and self.router is not None:
            self._freeze_supernet()
        self._subnet = self.backbone.arch
        if self.router is not None:
            self.backbone.check_space(self.router.space, 'router.space')
            self._subnet = self.router.space.largest()
        self._register_load_state_dict_pre_hook(self._adapt_state_dict)

    @property
    def subnet(self) -> Subnet:
        """The active subnet; change it by :meth:`set_subnet`."""
        return self._subnet

    def set_subnet(self, subnet: Subnet | dict) -> None:
        """Make ``subnet`` the active one, and drop merged experts.

        Raises:
            UserError: If it does not fit inside the supernet, or, with experts, if one of its
                blocks belongs to no group.
        """
        subnet = Subnet.coerce(subnet)
        self.backbone.check_fits(subnet)
        if self.router is not None:
            self.router.check(subnet)
        self.unmerge_experts()
        self._subnet = subnet

    def merge_experts(self) -> None:
        """Merge the experts for the active subnet, with the graph if gradients are on.

        Does nothing without experts; merging again replaces the merge.
        """
        if self.router is None:
            return
        with torch.autocast(self.backbone.pos_embed.device.type, enabled=False):  # in float32
            self.backbone.merge_experts(self.subnet, self.router(self.subnet))

    def unmerge_experts(self) -> None:
        """Drop the merged weights and their graph."""
        self.backbone.unmerge_experts()

    @property
    def is_merged(self) -> bool:
        """Whether merged weights are in place."""
        return any(layer.merged is not None for layer in self.backbone.mole_layers())

    @property
    def image_spec(self) -> dict:
        """Keyword arguments with which ``count_params`` and ``count_flops`` count this model."""
        return dict(**self.backbone.image_spec, num_classes=self.head.num_classes)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """As ``ImageClassifier.forward``; ``mode='tensor'`` gives the logits (B, classes)."""
        with self._experts_in_place():
            return super().forward(inputs, data_samples, mode)

    def extract_feat(self, inputs, stage: str = 'neck'):
        """As ``ImageClassifier.extract_feat``, of the active subnet."""
        if stage not in ('backbone', 'neck', 'pre_logits'):
            raise UserError(f"stage must be 'backbone', 'neck' or 'pre_logits', got {stage!r}")
        with self._experts_in_place():
            feats = self.backbone(inputs, self.subnet)
        if stage != 'backbone' and self.with_neck:
            feats = self.neck(feats)
        return self.head.pre_logits(feats) if stage == 'pre_logits' else feats

    @contextmanager
    def _experts_in_place(self) -> Iterator[None]:
        if self.router is None or self.is_merged:
            yield
            return
        self.merge_experts()
        try:
            yield
        finally:
            self.unmerge_experts()

    def _build_head(self, head: dict | nn.Module | None) -> nn.Module | None:
        width = self.backbone.arch.embed_dim
        if isinstance(head, dict):
            ours = head.get('type') == 'tas_lora.ElasticClsHead'
            with blame('cannot be built', 'head'):
                head = MODELS.build((dict(in_channels=width) if ours else {}) | head)
        if head is not None and not isinstance(head, nn.Module):
            raise UserError(f'must be a dict with a type, got {head!r}', 'head')
        channels = getattr(head, 'in_channels', width)  # a head need not have the attribute
        if channels != width:
            raise UserError(
                f'is {channels}, the backbone is {width} wide; leave it out', 'head.in_channels'
            )
        return head

    def _check_router(self) -> None:
        num_experts = self.backbone.num_experts
        if bool(num_experts) != (self.router is not None):
            raise UserError(
                'experts and router go together: set both backbone.mole and router, or neither'
            )
        if self.router is not None and num_experts != self.router.num_experts:
            raise UserError(
                f'is {num_experts}, but router.space has {self.router.num_experts} groups '
                f'({" x ".join(self.router.attributes)}); set it to {self.router.num_experts}',
                'backbone.mole.num_experts',
            )

    def _check_data_preprocessor(self) -> None:
        if not isinstance(self.head, ElasticClsHead):
            return
        data, classes = self.data_preprocessor, self.head.num_classes
        one_hot = isinstance(data, ClsDataPreprocessor) and data.to_onehot
        if one_hot and data.num_classes not in (None, classes):
            raise UserError(
                f'data_preprocessor.num_classes is {data.num_classes!r}, model.head.num_classes '
                f'{classes}; set both to the classes of the data'
            )
        # Before labels become one-hot, and before they go to a GPU, which fails without a word.
        data.register_forward_pre_hook(self._check_labels)

    def _check_labels(self, _, inputs: tuple) -> None:
        check_labels(inputs[0].get('data_samples') or (), self.head.num_classes)

    def _freeze_supernet(self) -> None:
        self.requires_grad_(False)
        self.router.requires_grad_(True)
        for parameter in expert_parameters(self):
            parameter.requires_grad_(True)

    def _adapt_state_dict(self, state_dict, prefix, *_) -> None:
        self.unmerge_experts()
        if not prefix:  # as a part of a larger model, its names are not ours to judge
            adapt_state_dict(state_dict, self.state_dict())


def _check_kind(value, field: str, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) and (value is not None or field == 'backbone'):
        names = ' or a '.join(kind.__name__ for kind in kinds)
        raise UserError(f'must be a {names}, got {value!r}', field)


def _refuse_pretrained(config, path: str = '') -> None:
    """MMEngine loads such weights by unpickling whatever an address gives."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if value is not None and (key == 'pretrained' or (key, value) == ('type', 'Pretrained')):
            raise UserError(f'is {value!r}; weights are loaded safely by load_from', f'{path}{key}')
        if isinstance(value, (dict, list, tuple)):
            _refuse_pretrained(value, f'{path}{key}.')
