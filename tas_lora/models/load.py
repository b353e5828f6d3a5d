"""From a config and a checkpoint to a supernet that is ready to evaluate."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..config import addressed, load_config
from ..errors import blame
from .checkpoint import pretrained_file
from .classifiers import SupernetClassifier
from .safe_load import read_state_dict


def load_supernet(
    config: str | Path | Config | dict,
    checkpoint: str | Path | None = None,
    device: str | torch.device = 'cpu',
) -> SupernetClassifier:
    """Build a supernet for evaluation.

    Args:
        config: A config with a ``model``, or its path.
        checkpoint: One of our checkpoints, an official AutoFormer file, a ViT of timm, Hugging
            Face or MMPretrain, or the ``weights.safetensors`` of an exported subnet. Weights of a
            bare supernet also fit a model with experts, which then start fresh. By default the
            file that ``model.backbone.init_cfg`` names, if it names one.
        device: Device of the model.

    Returns:
        The model in evaluation mode. ``set_subnet(subnet)`` selects a subnet,
        ``model(images, mode='tensor')`` computes its logits with merged experts.

    Raises:
        UserError: If config or checkpoint do not exist, or do not fit each other.
    """
    if isinstance(config, (str, Path)):
        config = load_config(config)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    model_config = dict(config['model'])
    if config.get('data_preprocessor') is not None:
        model_config.setdefault('data_preprocessor', config['data_preprocessor'])
    with addressed(dict(model=config['model'])), blame('the model cannot be built'):
        model = MODELS.build(model_config)
    if checkpoint is None and pretrained_file(model.backbone.init_cfg):
        model.backbone.init_weights()
    if checkpoint is not None:
        model.load_state_dict(read_state_dict(checkpoint))
    return model.to(device).eval()
