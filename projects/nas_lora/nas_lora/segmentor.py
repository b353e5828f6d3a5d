"""Segmentation with SAM's encoder and mask decoder: one mask per image, without prompts."""

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmpretrain.models import ViTSAM
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.checks import one_of

from .registry import MODELS
from .sam_keys import load_sam

_DECODER = dict(type='nas_lora.MaskDecoder')
_LOSS = dict(type='nas_lora.StructureLoss')


@MODELS.register_module()
class SAMSegmentor(BaseModel):
    """Encoder, mask decoder and loss.

    The weights are final once it is built; ``init_weights`` changes none. So the encoder can be
    wrapped, or its layers replaced by adapters, right away.

    Args:
        encoder: Config of MMPretrain's ``ViTSAM``; its last output is used.
        decoder: Config of a decoder for the encoder's ``out_channels``.
        loss: Config of a loss of (logits, masks), both (B, 1, H, W).
        pretrained: A SAM file to start from, with Meta's, Hugging Face's, OpenMMLab's or our own
            names; see :func:`load_sam`.
        data_preprocessor: Config of MMEngine's ``ImgDataPreprocessor``.

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
        super().__init__(data_preprocessor)
        self.encoder = MODELS.build(encoder)
        self.decoder = MODELS.build(decoder)
        self.loss = MODELS.build(loss)
        if not isinstance(self.encoder, ViTSAM) or self.encoder.out_type == 'avg_featmap':
            raise UserError("SAMSegmentor.encoder must be dict(type='mmpretrain.ViTSAM', ...)")
        if self.encoder.out_channels != self.decoder.embed_dim:
            raise UserError(
                f'SAMSegmentor.encoder.out_channels is {self.encoder.out_channels}, '
                f'SAMSegmentor.decoder.embed_dim {self.decoder.embed_dim}; make them the same'
            )
        if self.encoder.init_cfg is not None:
            raise UserError('SAMSegmentor.encoder takes no init_cfg; give the file as pretrained')
        # All that ViTSAM.init_weights does, without a log line per parameter.
        nn.init.trunc_normal_(self.encoder.pos_embed, std=0.02)
        if pretrained is not None:
            parts = load_sam(dict(encoder=self.encoder, decoder=self.decoder), pretrained)
            print_log(f'{" and ".join(parts)} of {pretrained} loaded', 'current')

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
