"""Load a trained segmentor from its files and score it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, autocast
from torch import Tensor, nn

from tas_lora import UserError
from tas_lora.errors import blame
from tas_lora.models.safe_load import read_state_dict

from .registry import MODELS


def load_model(cfg: Config, checkpoint: str | Path) -> nn.Module:
    """Build a config's model with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: If it cannot be built, or the checkpoint does not fit it.
    """
    with blame('the model cannot be built'):
        model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(read_state_dict(checkpoint))
    except RuntimeError as error:
        reason = ' '.join(str(error).split())[:300]
        raise UserError(f'{checkpoint} does not fit the model: {reason}') from error
    model.eval()
    return model


class Scorer:
    """Scores models on the images of one part of a config.

    Args:
        cfg: A config with ``{part}_dataloader`` and ``{part}_evaluator``; with
            ``{part}_cfg=dict(fp16=True)`` products are in bfloat16 on a CPU, as in MMEngine.
        part: 'val' or 'test'.

    Raises:
        UserError: If the data cannot be read.
    """

    def __init__(self, cfg: Config, part: str = 'test'):
        with blame(f'{part}_dataloader cannot be built'):
            self.loader = Runner.build_dataloader(cfg[f'{part}_dataloader'], seed=0)
        self.evaluator = Evaluator(cfg[f'{part}_evaluator'])
        self.low_precision = bool((cfg.get(f'{part}_cfg') or {}).get('fp16', False))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model in evaluation mode."""
        for batch, samples in self._outputs(model):
            self.evaluator.process(data_samples=samples, data_batch=batch)
        return self.evaluator.evaluate(len(self.loader.dataset))

    def masks(self, model: nn.Module) -> Tensor:
        """Predicted probabilities (images, H, W), on the CPU."""
        found = [s.pred_mask.cpu() for _, samples in self._outputs(model) for s in samples]
        return torch.stack(found)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Iterator[tuple[dict, list]]:
        model.eval()
        for batch in self.loader:
            with autocast(enabled=self.low_precision):
                samples = model.test_step(batch)
            yield batch, samples


def images_of(cfg: Config, model: nn.Module, part: str, most: int) -> Iterator[Tensor]:
    """Yield batches (B, 3, H, W) of preprocessed images of a part, ``most`` in all if it has them.

    They lie across the whole part, as folders of classes come one after another.
    """
    dataset = Runner.build_dataloader(cfg[f'{part}_dataloader'], seed=0).dataset
    step = max(1, len(dataset) // most)
    chosen = [dataset[i] for i in range(0, len(dataset), step)][:most]
    for start in range(0, len(chosen), 8):
        yield model.data_preprocessor(pseudo_collate(chosen[start : start + 8]), False)['inputs']


def calibration_images(cfg: Config, model: nn.Module, least: int) -> Iterator[Tensor]:
    """Yield batches (B, 3, H, W) of preprocessed training images, at least ``least`` in all.

    The training set is repeated as often as needed; flips differ each time.
    """
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    count = 0
    while count < least:
        for batch in loader:
            images = model.data_preprocessor(batch, False)['inputs']
            count += len(images)
            yield images
            if count >= least:
                return
