"""Which nets the experiment trains, and which subnets they are compared on."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: Its name in tables.
        part: The part of the experiment it belongs to.
        config: File in ``configs/``, without ``.py``.
        start: The method whose net its training starts from; None is from scratch.
        alone: Whether each of the subnets is trained on its own.
        own_init: Whether these then start from different weights.
    """

    name: str
    part: str
    config: str
    start: str | None = None
    alone: bool = False
    own_init: bool = False


def _on(supernet: str, part: str, folder: str, configs: Iterable[str]) -> list[Method]:
    """A method for each config, on one supernet; names on AutoFormer's have no suffix."""
    suffix = '' if supernet == 'autoformer' else f'_{supernet}'
    return [Method(name + suffix, part, folder + name, supernet) for name in configs]


_ABLATIONS = ('gru', 'mlp', 'rank_2', 'rank_32', 'beta_1', 'beta_10', 'warmup_0', 'warmup_all')
_ABLATIONS += ('embed', 'mlp_ratio', 'group_random', 'group_params', 'adamw_router')
_SCALES = ('scale_1', 'scale_5', 'scale_80')  # of experts
_PAST = ('free', 'free_whole', 'own', 'per_layer', 'restarts', 'joint', 'distilled', 'plus')
_PAST += ('free_single', 'plus_single')
_PAST_DYNAS = ('free', 'free_single', 'plus', 'plus_single', 'joint')
METHODS = {
    method.name: method
    for method in (
        Method('autoformer', 'supernet', 'supernet'),
        Method('ten_percent', 'supernet', 'ten_percent', 'autoformer'),
        Method('dynas', 'supernet', 'dynas'),
        Method('full_finetune', 'stage2', 'full_finetune', 'autoformer'),
        Method('single_lora', 'stage2', 'single_lora', 'autoformer'),
        Method('mole_random', 'stage2', 'mole_random', 'autoformer'),
        Method('mole', 'stage2', 'mole', 'autoformer'),
        Method('mole_dynas', 'stage2', 'mole', 'dynas'),
        Method('single_lora_dynas', 'stage2', 'single_lora', 'dynas'),
        Method('full_finetune_dynas', 'stage2', 'full_finetune', 'dynas'),
        Method('independent_same', 'independent', 'independent', alone=True),
        Method('independent_other', 'independent', 'independent', alone=True, own_init=True),
        Method('alone_whole', 'alone', 'alone_whole', 'autoformer', alone=True),
        Method('alone_whole_dynas', 'alone', 'alone_whole', 'dynas', alone=True),
        Method('alone_lora', 'alone', 'alone_lora', 'autoformer', alone=True),
        *_on('autoformer', 'ablations', 'ablations/', _ABLATIONS + _SCALES),
        *_on('dynas', 'ablations_dynas', '', ('mole_random',)),
        *_on('dynas', 'ablations_dynas', 'ablations/', _ABLATIONS),
        *_on('autoformer', 'past', 'past/', _PAST),
        *_on('dynas', 'past', 'past/', _PAST_DYNAS),
        Method('joint_start', 'past', 'past/joint_start'),
        Method('longer', 'past', 'past/longer'),
        Method('longer_single', 'past', 'past/longer_single'),
    )
}
PARTS = tuple(dict.fromkeys(method.part for method in METHODS.values()))


@dataclass(frozen=True)
class Net:
    """One net to train.

    Args:
        method: Name of its method.
        seed: Of initial weights, images and draws.
        subnet: Which of the subnets it is, if it is trained alone.
        stretch: Length of its training over that of its config.
        rate: Learning rate in place of its config's; of experts, where these are trained.
    """

    method: str
    seed: int
    subnet: int | None = None
    stretch: float = 1.0
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of its record and its folder."""
        subnet = '' if self.subnet is None else f'_{self.subnet}'
        return f'{self.family}{subnet}_seed{self.seed}'

    @property
    def family(self) -> str:
        """What nets have in common that differ in seed and subnet alone."""
        stretch = '' if self.stretch == 1 else f'_x{self.stretch:g}'
        rate = '' if self.rate is None else f'_lr{self.rate:g}'
        return f'{self.method}{stretch}{rate}'

    @property
    def start(self) -> 'Net | None':
        """The net whose weights it starts from."""
        start = METHODS[self.method].start
        return None if start is None else Net(start, self.seed)

    @property
    def init_seed(self) -> int:
        """Seed of initial weights and order of images; different ones only where wanted."""
        own = METHODS[self.method].own_init
        return self.seed + (1000 * (self.subnet + 1) if own else 0)


def nets_of(
    seeds: Iterable[int],
    methods: Iterable[str],
    subnets: Iterable[int] = range(6),
    stretch: float = 1.0,
    rate: float | None = None,
) -> list[Net]:
    """All nets of some methods, and those they start from, each after its start.

    Args:
        seeds: One repetition of all a seed.
        methods: Names out of ``METHODS``.
        subnets: Of what is trained alone, which subnets.
        stretch: Length of the trainings after stage 1, over that of their configs.
        rate: Their learning rate in place of their configs'.
    """
    subnets, methods = list(subnets), [METHODS[name] for name in METHODS if name in set(methods)]
    nets = {}
    for seed in seeds:
        for method in methods:
            later = method.start is not None and method.part != 'supernet'
            varied = dict(stretch=stretch, rate=rate) if later else {}
            for subnet in subnets if method.alone else [None]:
                net = Net(method.name, seed, subnet, **varied)
                nets |= {n: None for n in (net.start, net) if n is not None}
    return list(nets)
