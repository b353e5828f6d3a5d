"""Latency and peak memory of subnets as they are deployed, measured on the exported network."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..checks import natural, one_of, positive
from ..errors import UserError
from ..models.classifiers.supernet_classifier import SupernetClassifier
from ..models.export import plain_network
from ..models.plain_vit import POOLINGS, PlainViT
from ..structures import Subnet
from .timing import milliseconds, stopwatch

PRECISIONS = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
OPTIONS = ('device', 'batch_size', 'precision', 'warmup', 'rounds')


class Deployed:
    """Measures the network that ``tools/export.py`` makes of a subnet, with random weights.

    At low precision, weights and images are cast once, as in a deployment. Autocast would keep
    float32 weights and cast them in every forward. On CPUs, ``torch.get_num_threads`` applies.

    Args:
        image_spec: ``image_spec`` of a :class:`SupernetClassifier`.
        pooling: 'avg_featmap', 'cls_token' or 'cls_avg'.
        device: 'cpu', or 'cuda' for the current GPU.
        batch_size: Images per forward.
        precision: 'float32', 'bfloat16' or, on a GPU, 'float16'.
        warmup: Untimed forwards before the timed ones.
        rounds: Timed forwards.

    Raises:
        UserError: If an argument is invalid, or there is no GPU.
    """

    def __init__(
        self,
        image_spec: Mapping,
        pooling: str,
        device: str = 'cpu',
        batch_size: int = 1,
        precision: str = 'float32',
        warmup: int = 3,
        rounds: int = 20,
    ):
        one_of(pooling, 'pooling', POOLINGS)
        one_of(device, 'device', ('cpu', 'cuda'))
        one_of(precision, 'precision', tuple(PRECISIONS))
        if device == 'cuda' and not torch.cuda.is_available():
            raise UserError("is 'cuda', but there is no GPU; set 'cpu'", 'device')
        if (device, precision) == ('cpu', 'float16'):
            raise UserError("must be 'float32' or 'bfloat16' on a CPU, got 'float16'", 'precision')
        self.image_spec, self.pooling = dict(image_spec), pooling
        self.device, self.dtype = device, PRECISIONS[precision]
        self.batch_size = positive(batch_size, 'batch_size', int, most=100_000)
        self.warmup = natural(warmup, 'warmup', most=100_000)
        self.rounds = positive(rounds, 'rounds', int, most=100_000)

    @classmethod
    def of_model(cls, model: SupernetClassifier, options: Mapping) -> 'Deployed':
        """For subnets of a supernet; ``options`` are ``val_cfg.measure`` of a search config.

        Raises:
            UserError: If ``options`` is not a dict, or has a key that is not in :data:`OPTIONS`.
        """
        if not isinstance(options, Mapping) or not set(options) <= set(OPTIONS):
            raise UserError(f'must be a dict of {OPTIONS}, got {options!r}', '')
        return cls(model.image_spec, model.backbone.out_type, **options)

    def __call__(self, subnet: Subnet) -> dict[str, float]:
        """:meth:`latency` and :meth:`memory`; all figures are infinite if memory runs out."""
        try:
            return self.latency(subnet) | self.memory(subnet)
        except torch.OutOfMemoryError:
            return dict(latency=inf, latency_spread=inf, memory=inf)

    def latency(self, subnet: Subnet) -> dict[str, float]:
        """:func:`latency_of` a forward of one batch."""
        return latency_of(partial(*self._build(subnet)), self.device, self.warmup, self.rounds)

    @torch.no_grad()
    def memory(self, subnet: Subnet) -> dict[str, float]:
        """Peak memory of the tensors in one forward: weights, images and activations.

        Excludes the rest of a process: libraries, the GPU's context, workspaces, and what the
        allocator keeps in reserve.

        Returns:
            ``memory`` in MiB.
        """
        if self.device == 'cpu':
            net, images = self._build(subnet)
            with _LiveBytes([*net.parameters(), *net.buffers(), images]) as live:
                net(images)
            return dict(memory=live.peak / 2**20)
        self._peak_on_gpu(subnet)  # libraries allocate their workspaces here, once
        return dict(memory=self._peak_on_gpu(subnet) / 2**20)

    def _build(self, subnet: Subnet) -> tuple[PlainViT, Tensor]:
        """Build the network, and images for it."""
        spec = self.image_spec
        with torch.random.fork_rng(devices=()):  # measuring must not change what a search draws
            net = PlainViT(**plain_network(subnet, spec, self.pooling))
            shape = (self.batch_size, spec['in_channels'], spec['img_size'], spec['img_size'])
            images = torch.randn(shape)
        return net.eval().to(self.device, self.dtype), images.to(self.device, self.dtype)

    def _peak_on_gpu(self, subnet: Subnet) -> int:
        before = torch.cuda.memory_allocated()
        net, images = self._build(subnet)
        torch.cuda.reset_peak_memory_stats()
        net(images)
        return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def latency_of(
    forward: Callable[[], object], device: str = 'cpu', warmup: int = 3, rounds: int = 20
) -> dict[str, float]:
    """Time ``forward``, which runs a batch on ``device``, after ``warmup`` untimed calls.

    Returns:
        ``latency``, the median, and ``latency_spread``, the interquartile range, in ms, of the
        :func:`trimmed` rounds.
    """
    for _ in range(warmup):
        forward()
    found = milliseconds(trimmed([stopwatch(forward, device) for _ in range(rounds)]))
    low, high = found['spread']
    return dict(latency=found['median'], latency_spread=high - low)


def trimmed(seconds: Sequence[float]) -> list[float]:
    """Remove outliers: values beyond Tukey's fences (Exploratory Data Analysis, 1977).

    The fences are 1.5 interquartile ranges below the first quartile and above the third. A few
    outliers among many rounds do not move them.
    """
    low, high = np.quantile(seconds, [0.25, 0.75])
    reach = 1.5 * (high - low)
    return [value for value in seconds if low - reach <= value <= high + reach]


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages, including those of ``tensors``.

    Memory that an operation allocates and frees internally is not seen.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._see(result)
        return results

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # the same object for all views while one of them lives
        if id(storage) not in self.alive:
            self.alive.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size
