"""Cost of a training step of each method: time, memory, parameters."""

from collections.abc import Callable

import torch
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from tas_lora.costs.processes import in_new_process, peak_mib
from tas_lora.costs.timing import ratio, saved_bytes

from .comparison import trainable
from .cpu_time import cpu_seconds
from .methods import Run
from .registry import MODELS
from .stagewise import architecture_parameters

ALPHA_SHARE = 3 / 8  # of all batches: every second batch in the last 30 of 40 epochs
SIZES = {
    'tiny': dict(batch=8, changes={}),
    # SAM base, reduced to three of its twelve blocks and to images of 512 pixels.
    'base': dict(
        batch=1,
        changes=dict(
            encoder=dict(
                type='mmpretrain.ViTSAM',
                arch=dict(
                    embed_dims=768,
                    num_layers=3,
                    num_heads=12,
                    feedforward_channels=3072,
                    global_attn_indexes=[2],
                ),
                img_size=512,
            ),
            decoder=dict(type='nas_lora.MaskDecoder'),
        ),
    ),
}


def build(method: str, size: str) -> nn.Module:
    """Build a method's model with random weights.

    Args:
        method: A name in ``METHODS``.
        size: A name in :data:`SIZES`.
    """
    config = Run(method, 0).config('data/nuclei', 'none').model
    sam = dict(config.model, pretrained=None) | SIZES[size]['changes']
    model = MODELS.build(dict(config, model=sam))
    model.train()
    return model


def step_of(model: nn.Module, size: str, alpha: bool = False) -> tuple[Callable, Callable]:
    """A training step with Adam on random images, and a function for its loss only.

    Args:
        model: A model from :func:`build`.
        size: A name in :data:`SIZES`, for images and batch.
        alpha: Whether to train the architecture parameters instead of the weights.
    """
    images, samples = _batch(model, size)
    searched = architecture_parameters(model)
    known = {id(p) for p in searched}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    optimizer = torch.optim.Adam(searched if alpha else weights, lr=1e-4)

    def loss() -> Tensor:
        for parameter in searched:
            parameter.requires_grad_(alpha)
        return sum(model(images, samples, mode='loss').values())

    def step() -> None:
        loss().backward()
        optimizer.step()
        model.zero_grad()

    return step, loss


def measure(methods: list[str], size: str, rounds: int) -> dict[str, dict]:
    """Measure steps of all methods, in turn.

    Returns:
        For each method: ``trainable``; ``time`` of a batch relative to full fine-tuning, median and
        middle half over rounds; ``seconds``, the median; ``saved_mib`` that autograd keeps;
        ``peak_mib`` of a process above its memory before the first step.
    """
    jobs, result = {}, {}
    for name in methods:
        torch.manual_seed(0)
        model = build(name, size)
        jobs[name], loss = step_of(model, size)
        if architecture_parameters(model):
            jobs[f'{name} alpha'], loss = step_of(model, size, alpha=True)
        result[name] = dict(trainable=trainable(model), saved_mib=saved_bytes(model, loss) / 2**20)
    seconds = _per_batch(cpu_seconds(jobs, rounds))
    for name, record in result.items():
        record['seconds'] = sorted(seconds[name])[rounds // 2]
        record['time'] = ratio(seconds[name], seconds['full'])
        record['peak_mib'] = max(in_new_process(_peak_job, name, size) for _ in range(2))
    return result


def _per_batch(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Mean seconds per batch of weights or architecture parameters over stage-wise training."""
    result = {}
    for name, values in seconds.items():
        if not name.endswith(' alpha'):
            alpha = seconds.get(f'{name} alpha', values)
            pairs = zip(values, alpha, strict=True)
            result[name] = [(1 - ALPHA_SHARE) * w + ALPHA_SHARE * a for w, a in pairs]
    return result


def _batch(model: nn.Module, size: str) -> tuple[Tensor, list[DataSample]]:
    count, side = SIZES[size]['batch'], model.model.encoder.img_size
    masks = (torch.rand(count, *side) < 0.3).float()
    return torch.randn(count, 3, *side), [DataSample(mask=mask) for mask in masks]


def _peak_job(rank: int, processes: int, path: str, method: str, size: str) -> None:
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    step, _ = step_of(build(method, size), size)
    torch.save(peak_mib(step), path)
