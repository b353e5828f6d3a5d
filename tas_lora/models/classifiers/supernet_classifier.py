"""The supernet as a classifier with one active subnet."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...checks import boolean
from ...errors import UserError, blame
from ...registry import MODELS, build_part
from ...structures import SearchSpace, Subnet
from ..backbones import ElasticViT
from ..checkpoint import adapt_state_dict
from ..heads import Router
from ..heads.elastic_cls_head import (
    SlicedLinear,
    check_labels,
    labels_are_checked,
    slice_head,
)
from ..layers import LAYER_KINDS, expert_parameters, unmerged

# Types of the arguments passed on to MMPretrain; all but the first may be None.
_KINDS = dict(
    backbone=(dict, nn.Module),
    neck=(dict, list, nn.Module),
    data_preprocessor=(dict, nn.Module),
    train_cfg=(dict,),
    init_cfg=(dict, list),
)
_PREPROCESSOR = 'tas_lora.SupernetDataPreprocessor'
_LINEAR = (
    'ElasticClsHead',
    'LinearClsHead',
    'MultiLabelLinearClsHead',
    'VisionTransformerClsHead',
)


@MODELS.register_module()
class SupernetClassifier(ImageClassifier):
    """MMPretrain's ``ImageClassifier`` around an ``ElasticViT``, of which it runs one subnet.

    The active subnet is its only changing state. With a router, a forward always uses the
    experts, merged beforehand by :meth:`merge_experts` (a hook does so once per iteration or
    evaluation), or else for that call only.

    Args:
        backbone: Config of the ``tas_lora.ElasticViT``.
        head: Config of the head, usually ``tas_lora.ElasticClsHead``. MMPretrain's linear heads
            are sliced like it, among them ``MultiLabelLinearClsHead`` for images with several
            labels. Their ``in_channels`` default to the backbone's width.
        router: Config of the router of the experts; required if the backbone has ``mole``.
        freeze_supernet: With a router, train only the experts and the router (TAS-LoRA).
        keep_parent: Run the subnet of full size, which is the supernet itself, without experts:
            training then leaves it as it was, to the last bit. Needs a router and
            ``freeze_supernet``.
        feature_map: Have a linear map from a subnet's features to those of the full width, which
            begins as the identity. Only distillation of features uses it; exports leave it out.
        **kwargs: As in ``ImageClassifier``: ``data_preprocessor``, ``train_cfg``, ...

    Raises:
        UserError: If router and backbone disagree, a part cannot be built, or a label is not
            among the head's classes.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict | None = None,
        router: dict | None = None,
        freeze_supernet: bool = True,
        keep_parent: bool = False,
        feature_map: bool = False,
        **kwargs,
    ):
        others = dict(backbone) if isinstance(backbone, dict) else {}
        others.pop('init_cfg', None)  # an ElasticViT reads its file safely
        _refuse_pretrained(dict(kwargs, backbone=others, head=head, router=router))
        for name, value in dict(kwargs, backbone=backbone).items():
            _check_kind(value, name, _KINDS.get(name, (object,)))
        preprocessor = kwargs.get('data_preprocessor') or {}
        if isinstance(preprocessor, dict):
            kwargs['data_preprocessor'] = dict(type=_PREPROCESSOR) | preprocessor
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
        self.is_frozen = boolean(freeze_supernet, 'freeze_supernet') and self.router is not None
        self.keep_parent = boolean(keep_parent, 'keep_parent')
        if self.keep_parent and not self.is_frozen:
            raise UserError(
                'is True, but the weights of the parent are trained: add experts (backbone.mole '
                'and router) and leave freeze_supernet at True',
                'keep_parent',
            )
        self.feature_map = (
            self._build_feature_map() if boolean(feature_map, 'feature_map') else None
        )
        if self.is_frozen:
            self.requires_grad_(False)
            for trained in filter(None, (self.router, self.feature_map)):
                trained.requires_grad_(True)
            for parameter in expert_parameters(self):
                parameter.requires_grad_(True)
        self._subnet = self.backbone.arch
        if self.router is not None:
            self.router.block_order = self.backbone.block_order
            self.check_space(self.router.space, 'router.space')
            self._subnet = self.router.space.largest()
        self._register_load_state_dict_pre_hook(self._adapt_state_dict)

    def train(self, mode: bool = True) -> 'SupernetClassifier':
        """As in torch, but a frozen supernet keeps the statistics of its batch norms."""
        super().train(mode)
        if self.is_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def subnet(self) -> Subnet:
        """The active subnet; change it with :meth:`set_subnet`."""
        return self._subnet

    def set_subnet(self, subnet: Subnet | dict) -> None:
        """Make ``subnet`` the active one, and drop merged experts.

        Raises:
            UserError: If it does not fit inside the supernet, or if, with experts, a block of it
                belongs to no group.
        """
        subnet = Subnet.coerce(subnet)
        self.backbone.check_fits(subnet)
        if self.router is not None and not self.keeps(subnet):
            self.router.check(subnet)
        self.unmerge_experts()
        self._subnet = subnet

    def keeps(self, subnet: Subnet) -> bool:
        """Whether ``subnet`` is a parent that is kept: it runs without experts."""
        return self.keep_parent and self.backbone.is_whole(subnet)

    def routed_gates(self, subnet: Subnet) -> Tensor:
        """Shares (L, 4, K) of the experts that ``subnet`` is routed to; zeros if it is kept.

        K is without the shared experts, so that the shares of a layer sum to 1.
        """
        shared = self.router.num_shared
        if self.keeps(subnet):
            shape = (subnet.depth, len(LAYER_KINDS), self.backbone.num_experts - shared)
            return self.backbone.pos_embed.new_zeros(shape)
        return self.router(subnet)[..., shared:]

    def merge_experts(self) -> None:
        """Merge the experts for the active subnet, with a graph if gradients are enabled.

        Without experts, or for a parent that is kept, it does nothing. Merging again replaces the
        merged weights.
        """
        if self.router is None or self.keeps(self.subnet):
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
    def is_multi_label(self) -> bool:
        """Whether an image may have several labels, each with a probability of its own."""
        return isinstance(self.head, MultiLabelClsHead)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class from logits (B, classes)."""
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=-1)

    def check_space(self, space: SearchSpace, what: str) -> None:
        """Raise :class:`UserError` unless backbone, neck and head can run all of ``space``."""
        self.backbone.check_space(space, what)
        narrow = space.smallest()
        if self.head is not None and narrow.embed_dim < self.backbone.arch.embed_dim:
            self._try(narrow)

    @torch.no_grad()
    def _try(self, subnet: Subnet) -> int:
        """Width of a subnet's features; refuse a head or a neck that cannot take them."""
        backbone, is_training = self.backbone, self.training
        side = backbone.image_spec['img_size'] // backbone.patch_size_of(subnet)
        width = subnet.embed_dim * backbone.feature_parts
        shape = (1, width, *((side, side) if backbone.out_type == 'featmap' else ()))
        feats = tuple(backbone.pos_embed.new_zeros(shape) for _ in backbone.out_indices)
        self.eval()
        try:
            feats = self.neck(feats) if self.with_neck else feats
            return self.logits_and_features(feats)[1].shape[-1]
        except Exception as error:
            parts = 'the neck or the head' if self.with_neck else 'the head'
            raise UserError(
                f'{parts}, a {type(self.head).__name__}, cannot take features that are '
                f'{subnet.embed_dim} wide, those of a subnet; set model.head.type to '
                'tas_lora.ElasticClsHead or to a linear head of MMPretrain, which is sliced'
            ) from error
        finally:
            self.train(is_training)

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a head."""
        return 0 if self.head is None else self.head.num_classes

    @property
    def image_spec(self) -> dict:
        """Keyword arguments of ``count_params`` and ``count_flops``; without a head, 0 classes."""
        return dict(**self.backbone.image_spec, num_classes=self.num_classes)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """As ``ImageClassifier.forward``; ``mode='tensor'`` returns the logits (B, classes).

        ``mode='distill'`` returns :meth:`logits_and_features`, and 'features' these alone: several
        processes wait for the gradients of all that is computed.
        """
        with self._experts_in_place():
            if mode in ('distill', 'features'):
                feats = self.extract_feat(inputs)
                return self.logits_and_features(feats, self.feature_map, mode == 'distill')
            return super().forward(inputs, data_samples, mode)

    def logits_and_features(
        self,
        feats: tuple[Tensor, ...],
        feature_map: nn.Module | None = None,
        with_logits: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """Logits (B, classes), None without a head, and the features (B, C) that they are from.

        Features go through ``feature_map``, if there is one. Maps become (B, patches, C).
        """
        features = feats[-1] if self.head is None else self.head.pre_logits(feats)
        features = features.flatten(2).transpose(1, 2) if features.dim() == 4 else features
        logits = self.head(feats) if with_logits and self.head is not None else None
        return logits, features if feature_map is None else feature_map(features)

    @torch.no_grad()
    def parent_outputs(
        self, inputs: Tensor, parent: Subnet | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Logits and features of the supernet's own weights, in evaluation mode.

        ``parent`` is the full size by default; its patches may be others.
        The active subnet, its merged experts, and the mode of each module stay as they are.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with unmerged(self.backbone.mole_layers()):
                feats = self.backbone(inputs, parent)
            return self.logits_and_features(self.neck(feats) if self.with_neck else feats)
        finally:
            for module, training in modes:  # one by one: some may have been in evaluation mode
                module.training = training

    def extract_feat(self, inputs, stage: str = 'neck'):
        """As ``ImageClassifier.extract_feat``, for the active subnet."""
        if stage not in ('backbone', 'neck', 'pre_logits'):
            raise UserError(f"stage must be 'backbone', 'neck' or 'pre_logits', got {stage!r}")
        with self._experts_in_place():
            feats = self.backbone(inputs, self.subnet)
        if stage != 'backbone' and self.with_neck:
            feats = self.neck(feats)
        return self.head.pre_logits(feats) if stage == 'pre_logits' else feats

    def predict(self, inputs, data_samples=None, **kwargs):
        """As ``ImageClassifier.predict``; samples say in ``multi_label`` how to read scores.

        Their scores are computed in float32: bfloat16 has no probabilities from .996 to 1.
        """
        if not self.is_multi_label:
            return super().predict(inputs, data_samples, **kwargs)
        logits = self.head(self.extract_feat(inputs)).float()
        predicted = self.head._get_predictions(logits, data_samples)
        for sample in predicted:
            sample.set_metainfo(dict(multi_label=True))
        return predicted

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
        parts = self.backbone.feature_parts
        width = self.backbone.arch.embed_dim * parts
        if isinstance(head, dict):
            kind = head.get('type')
            name = getattr(kind, '__name__', str(kind)).split('.')[-1]
            own = dict(in_channels=width) if name in _LINEAR else {}
            own |= dict(parts=parts) if name == 'ElasticClsHead' else {}
            with blame('cannot be built', 'head'):
                head = MODELS.build(own | head)
        if head is not None and not isinstance(head, nn.Module):
            raise UserError(f'must be a dict with a type, got {head!r}', 'head')
        channels = getattr(head, 'in_channels', width)  # some heads have no such attribute
        if channels != width:
            raise UserError(
                f'is {channels}, the backbone is {width} wide; leave it out', 'head.in_channels'
            )
        slice_head(head, parts)
        return head

    def _build_feature_map(self) -> SlicedLinear:
        parts = self.backbone.feature_parts
        width = self.backbone.arch.embed_dim * parts
        if (found := self._try(self.backbone.arch)) != width:
            raise UserError(
                f"is True, but the neck or the head makes features {found} wide of the backbone's "
                f'{width}, which are not sliced; leave it out',
                'feature_map',
            )
        layer = SlicedLinear(width, width, parts)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def _check_router(self) -> None:
        num_experts = self.backbone.num_experts
        if bool(num_experts) != (self.router is not None):
            raise UserError(
                'experts and router go together: set both backbone.mole and router, or neither'
            )
        if self.router is not None and num_experts != self.router.num_experts:
            raise UserError(
                f'is {num_experts}, but router.space has '
                f'{self.router.num_experts - self.router.num_shared} groups '
                f'({" x ".join(self.router.attributes)}){_and_shared(self.router.num_shared)}; '
                f'set it to {self.router.num_experts}',
                'backbone.mole.num_experts',
            )
        fewest = min((len(m.lora_a) for m in self.backbone.mole_layers()), default=num_experts)
        if self.router is not None and self.router.num_shared and fewest < num_experts:
            raise UserError(
                f'is {self.router.num_shared}, but a layer has {fewest} of the {num_experts} '
                'experts; leave out backbone.mole.layer_experts, or shared',
                'router.shared',
            )

    def _check_data_preprocessor(self) -> None:
        if not labels_are_checked(self.head):
            return
        data, classes = self.data_preprocessor, self.head.num_classes
        one_hot = isinstance(data, ClsDataPreprocessor) and data.to_onehot
        if one_hot and data.num_classes not in (None, classes):
            raise UserError(
                f'data_preprocessor.num_classes is {data.num_classes!r}, model.head.num_classes '
                f'{classes}; set both to the classes of the data'
            )
        # Check before labels become one-hot, or go to a GPU, which would fail without a message.
        data.register_forward_pre_hook(self._check_labels)

    def _check_labels(self, _, inputs: tuple) -> None:
        check_labels(inputs[0].get('data_samples') or (), self.head)

    def _adapt_state_dict(self, state_dict, prefix, *_) -> None:
        self.unmerge_experts()
        if not prefix:  # as part of a larger model, the names are not ours to check
            self.backbone.adopt_order(state_dict, 'backbone.')
            adapt_state_dict(state_dict, self.state_dict())
            if self.router is not None:
                self.router.block_order = self.backbone.block_order


def _and_shared(count: int) -> str:
    return f', and {count} shared' if count else ''


def _check_kind(value, field: str, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) and (value is not None or field == 'backbone'):
        names = ' or a '.join(kind.__name__ for kind in kinds)
        raise UserError(f'must be a {names}, got {value!r}', field)


def _refuse_pretrained(config, path: str = '') -> None:
    """Refuse these configs: MMEngine unpickles whatever is at their address."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if value is not None and (key == 'pretrained' or (key, value) == ('type', 'Pretrained')):
            advice = 'weights are loaded safely by load_from, or by init_cfg of the backbone'
            raise UserError(f'is {value!r}; {advice}', f'{path}{key}')
        if isinstance(value, (dict, list, tuple)):
            _refuse_pretrained(value, f'{path}{key}.')
