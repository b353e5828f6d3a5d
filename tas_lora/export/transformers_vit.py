"""The network as a model of Hugging Face transformers, loaded with ``trust_remote_code=True``."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..models.plain_vit import Grid, PlainViT


class TasLoraConfig(PretrainedConfig):
    """Sizes of the network.

    Args:
        network: Arguments of ``PlainViT``; if ``num_labels`` differs, it replaces
            ``num_classes``.
        **kwargs: As in ``PretrainedConfig``.
    """

    model_type = 'tas_lora_vit'

    def __init__(self, network: dict | None = None, **kwargs):
        self.network = network
        super().__init__(**kwargs)


class TasLoraForImageClassification(PreTrainedModel):
    """``PlainViT`` as an image classifier.

    ``from_pretrained`` bakes it for inference; ``train()`` undoes that.
    """

    config_class = TasLoraConfig
    main_input_name = 'pixel_values'

    def __init__(self, config: TasLoraConfig):
        super().__init__(config)
        self.vit = PlainViT(**config.network | dict(num_classes=config.num_labels))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in ``PreTrainedModel``."""
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found  # with ``output_loading_info``
        model.vit.bake()
        return found

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, num_labels) of normalised images; with labels (B,) also the loss."""
        logits = self.vit(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights and buffers that are missing from the file."""
        if isinstance(module, Grid):
            for name, value in module.indices().items():
                module.get_buffer(name).copy_(value)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
