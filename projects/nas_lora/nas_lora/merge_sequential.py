"""Merge cells of any kind by least squares, one layer after another.

:func:`.merge.merge_least_squares` fits each layer to what it sees in the adapted network. In the
merged network it sees the errors of the layers before it, which nothing corrects. Here each layer
is fitted where it will stand, and to the adapted layer's whole output rather than its update:

    min_W  sum_t |W x_t - y_t|^2 + lambda |W - W_1|^2

x_t is a token in the network that is merged up to this layer, y_t the output in the adapted network
for the same token, W_1 the independent fit and lambda ``ridge`` times the mean square of x summed
over the tokens, so that few tokens change little. The bias is fitted along.

No merge of these cells is exact. A layer before a softmax would need a token's neighbours in the
token itself. Behind the attention A of a head, a kernel K on the values is A K v: it moves into no
later layer, as A K = K A holds only for an A that treats all positions alike, and layers behind
work on single tokens anyway. The patch embedding in front could take a kernel in, as a larger one,
but positions, the class token and a layer norm come between it and the first cell.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from .fold import nas_lora_layers
from .linear import NASLoRALinear
from .merge import CellSums, MergeReport, check_enough, with_update

RIDGE = 1e-2


@torch.no_grad()
def merge_sequential(
    model: nn.Module,
    batches: Iterable[Tensor],
    evaluate: Callable[[], float] | None = None,
    run: Callable[[Tensor], object] | None = None,
    ridge: float = RIDGE,
) -> MergeReport:
    """Replace every adapted layer with a linear one that corrects the errors of those before it.

    All inputs go through the network at once, twice: the first half of this batch through the
    adapted layers, the second through the merged ones. So it costs little more than a forward, but
    memory for twice the inputs. Some ten times more tokens than the widest layer are enough.

    Args:
        model: An encoder with :class:`NASLoRALinear`, or a model that holds one; changed in place
            and run in evaluation mode. It treats the images of a batch alone.
        batches: Calibration inputs (B, ...).
        evaluate: As in :func:`.merge.merge_least_squares`.
        run: As there.
        ridge: Pull towards the independent fit, relative to the tokens' mean square.

    Returns:
        R^2 of the independent fit of each layer, and the metrics.

    Raises:
        UserError: As :func:`.merge.merge_least_squares`; nothing is changed.
    """
    layers = nas_lora_layers(model)
    before = evaluate() if evaluate else None
    fits = {name: _SideBySide(name, layer, ridge) for name, layer in layers.items()}
    images = torch.cat(list(batches))
    was_training = model.training
    model.eval()
    try:
        _place(model, fits)
        (run or model)(torch.cat([images, images]))
    except BaseException:
        _place(model, layers)
        raise
    finally:
        model.train(was_training)
    _place(model, {name: fit.merged for name, fit in fits.items()})
    r2 = {name: fit.r2 for name, fit in fits.items()}
    return MergeReport(r2, before, evaluate() if evaluate else None)


def _place(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        model.set_submodule(name, module)


class _SideBySide(nn.Module):
    """An adapted layer for the first half of a batch, its merged one for the second.

    The merged one is made when it is called, as the layers before it are merged by then.
    """

    def __init__(self, name: str, layer: NASLoRALinear, ridge: float):
        super().__init__()
        self.name, self.layer, self.ridge = name, layer, ridge

    def forward(self, x: Tensor) -> Tensor:
        """(2 B, ..., I) to (2 B, ..., O)."""
        adapted, merged = x.chunk(2)
        target = self.layer(adapted)
        self.merged = self._independent(adapted)
        _correct(self.merged, merged.flatten(0, -2), target.flatten(0, -2), self.ridge)
        return torch.cat([target, self.merged(merged)])

    def _independent(self, x: Tensor) -> nn.Linear:
        """The fit of the update to the adapted network's own tokens."""
        sums = CellSums(self.layer)
        sums.add(self.layer, (x,))
        check_enough(self.name, sums.count, self.layer.base.in_features)
        mixed, shift, self.r2 = sums.solve()
        return with_update(deepcopy(self.layer), mixed, shift)


def _correct(layer: nn.Linear, x: Tensor, target: Tensor, ridge: float) -> None:
    """Change the layer so that its outputs for tokens (N, I) come closer to ``target`` (N, O)."""
    left, has_bias = (target - layer(x)).double(), layer.bias is not None
    x = x.double()
    strength = ridge * x.square().sum(0).mean()
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1) if has_bias else x
    gram = x.T @ x
    gram.diagonal()[: layer.in_features] += strength
    change = torch.linalg.lstsq(gram, x.T @ left).solution.to(layer.weight)
    layer.weight += change[: layer.in_features].T
    if has_bias:
        layer.bias += change[-1]
