"""Segmentation with a vision transformer and SAM's mask decoder: a mask per image, no prompts."""

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmpretrain.models import ViTSAM
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import one_of

from ..registry import MODELS
from .sam_keys import load_sam

_DECODER = dict(type='nas_lora.MaskDecoder')
_LOSS = dict(type='nas_lora.StructureLoss')


@MODELS.register_module()
class Segmentor(BaseModel):
    """Encoder, mask decoder and loss.

    The weights are final once it is built; ``init_weights`` changes none. So the encoder can be
    wrapped, or its layers replaced by adapters, right away.

    Args:
        encoder: Config of an encoder whose last output is a map (B, C, H, W), such as
            ``nas_lora.ViTEncoder``.
        decoder: Config of a decoder for the encoder's ``out_channels``.
        loss: Config of a loss of (logits, masks), both (B, 1, H, W).
        data_preprocessor: Config of MMEngine's ``ImgDataPreprocessor``.

    Raises:
        UserError: If the parts are incompatible.
    """

    def __init__(
        self,
        encoder: dict,
        decoder: dict = _DECODER,
        loss: dict = _LOSS,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor)
        self.encoder = MODELS.build(encoder)
        self.decoder = MODELS.build(decoder)
        self.loss = MODELS.build(loss)
        name, width = type(self).__name__, getattr(self.encoder, 'out_channels', None)
        if width != self.decoder.in_channels:
            raise UserError(
                f'{name}.encoder.out_channels is {width}, {name}.decoder.in_channels (by default '
                f'its embed_dim) {self.decoder.in_channels}; make them the same'
            )

    def init_weights(self) -> None:
        """Do nothing: when the runner calls this, adapters and weights are already in place."""

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Logits, loss or predictions for images (B, 3, H, W).

        Args:
            inputs: Preprocessed images.
            data_samples: Samples with ``mask`` (H, W) of 0 and 1, for 'loss'.
            mode: 'tensor' for logits (B, 1, H, W); 'loss' for the loss; 'predict' for the samples
                with ``pred_mask`` (H, W), the probability of an object at each pixel.

        Raises:
            UserError: If the mode is unknown, or in 'loss' if masks are missing or of another size.
        """
        one_of(mode, 'mode', ('tensor', 'loss', 'predict'))
        logits = self.decoder(self.encoder(inputs)[-1])  # at a quarter of the patch size
        logits = F.interpolate(logits, inputs.shape[-2:], mode='bilinear', align_corners=False)
        if mode == 'loss':
            return dict(loss=self.loss(logits, _masks(data_samples, logits)))
        if mode == 'predict':
            return _with_masks(data_samples or [DataSample() for _ in inputs], logits)
        return logits


@MODELS.register_module()
class SAMSegmentor(Segmentor):
    """A :class:`Segmentor` that starts from a SAM file.

    Args:
        encoder: Config of MMPretrain's ``ViTSAM``.
        decoder, loss, data_preprocessor: As in :class:`Segmentor`.
        pretrained: A SAM file to start from, with Meta's, Hugging Face's, OpenMMLab's or our own
            names; see :func:`load_sam`.

    Raises:
        UserError: If the parts are incompatible, or ``pretrained`` does not fit them.
    """

    def __init__(
        self,
        encoder: dict,
        decoder: dict = _DECODER,
        loss: dict = _LOSS,
        pretrained: str | None = None,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(encoder, decoder, loss, data_preprocessor)
        if not isinstance(self.encoder, ViTSAM) or self.encoder.out_type == 'avg_featmap':
            raise UserError("SAMSegmentor.encoder must be dict(type='mmpretrain.ViTSAM', ...)")
        if self.encoder.init_cfg is not None:
            raise UserError('SAMSegmentor.encoder takes no init_cfg; give the file as pretrained')
        # All that ViTSAM.init_weights does, without a log line per parameter.
        nn.init.trunc_normal_(self.encoder.pos_embed, std=0.02)
        if pretrained is not None:
            parts = load_sam(dict(encoder=self.encoder, decoder=self.decoder), pretrained)
            print_log(f'{" and ".join(parts)} of {pretrained} loaded', 'current')


def _masks(samples: list[DataSample] | None, logits: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of the samples."""
    if not samples or any('mask' not in sample for sample in samples):
        raise UserError(
            'the samples have no mask; load and pack it in the pipeline by nas_lora.LoadMask and '
            'nas_lora.PackMask'
        )
    shapes = {tuple(sample.mask.shape) for sample in samples}
    if shapes != {tuple(logits.shape[-2:])}:
        raise UserError(
            f'masks are {sorted(shapes)}, images {tuple(logits.shape[-2:])}; let the pipeline '
            'resize both alike, before nas_lora.PackMask'
        )
    return torch.stack([sample.mask for sample in samples])[:, None].to(logits)


def _with_masks(samples: list[DataSample], logits: Tensor) -> list[DataSample]:
    for sample, probability in zip(samples, logits.sigmoid(), strict=True):
        sample.set_field(probability[0], 'pred_mask')
    return samples
