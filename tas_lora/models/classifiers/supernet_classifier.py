"""The supernet as a classifier: owner of the active subnet."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import nn

from ...errors import UserError
from ...registry import MODELS, build_part
from ...structures import Subnet
from ..checkpoint import adapt_state_dict
from ..heads import Router
from ..layers import expert_parameters


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
        UserError: If router and backbone disagree.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict | None = None,
        router: dict | None = None,
        freeze_supernet: bool = True,
        **kwargs,
    ):
        super().__init__(backbone, **kwargs)
        self.head = self._build_head(head)
        self.router = None if router is None else build_part(MODELS, router, Router, 'model.router')
        self._check_router()
        if self.router is not None and freeze_supernet:
            self._freeze_supernet()
        self._subnet = self.backbone.arch if self.router is None else self.router.space.largest()
        self._subnet.check_fits(self.backbone.arch, 'the largest subnet of router.space')
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
        subnet.check_fits(self.backbone.arch)
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
            default = dict(in_channels=width) if head['type'] == 'tas_lora.ElasticClsHead' else {}
            head = MODELS.build(default | head)
        if head is not None and not isinstance(head, nn.Module):
            raise UserError(f'model.head must be a dict with a type, got {head!r}')
        channels = getattr(head, 'in_channels', width)  # a head need not have the attribute
        if channels != width:
            raise UserError(f'head.in_channels is {channels}, the backbone is {width} wide')
        return head

    def _check_router(self) -> None:
        num_experts = self.backbone.num_experts
        if bool(num_experts) != (self.router is not None):
            raise UserError(
                'experts and router go together: set both backbone.mole and router, or neither'
            )
        if self.router is not None and num_experts != self.router.num_experts:
            raise UserError(
                f'backbone.mole.num_experts is {num_experts}, but router.space has '
                f'{self.router.num_experts} groups ({" x ".join(self.router.attributes)}); '
                f'set num_experts={self.router.num_experts}'
            )

    def _freeze_supernet(self) -> None:
        self.requires_grad_(False)
        self.router.requires_grad_(True)
        for parameter in expert_parameters(self):
            parameter.requires_grad_(True)

    def _adapt_state_dict(self, state_dict, prefix, *_) -> None:
        self.unmerge_experts()
        if not prefix:  # as a part of a larger model, its names are not ours to judge
            adapt_state_dict(state_dict, self.state_dict())
