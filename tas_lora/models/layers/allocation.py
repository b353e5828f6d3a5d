"""How many experts, of which rank, each linear layer gets."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...checks import positive, positives, some_of, within
from ...errors import UserError
from ...provenance import read_json

LAYER_KINDS = ('qkv', 'proj', 'fc1', 'fc2')  # of a block, in the order of the router's rows
_OPTIONS = ('num_experts', 'rank', 'layers', 'layer_experts', 'importance')
_MOST = 4096  # experts, and ranks: they are dealt out one by one


def allocate(scores: Sequence[float], mean: int, most: int | None = None) -> list[int]:
    """Whole numbers from 1 up to ``most``, in proportion to ``scores``, with the given mean.

    Each starts with 1; the rest goes, one by one, to the one with the most score for each it has
    (Adams' method, by which seats go to parties). On equal scores: the same for all.
    """
    counts = [1] * len(scores)
    for _ in range((mean - 1) * len(scores)):
        open_ = [i for i, count in enumerate(counts) if most is None or count < most]
        # Quotients of unlike scores may round to one number; the larger score then comes first.
        counts[max(open_, key=lambda i: (scores[i] / counts[i], -counts[i], scores[i]))] += 1
    return counts


def expert_sizes(mole: Mapping | None, depth: int) -> list[dict[str, tuple[int, int]]]:
    """Number of experts and rank of every layer that has experts.

    Args:
        mole: ``num_experts``, K, and ``rank``, R, for each linear layer. With ``layers``, such as
            ``('qkv', 'fc1')``, only the kinds named have experts. With ``importance``, one score
            for each layer, (depth, 4), or a JSON file of them, R is the mean rank, and
            ``layer_experts`` the mean number of experts: both go by the scores. None: no experts.
        depth: Number of blocks.

    Returns:
        For each block, by layer kind, (experts, rank).

    Raises:
        UserError: On an option that does not exist or makes no sense.
    """
    if mole is None:
        return [{}] * depth
    if not isinstance(mole, Mapping) or not set(_OPTIONS[:2]) <= set(mole) <= set(_OPTIONS):
        raise UserError(f'must be a dict of {_OPTIONS}, the first two always, got {mole!r}', 'mole')
    with within('mole'):
        return _expert_sizes(mole, depth)


def _expert_sizes(mole: Mapping, depth: int) -> list[dict[str, tuple[int, int]]]:
    K, rank, mean_experts = (
        positive(mole.get(option, mole['num_experts']), option, int, _MOST)
        for option in ('num_experts', 'rank', 'layer_experts')
    )
    if mean_experts > K:
        raise UserError(f'is {mean_experts}, more than num_experts, {K}', 'layer_experts')
    named = some_of(mole.get('layers', LAYER_KINDS), 'layers', LAYER_KINDS)
    kinds = [kind for kind in LAYER_KINDS if kind in named]
    scores = _scores(mole.get('importance'), depth)
    used = [(b, kind) for b in range(depth) for kind in kinds]
    weights = [scores[b][LAYER_KINDS.index(kind)] for b, kind in used]
    counts, ranks = allocate(weights, mean_experts, most=K), allocate(weights, rank)
    sizes = dict(zip(used, zip(counts, ranks, strict=True), strict=True))
    return [{kind: sizes[b, kind] for kind in kinds} for b in range(depth)]


def _scores(importance, depth: int) -> list[list[float]]:
    """Importance of every layer, (depth, 4); the same for all if none is given."""
    if importance is None:
        return [[1.0] * len(LAYER_KINDS)] * depth
    where = 'importance'
    if isinstance(importance, (str, Path)):
        where = f'importance ({importance})'
        importance = read_json(importance, 'importance')
    try:
        scores = [list(positives(block, where, float)) for block in importance]
    except (TypeError, UserError):
        scores = []
    if len(scores) != depth or any(len(block) != len(LAYER_KINDS) for block in scores):
        raise UserError(
            f'must hold {depth} lists, one a block, of {len(LAYER_KINDS)} positive numbers, for '
            f'{", ".join(LAYER_KINDS)}, got {reprlib.repr(importance)}',
            where,
        )
    return scores
