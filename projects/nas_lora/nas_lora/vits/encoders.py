"""A pretrained vision transformer of another library as an encoder: images in, one map out."""

from collections.abc import Callable
from pathlib import Path

from mmengine.model import BaseModule
from torch import Tensor, nn

from tas_lora.checks import one_of
from tas_lora.errors import UserError
from tas_lora.models.pretrained import open_model

from ..registry import MODELS
from .vits import vit_of

OUTPUTS = ('map', 'token', 'mean')
# Last tokens (B, N, C) of images as each library gives them; CLIP's are not normalised.
_TOKENS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = dict(
    timm=lambda vit, images: vit.forward_features(images),
    transformers=lambda vit, images: vit(pixel_values=images).last_hidden_state,
    mmpretrain=lambda vit, images: vit(images)[-1],
)


@MODELS.register_module()
class ViTEncoder(BaseModule):
    """A plain vision transformer of timm, transformers or MMPretrain with its own weights.

    The library's module is ``vit``. It is as its library builds it, so its weights load and leave
    by the library's names.

    Args:
        source: 'timm:NAME', 'hf:FOLDER' or 'mmpretrain:NAME'; or a model.
        checkpoint: File with its weights; by default those of the folder or of the library.
        img_size: Side of the images, for timm; by default the model's own.
        out: 'map', the patches (B, C, H, W); 'token', the class token (B, C); or 'mean', the mean
            of the patches (B, C).

    Raises:
        UserError: If there is no such model or output, or the weights do not fit.
    """

    def __init__(
        self,
        source: str | nn.Module,
        checkpoint: str | Path | None = None,
        img_size: int | None = None,
        out: str = 'map',
    ):
        super().__init__()
        one_of(out, 'ViTEncoder.out', OUTPUTS)
        is_model = isinstance(source, nn.Module)
        self.vit = _trunk(source if is_model else open_model(source, checkpoint, img_size))
        self.library = type(self.vit).__module__.partition('.')[0]
        one_of(self.library, 'library of ViTEncoder.source', tuple(_TOKENS))
        self.out = out
        layout = vit_of(self.vit)
        if 'ViTSAM' in layout.family.kinds:
            raise UserError('ViTEncoder.source: a ViTSAM gives a map; it is an encoder by itself')
        self.extra_tokens, self.grid = layout.extra_tokens, layout.grid
        proj = layout.names('proj', next(iter(layout.blocks)))[-1]
        self.out_channels = self.vit.get_submodule(proj).out_features
        # Registers alone are no class token; only timm has such models.
        has_token = self.extra_tokens and getattr(self.vit, 'has_class_token', True)
        if out == 'token' and not has_token:
            raise UserError("ViTEncoder.out: the model has no class token; use 'mean'")

    def init_weights(self) -> None:
        """Do nothing: the weights are those of the file."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The output for images (B, 3, side, side), alone in a tuple as OpenMMLab's backbones."""
        tokens = _TOKENS[self.library](self.vit, images)
        if self.out == 'token':
            return (tokens[:, 0],)
        patches = tokens[:, self.extra_tokens :]
        self._check_size(*images.shape[-2:], patches.shape[1])
        if self.out == 'mean':
            return (patches.mean(1),)
        return (patches.transpose(1, 2).unflatten(2, self.grid),)

    def _check_size(self, height: int, width: int, count: int) -> None:
        rows, columns = self.grid
        if count != rows * columns or height * columns != width * rows:
            raise UserError(
                f'ViTEncoder: images of {height} x {width} pixels do not give the {rows} x '
                f'{columns} patches of the model; resize them in the pipeline'
            )


def _trunk(model: nn.Module) -> nn.Module:
    """The transformer inside a classifier; MMPretrain's then returns all its tokens."""
    model = getattr(model, 'backbone', model)
    if hasattr(model, 'out_type'):
        model.out_type = 'raw'
    return getattr(model, 'base_model', model)
