"""The pictures in memory, and plain training on them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tas_lora import UserError, cli

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the wheel's, as ImageNet's
SPLITS = ('val', 'test', 'third')


def load_images(folder: Path) -> tuple[Tensor, Tensor]:
    """All pictures, (N, 3, 64, 64) of bytes, and their labels (N,)."""
    if not folder.is_dir():
        raise UserError(f'{folder} is missing; run fetch.py, or give another --data')
    pictures = ImageFolder(folder, v2.PILToTensor())
    return torch.stack([image for image, _ in pictures]), torch.tensor(pictures.targets)


def normalised(images: Tensor) -> Tensor:
    """Bytes as the pretrained network expects them."""
    return v2.functional.normalize(images.float() / 255, MEAN, STD)


@torch.inference_mode()
def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, img_size: int, amp: bool = False
) -> float:
    """Top-1 accuracy, %; with ``amp`` products are in bfloat16."""
    model.eval()
    resized = v2.functional.resize(images, [img_size, img_size])
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        hits = sum(
            (model(normalised(batch)).argmax(1) == label).sum().item()
            for batch, label in zip(resized.split(64), labels.split(64), strict=True)
        )
    return round(100 * hits / len(labels), 2)


def augmented(images: Tensor, img_size: int, crop: float) -> Tensor:
    """Normalised crops of bytes (B, 3, H, W), each resized, and half of them mirrored."""
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(img_size, scale=(crop, 1), ratio=(0.8, 1.25)),
            v2.RandomHorizontalFlip(),
        ]
    )
    return normalised(torch.stack([augment(image) for image in images]))


def fit(
    model: nn.Module,
    pictures: tuple[Tensor, Tensor],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    groups: Sequence[dict],
    *,
    steps: int,
    batch_size: int,
    img_size: int,
    weight_decay: float = 0.05,
    crop: float = 0.6,
    amp: bool = False,
) -> float:
    """AdamW with a short warm-up and a cosine; returns the seconds of a step.

    Args:
        model: Is trained.
        pictures: Images and labels, as :func:`load_images` gives them.
        loss_of: From normalised images and labels.
        groups: Parameters and rates, as an optimizer takes them.
        steps, batch_size, img_size, weight_decay, crop: Of the training.
        amp: Whether products are in bfloat16.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    rates = [group['lr'] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    (images, labels), order = pictures, torch.empty(0, dtype=torch.long)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(images))])
        batch, order = order[:batch_size], order[batch_size:]
        inputs = augmented(images[batch], img_size, crop)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            loss = loss_of(inputs, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            cli.say(f'step {step} of {steps}: loss {loss.item():.3f}', flush=True)
    return (time.perf_counter() - start) / steps
