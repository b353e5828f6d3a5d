"""Logits and gradients on a device against those of the CPU in double precision.

Bounds. In float32 the largest difference may be 1e-4 of the largest value. In low precision every
rounding errs by up to u (2**-8 in bfloat16, 2**-11 in float16) of its value. Under autocast a block
rounds 14 times: the inputs, weights and outputs of its four products (less the one that two
share), queries times tables, attention weights, attention output and GELU. Norms, softmax and the
residual sum stay in float32. Errors of different roundings are independent, and norms keep a block
from enlarging what comes in, so they add as a random walk: after n = 14 L roundings in L blocks the
error of the logits, in norm relative to the norm of the logits, is at most

    u sqrt(14 L)

where sqrt(1/3), the deviation of a uniform rounding, is left out as a margin. A gradient passes the
forward and two products for each of the forward's, three times as many roundings: u sqrt(42 L), of
the norm of the whole gradient. One gradient that is small, as a sum of many that cancel, may err by
more; the worst is reported.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import load_config
from ..costs.benchmark import batch_of, supernet
from ..models.layers import expert_parameters
from ..packaged import CONFIGS
from ..structures import SearchSpace
from .runs import Setting

ROUNDINGS = 14  # of a block, under autocast
FLOAT32 = 1e-4
SPACES = dict(t='autoformer_t', s='autoformer_s', b='autoformer_b')


def size_config(size: str, setting: Setting):
    """Config of stage 2 of a size; for a quick check of 2 blocks on 32 pixels."""
    small = {'space.depth': [2], 'model.backbone.img_size': 32} if setting.quick else {}
    return load_config(CONFIGS / f'{SPACES[size]}_moLE.py', small, ('space',))


def rounding_bound(dtype: torch.dtype, depth: int, backward: bool) -> float:
    """Largest error of logits, or of gradients, in norm; see the top of this module."""
    unit = torch.finfo(dtype).eps / 2
    return unit * (ROUNDINGS * depth * (3 if backward else 1)) ** 0.5


def outputs(model, images: Tensor, labels: Tensor, dtype: torch.dtype, scale: float = 1.0) -> dict:
    """Logits and gradients of a batch, in double precision on the CPU.

    ``dtype`` is that of autocast; ``scale`` multiplies the loss, and divides the gradients again.
    """
    low = dtype in (torch.bfloat16, torch.float16)
    model.zero_grad()
    with torch.autocast(images.device.type, dtype if low else torch.bfloat16, enabled=low):
        logits = model(images)
    (
        F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels) * scale
    ).backward()
    found = {
        name: parameter.grad.double().cpu() / scale
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return dict(logits=logits.detach().double().cpu(), gradients=found)


def largest_difference(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference as a share of the largest value, or of ``floor`` where that is larger."""
    difference = (found - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=floor))


def norm_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference as a share of the norm, over all tensors together."""
    over = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    return (over / sum(float(b.square().sum()) for b in expected)) ** 0.5


def compare(size: str, setting: Setting) -> list[dict]:
    """Errors of logits and gradients of a drawn subnet, by precision, with their bounds."""
    cfg = size_config(size, setting)
    subnet = SearchSpace.coerce(cfg.space).sample(np.random.default_rng(0))
    torch.manual_seed(0)
    model = supernet(cfg.model)
    model.set_subnet(subnet)
    for parameter in expert_parameters(model):  # with U = 0 they would do nothing
        torch.nn.init.normal_(parameter, std=0.05)
    images, labels = batch_of(model.image_spec, 2, 'cpu')
    exact = outputs(copy.deepcopy(model).double(), images.double(), labels, torch.float64)
    model.to(setting.device)
    images, labels = images.to(setting.device), labels.to(setting.device)
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False  # True by default, for the convolution of patches
    return [
        _errors(outputs(model, images, labels, dtype, scale), exact, dtype, subnet.depth)
        for dtype, scale in ((torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 2.0**10))
    ]


def _errors(found: dict, exact: dict, dtype: torch.dtype, depth: int) -> dict:
    ours, theirs = found['gradients'], exact['gradients']
    if ours.keys() != theirs.keys():
        raise AssertionError(f'other parameters have gradients: {sorted(ours ^ theirs.keys())}')
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    by_name = {n: largest_difference(ours[n], theirs[n], 1e-3 * largest) for n in theirs}
    worst = max(by_name, key=by_name.get)
    common = dict(dtype=str(dtype)[6:], worst=worst, worst_difference=by_name[worst])
    if dtype == torch.float32:
        logits = largest_difference(found['logits'], exact['logits'])
        return common | dict(
            logits=logits, gradients=by_name[worst], bounds=dict(logits=FLOAT32, gradients=FLOAT32)
        )
    return common | dict(
        logits=norm_difference([found['logits']], [exact['logits']]),
        gradients=norm_difference([ours[n] for n in theirs], list(theirs.values())),
        bounds=dict(
            logits=rounding_bound(dtype, depth, False), gradients=rounding_bound(dtype, depth, True)
        ),
    )


def parity(setting: Setting) -> dict:
    """The part: T, S and B in float32, bfloat16 and float16."""
    found = {size: compare(size, setting) for size in SPACES}
    rows, targets = [], []
    for size, errors in found.items():
        for row in errors:
            for what in ('logits', 'gradients'):
                name = f'{size.upper()}, {what} in {row["dtype"]}'
                error, bound = row[what], row['bounds'][what]
                targets.append(
                    dict(name=name, target=f'<= {bound:.2g}', measured=error, met=error <= bound)
                )
            rows.append([size.upper(), row['dtype'], row['logits'], row['gradients']])
            rows[-1] += [row['worst_difference'], row['worst']]
    columns = ('size', 'precision', 'logits', 'gradients', 'worst gradient', 'of')
    return dict(
        sizes=found,
        targets=targets,
        tables=[dict(title='Error against the CPU in float64', columns=columns, rows=rows)],
        notes=[
            'In float32 the largest difference as a share of the largest value, in low precision '
            'the norm of the difference as a share of the norm. The bounds are derived in '
            '`tas_lora/gpu_check/parity.py`. TF32, which rounds to 11 bits and which cuDNN uses '
            'for convolutions by default, is off.'
        ],
    )
