"""Scores of neurons, heads and channels: how much a network would miss each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..analysis.features import evaluating
from ..checks import natural, positive
from ..errors import UserError
from ..models import SupernetClassifier
from ..registry import TASK_UTILS
from .couplings import couplings, unit_sums
from .outputs import output_of


class ChannelScore:
    """Base class of scores. Register a subclass in ``TASK_UTILS`` to use it in tools/order.py.

    Args:
        seed: Of whatever a score draws. An ``__init__`` of a subclass must take it.
    """

    needs_labels = False

    def __init__(self, seed: int = 0):
        self.seed = natural(seed, 'seed')

    def __call__(
        self, model: SupernetClassifier, batches: Sequence[dict]
    ) -> dict[str, list[Tensor]]:
        """Score all units of a supernet at its full size; the larger, the more one is worth.

        Args:
            model: A supernet without experts. It is left as it was, gradients and modes included.
            batches: Batches of its ``data_preprocessor``, with ``inputs`` and ``data_samples``.

        Returns:
            For each block the scores of its MLP's ``neurons`` (hidden,) and its ``heads`` (H,), and
            once those of the ``channels`` of the residual stream (C,).

        Raises:
            UserError: If the model has experts, there are no batches, or labels are missing.
        """
        table = couplings(model)
        if not batches:
            raise UserError('there are no images to score with; give some')
        if self.needs_labels:
            _check_labels(model, batches, type(self).__name__)
        with borrowed(model):
            return self.score(model, batches, table)

    def score(self, model: SupernetClassifier, batches: Sequence[dict], table: dict) -> dict:
        """Scores by kind, as :meth:`__call__` returns them.

        The model is in evaluation mode, all weights take gradients, which are empty, and the
        subnet is the largest. ``table`` is that of :func:`~.couplings.couplings`.
        """
        raise NotImplementedError


@TASK_UTILS.register_module()
class TaylorScore(ChannelScore):
    """Sum of abs(w dL/dw) over all entries w of a unit, with L the loss on labels.

    Torch-Pruning's ``GroupTaylorImportance`` (Fang et al., CVPR 2023). Gradients are summed over
    the batches.
    """

    needs_labels = True

    def score(self, model: SupernetClassifier, batches: Sequence[dict], table: dict) -> dict:
        """See :meth:`ChannelScore.score`."""
        for batch in batches:
            loss, _ = model.parse_losses(model(**batch, mode='loss'))
            loss.backward()
        changes = {name: change.abs() for name, change in first_order_changes(model).items()}
        return unit_sums(table, changes)


@TASK_UTILS.register_module()
class OutputScore(ChannelScore):
    """Expected squared change of the output, to first order, if a unit is removed; no labels.

    With J the derivative of the outputs by a unit's weights w, the squared norm of J w, by
    Hutchinson's estimate: the mean of <v, J w>^2 over random signs v. The output is the logits,
    or without a head the features.

    Args:
        seed: Of the signs.
        probes: Draws of v for each batch.
    """

    def __init__(self, seed: int = 0, probes: int = 1):
        super().__init__(seed)
        self.probes = positive(probes, 'probes', int)

    def score(self, model: SupernetClassifier, batches: Sequence[dict], table: dict) -> dict:
        """See :meth:`ChannelScore.score`."""
        rng, draws = torch.Generator().manual_seed(self.seed), []
        for batch in batches:
            output = output_of(model, batch['inputs'])
            for probe in range(self.probes):
                model.zero_grad()
                signs = torch.randint(2, output.shape, generator=rng).to(output) * 2 - 1
                output.backward(signs, retain_graph=probe + 1 < self.probes)
                draws.append(unit_sums(table, first_order_changes(model)))
        return {
            kind: [
                torch.stack(x).square().mean(0) for x in zip(*(d[kind] for d in draws), strict=True)
            ]
            for kind in table
        }


@TASK_UTILS.register_module()
class ActivationScore(ChannelScore):
    """Size of activations: root of the sum, over images, of squared means over tokens; no labels.

    Minitron (Muralidharan et al., NeurIPS 2024): of the input of ``fc2`` for neurons, of the norm
    of a head's output, and of the outputs of the blocks' LayerNorms, summed, for channels.
    """

    def score(self, model: SupernetClassifier, batches: Sequence[dict], table: dict) -> dict:
        """See :meth:`ChannelScore.score`."""
        with torch.no_grad(), recorded(model) as squares:
            for batch in batches:
                output_of(model, batch['inputs'])
        roots = {place: [x.sqrt() for x in group] for place, group in squares.items()}
        channels = torch.stack(roots.pop('norms')).sum(0)
        return roots | dict(channels=[channels])


@contextmanager
def recorded(model: SupernetClassifier) -> Iterator[dict[str, list[Tensor]]]:
    """Sum, over the images that a model sees, the squared mean activations of each unit."""
    blocks, squares, handles = model.backbone.blocks, {}, []

    def watch(module, place: str, is_input: bool, size: int = 1) -> None:
        group = squares.setdefault(place, [])
        index = len(group)
        group.append(0.0)

        def note(_, inputs, output):
            x = inputs[0] if is_input else output  # (B, N, units x size)
            sizes = x.unflatten(-1, (-1, size)).float().norm(dim=-1)
            group[index] = group[index] + sizes.mean(1).square().sum(0)

        handles.append(module.register_forward_hook(note))

    for block in blocks:
        watch(block.fc2, 'neurons', True)
        watch(block.attn.proj, 'heads', True, block.attn.head_dim)
        watch(block.attn_norm, 'norms', False)
        watch(block.ffn_norm, 'norms', False)
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def borrowed(model: SupernetClassifier) -> Iterator[None]:
    """Let all weights take gradients at the largest subnet; restore everything afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with evaluating(model), torch.enable_grad():
        model.set_subnet(model.backbone.arch)
        for parameter, _, _ in before:
            parameter.requires_grad_(True).grad = None
        try:
            yield
        finally:
            for parameter, requires_grad, gradient in before:
                parameter.requires_grad_(requires_grad).grad = gradient


def first_order_changes(model: SupernetClassifier) -> dict[str, Tensor]:
    """w dL/dw of all parameters by name; 0 where no gradient came."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.detach() * p.grad
        for name, p in model.named_parameters()
    }


def _check_labels(model: SupernetClassifier, batches: Sequence[dict], score: str) -> None:
    if model.head is None:
        raise UserError(
            f'{score} needs a head, whose loss it takes; use tas_lora.OutputScore or '
            'tas_lora.ActivationScore'
        )
    samples = [sample for batch in batches for sample in batch.get('data_samples') or (None,)]
    if any(
        sample is None or not {'gt_label', 'gt_score'} & set(sample.keys()) for sample in samples
    ):
        raise UserError(
            f'{score} needs labels, but the images have none; use a score that needs none: '
            'tas_lora.OutputScore or tas_lora.ActivationScore'
        )
