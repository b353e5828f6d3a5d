"""The network as a model of Hugging Face transformers, loaded with ``trust_remote_code=True``."""

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
    supports_gradient_checkpointing = True

    def __init__(self, config: TasLoraConfig):
        super().__init__(config)
        self.loss_type = 'ForSequenceClassification'  # the name that old transformers know
        self.gradient_checkpointing = False  # set by ``gradient_checkpointing_enable``
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
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """As transformers' own image classifiers.

        Args:
            pixel_values: Normalised images (B, channels, side, side).
            labels: For the loss of ``config.problem_type``: classes (B,) for
                'single_label_classification', numbers (B, num_labels) in floating point for
                'multi_label_classification' and 'regression'. Without a type, transformers tells
                it from ``num_labels`` and the labels.
            output_hidden_states: Also return the input of each block and the output of the last,
                (B, N, C) each, prefix tokens first.
            return_dict: False for a tuple of what there is.

        Returns:
            ``logits`` (B, num_labels); with labels also ``loss``.
        """
        wanted = self.config.output_hidden_states
        wanted = wanted if output_hidden_states is None else output_hidden_states
        x, states = self.vit.embed(pixel_values), []
        for block in self.vit.blocks:
            states += [x] if wanted else []
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x, self.vit.grid)
            else:
                x = block(x, self.vit.grid)
        logits = self.vit.head(self.vit.pool(self.vit.finish(x)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss, logits, (*states, x) if wanted else None)
        return output.to_tuple() if return_dict is False else output

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights and buffers that are missing from the file."""
        if isinstance(module, Grid):
            for name, value in module.indices().items():
                module.get_buffer(name).copy_(value)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
