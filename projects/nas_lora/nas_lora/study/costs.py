"""Cost of a training step of each method: time, memory, kernel launches, trainable parameters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from mmpretrain.models import ViTSAM
from torch import Tensor, multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tas_lora.costs.processes import peak_mib
from tas_lora.costs.timing import milliseconds, per_second, ratio, saved_bytes

from ..cells.linear import NASLoRALinear
from ..cells.stagewise import architecture_parameters
from ..cpu_time import cpu_seconds
from ..vits.adapt import adapt, auxiliary_losses

ALPHA_SHARE = 3 / 8  # of all batches: every second batch in the last 30 of 40 epochs


@dataclass(frozen=True)
class Shape:
    """An encoder with a head, and its batch.

    Args:
        note: What it is, and what was left out to fit one core.
        encoder: Builds the encoder, with random weights.
        width: Channels of its output.
        batch: Images of a step.
        side: Their height and width in pixels.
        prompts: The adapter of visual prompt tuning, and the modules that it wraps.
    """

    note: str
    encoder: Callable[[], nn.Module]
    width: int
    batch: int
    side: int
    prompts: tuple[str, str] = ('PromptedAttention', 'attention')


def _sam(width: int, heads: int, blocks: int, side: int) -> nn.Module:
    arch = dict(
        embed_dims=width,
        num_layers=blocks,
        num_heads=heads,
        feedforward_channels=4 * width,
        global_attn_indexes=[blocks - 1],
    )
    return ViTSAM(arch, img_size=side)


def _dinov2() -> nn.Module:
    import timm

    return timm.create_model('vit_small_patch14_dinov2', img_size=112, num_classes=0)


SHAPES = {
    'vit_s': Shape(
        "timm's vit_small_patch14_dinov2, 8 x 8 patches and a class token",
        _dinov2,
        width=384,
        batch=8,
        side=112,
        prompts=('PromptedTokens', 'block'),
    ),
    'sam_base': Shape(
        'ViTSAM base, 3 of 12 blocks (the last one global), 448 of 1024 pixels',
        partial(_sam, 768, 12, 3, 448),
        width=256,
        batch=1,
        side=448,
    ),
    'sam_huge': Shape(
        'ViTSAM huge, 3 of 32 blocks (the last one global), 224 of 1024 pixels',
        partial(_sam, 1280, 16, 3, 224),
        width=256,
        batch=1,
        side=224,
    ),
}


def _adapter(kind: str, targets='qkv', **options) -> dict:
    return dict(adapter=dict(type=f'nas_lora.{kind}', **options), targets=targets)


METHODS = {
    'full': dict(adapter=None),
    'head': dict(adapter=None),
    'lora': _adapter('LoRALinear', rank=3),
    'conv_lora': _adapter('ConvLoRALinear', rank=3),
    'adapter': _adapter('BottleneckAdapter', ('attention', 'ffn'), width=4),
    'vpt': {},  # the module depends on the encoder
    'nas_lora': _adapter('NASLoRALinear', rank=3),
    'nas_pc_lora': _adapter('NASLoRALinear', rank=3, ratio=2 / 3),
    'uniform': _adapter('NASLoRALinear', rank=3, choice='uniform'),
}


class Adapted(nn.Module):
    """An encoder adapted by a method, and a linear head that is trained with it.

    Args:
        method: A name in :data:`METHODS`.
        shape: The encoder.
    """

    def __init__(self, method: str, shape: Shape):
        super().__init__()
        self.encoder = shape.encoder()
        options = METHODS[method]
        if method == 'vpt':
            options = _adapter(*shape.prompts, num_prompts=20)
        adapt(self.encoder, **options)
        if method == 'full':
            self.encoder.requires_grad_(True)
        self.head = nn.Linear(shape.width, 10)
        _wake(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, 10) of images (B, 3, H, W)."""
        y = self.encoder(images)
        y = y[-1].mean((2, 3)) if isinstance(y, tuple) else y
        return self.head(y)


def _wake(model: nn.Module) -> None:
    """Give up projections values, as after a step: products with zeros may be faster."""
    for name, value in model.named_parameters():
        if value.requires_grad and name.endswith('up.weight'):
            nn.init.normal_(value, std=0.01)


def step_of(
    model: nn.Module, shape: Shape, amp: bool = False, alpha: bool = False
) -> tuple[Callable, Callable]:
    """A training step with Adam on random images, and a function for its loss only.

    Args:
        model: From :class:`Adapted`.
        shape: Its shape, for images and batch.
        amp: Whether products are in bfloat16.
        alpha: Whether to train the architecture parameters instead of the weights.
    """
    images = torch.randn(shape.batch, 3, shape.side, shape.side)
    labels = torch.arange(shape.batch) % 10
    searched = architecture_parameters(model)
    known = {id(p) for p in searched}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    # Fused: one call for all parameters, of which there are many small ones.
    optimizer = torch.optim.Adam(searched if alpha else weights, lr=1e-4, fused=True)

    def loss() -> Tensor:
        for parameter in searched:
            parameter.requires_grad_(alpha)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            value = nn.functional.cross_entropy(model(images).float(), labels)
        return sum(auxiliary_losses(model).values(), start=value)

    def step() -> None:
        loss().backward()
        optimizer.step()
        model.zero_grad()

    return step, loss


class _Launches(TorchDispatchMode):
    """Counts operations that do work: on a GPU, each starts a kernel at least."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind, name = func._schema.name.split('::')
        works = kind == 'aten' and 'empty' not in name and name != '_unsafe_view'
        self.count += works and not func.is_view
        return func(*args, **(kwargs or {}))


def launches(job: Callable) -> int:
    """Operations of ``job`` that would each start a kernel on a GPU.

    Views, memory without values and marks of the profiler do not count, nor does what happens only
    in the first call, such as Adam's zeros for each parameter: ``job`` runs once before.
    """
    job()
    with _Launches() as found:
        job()
    return found.count


def _by_definition(model: nn.Module, job: Callable) -> dict[str, int]:
    """Launches of ``job`` with the layers' cells one by one; none if ``model`` has no cells."""
    layers = [m for m in model.modules() if isinstance(m, NASLoRALinear)]
    for layer in layers:
        layer.forward = layer.by_definition
    found = dict(definition=launches(job)) if layers else {}
    for layer in layers:
        del layer.forward
    return found


def measure(methods: Iterable[str], name: str, rounds: int, amp: bool = False) -> dict[str, dict]:
    """Measure steps of all methods, in turn.

    Args:
        methods: Names in :data:`METHODS`, with 'full' and 'lora'.
        name: A name in :data:`SHAPES`.
        rounds: Steps of each method.
        amp: Whether products are in bfloat16.

    Returns:
        For each method: ``trainable`` parameters; ``ms``, CPU milliseconds of a step; ``to_full``
        and ``to_lora``, ratios of it within rounds; ``images_per_second``, each with median and
        middle half. ``launches`` of a step, with cells also by their ``definition``; ``saved_mib``
        that autograd keeps; ``peak_mib`` of a process above its memory before the first step. A
        searched method's step is the mean over steps of weights and of architecture parameters in
        the schedule's proportion; ``alpha_to_lora`` and ``weights_to_lora`` have both apart.
    """
    shape, jobs, result = SHAPES[name], {}, {}
    peaks = {method: _peak(method, shape, amp) for method in methods}
    for method in methods:
        torch.manual_seed(0)
        model = Adapted(method, shape)
        kinds = ['', ' alpha'] if architecture_parameters(model) else ['']
        steps = {method + kind: step_of(model, shape, amp, bool(kind)) for kind in kinds}
        jobs |= {key: step for key, (step, _) in steps.items()}
        result[method] = dict(
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            launches={kind.strip() or 'weights': launches(jobs[method + kind]) for kind in kinds},
            saved_mib=saved_bytes(model, steps[method][1]) / 2**20,
        )
        result[method]['launches'] |= _by_definition(model, jobs[method])
    seconds = cpu_seconds(jobs, rounds)
    means = _means(seconds)
    for method, record in result.items():
        record['ms'] = milliseconds(means[method])
        record['images_per_second'] = per_second(shape.batch, means[method])
        record['to_full'] = ratio(means[method], means['full'])
        record['to_lora'] = ratio(means[method], means['lora'])
        if f'{method} alpha' in seconds:
            record['weights_to_lora'] = ratio(seconds[method], means['lora'])
            record['alpha_to_lora'] = ratio(seconds[f'{method} alpha'], means['lora'])
        record['peak_mib'] = peaks[method]
    return result


def _means(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Mean seconds of a step of weights or architecture parameters over stage-wise training."""
    result = {}
    for name, values in seconds.items():
        if not name.endswith(' alpha'):
            pairs = zip(values, seconds.get(f'{name} alpha', values), strict=True)
            result[name] = [(1 - ALPHA_SHARE) * w + ALPHA_SHARE * a for w, a in pairs]
    return result


def _peak(method: str, shape: Shape, amp: bool) -> float:
    """Peak memory of two steps in a process of its own, above what it holds before, in MiB.

    A copy of this process, which has all libraries, but no models yet.
    """
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    process = context.Process(target=_put_peak, args=(queue, method, shape, amp))
    process.start()
    process.join()
    return queue.get()


def _put_peak(queue, method: str, shape: Shape, amp: bool) -> None:
    torch.manual_seed(0)
    queue.put(peak_mib(step_of(Adapted(method, shape), shape, amp)[0]))
