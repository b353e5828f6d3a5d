"""Rank the blocks of a supernet by what their absence costs."""

from collections.abc import Callable, Sequence

from ..checks import positive
from ..models import SupernetClassifier
from .outputs import damage_of, outputs


def rank_blocks(
    model: SupernetClassifier,
    batches: Sequence[dict],
    least: int = 1,
    tell: Callable[[], object] = lambda: None,
) -> list[int]:
    """Order blocks by greedy elimination: of those left, drop the one that is missed least.

    Damage is that of :func:`~.outputs.damage_of`, so no labels are needed. It takes about
    (L^2 - least^2) / 2 passes over the batches.

    Args:
        model: A supernet without experts.
        batches: Batches of its ``data_preprocessor``.
        least: Smallest depth wanted. The blocks of it are not ranked among themselves.
        tell: Called after each pass.

    Returns:
        ``block_order`` of the backbone, the best first: those never dropped, in the network's
        order, then the others, the last dropped first.
    """
    backbone, before, dropped = model.backbone, model.backbone.block_order, []
    kept = list(range(backbone.arch.depth))
    original = outputs(model, backbone.arch, batches)

    def damage_without(block: int) -> float:
        rest = [b for b in kept if b != block]
        backbone.block_order = (*rest, block, *dropped)
        found = outputs(model, backbone.run_at(len(rest)), batches)
        tell()
        return float(damage_of(model, original, found).mean())

    try:
        while len(kept) > max(positive(least, 'least', int), 1):
            block = min(kept, key=damage_without)
            kept.remove(block)
            dropped.insert(0, block)
    finally:
        backbone.block_order = before
    return kept + dropped


def passes_of(depth: int, least: int) -> int:
    """Number of passes that :func:`rank_blocks` takes."""
    return sum(range(least + 1, depth + 1))
