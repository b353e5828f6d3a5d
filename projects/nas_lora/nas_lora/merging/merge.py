"""Merge adapters into the frozen weights, exactly or nearly, so that plain layers remain.

A linear layer sees one token at a time, so it cannot hold what a cell reads from a token's
neighbours. :func:`merge_exact` refuses such a cell; :func:`merge_least_squares` approximates it.

No other layer can take the convolution in, either. Before a softmax, q and k would need a token's
neighbours in the token itself. Behind the attention A of a head, a kernel K on the values is A K v:
it moves into no later layer, as A K = K A holds only for an A that treats all positions alike, and
layers behind work on single tokens anyway. The patch embedding could take a kernel in, as a larger
one, but positions, the class token and a layer norm lie between it and the first cell.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tas_lora.errors import UserError

from ..cells.fold import FoldedCell, fold_cell, nas_lora_layers, spatial_operations
from ..cells.linear import NASLoRALinear


@torch.no_grad()
def merge_exact(model: nn.Module) -> list[str]:
    """Replace every adapted layer of ``model`` with an equivalent plain linear layer.

    W0 + scale Wd M We, where M (r, r) is the cell: skip, no connection and bypassing channels.

    Args:
        model: An encoder with :class:`NASLoRALinear`, or a model that holds one; changed in place.

    Returns:
        The names of the merged layers.

    Raises:
        UserError: If an operation mixes tokens or is not linear; it is named, nothing is changed.
    """
    layers = nas_lora_layers(model)
    for name, layer in layers.items():
        for part, branch in layer.branches.items():
            _refuse_spatial(f'{name}.{part}', branch.cell)
    for name, layer in layers.items():
        mixed = {part: _matrix(b.cell) @ b.down.weight for part, b in layer.branches.items()}
        model.set_submodule(name, with_update(layer, mixed))
    return list(layers)


def _refuse_spatial(where: str, cell: nn.Module) -> None:
    names = spatial_operations(cell)
    if names:
        folded = ' (folded)' if isinstance(cell, FoldedCell) else ''
        raise UserError(
            f"{where}: merge(exact): {names[0]}{folded} is in the way, as it reads a token's "
            'neighbours; use fold, which is exact, or merge_least_squares'
        )


def _matrix(cell: nn.Module) -> Tensor:
    return fold_cell(cell).weight[:, :, 0, 0]


def with_update(
    layer: NASLoRALinear, mixed: dict[str, Tensor], shift: dict[str, Tensor] | None = None
) -> nn.Linear:
    """Add scale Wd ``mixed`` (r, I) to the base's weight, scale Wd ``shift`` (r,) to its bias."""
    linear = layer.base
    width = linear.out_features // len(layer.parts)
    for part, matrix in mixed.items():
        rows = slice(layer.parts.index(part) * width, (layer.parts.index(part) + 1) * width)
        up = layer.scale * layer.branches[part].up.weight
        linear.weight[rows] += up @ matrix.to(up)
        if shift is not None and linear.bias is not None:
            linear.bias[rows] += up @ shift[part].to(up)
    return linear


@dataclass(frozen=True)
class MergeReport:
    """Quality of a lossy merge.

    Attributes:
        r2: For each layer, the share of its update's variance over the given tokens that a linear
            layer explains, up to 1; NaN if the update is constant, such as zero.
        before: The metric before merging, if measured.
        after: The metric of the merged model.
        errors: For :func:`.merge_distilled`, the share of the outputs' variance that is lost on
            held-out batches, without and with its steps.
    """

    r2: dict[str, float]
    before: float | None = None
    after: float | None = None
    errors: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = [f'{name}: R^2 {value:.4f}' for name, value in self.r2.items()]
        if self.errors is not None:
            lines.append('lost without and with distillation: {:.2e}, {:.2e}'.format(*self.errors))
        if self.before is not None:
            drop = self.after - self.before
            lines.append(f'metric {self.before:.4f} -> {self.after:.4f} ({drop:+.4f})')
        return '\n'.join(lines)


@torch.no_grad()
def merge_least_squares(
    model: nn.Module,
    batches: Iterable[Tensor],
    evaluate: Callable[[], float] | None = None,
    run: Callable[[Tensor], object] | None = None,
) -> MergeReport:
    """Replace every adapted layer with the linear layer closest to it on the tokens of some inputs.

    Lossy: it keeps only the part of an update that the token itself (and a constant, if the layer
    has a bias) predicts. All layers are fitted to their inputs in the unmerged model.

    Args:
        model: An encoder with :class:`NASLoRALinear`, or a model that holds one; changed in place
            and run in evaluation mode.
        batches: Calibration inputs, with several times more tokens than a layer is wide.
        evaluate: Returns the model's metric; called before and after.
        run: Runs the model on a batch; by default ``model(batch)``.

    Returns:
        R^2 of each layer, and the metrics.

    Raises:
        UserError: If there are no batches, or a layer saw no more tokens than it is wide; the layer
            is named, nothing is changed.
    """
    layers = nas_lora_layers(model)
    before = evaluate() if evaluate else None
    sums = _calibrate(model, layers, batches, run or model)
    for name, layer in layers.items():
        check_enough(name, sums[name].count, layer.base.in_features)
    r2 = {}
    for name, layer in layers.items():
        mixed, shift, r2[name] = sums[name].solve()
        model.set_submodule(name, with_update(layer, mixed, shift))
    return MergeReport(r2, before, evaluate() if evaluate else None)


def _calibrate(model: nn.Module, layers: dict, batches: Iterable[Tensor], run: Callable) -> dict:
    """Run the batches and return the sums of each layer."""
    sums = {name: CellSums(layer) for name, layer in layers.items()}
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(sums[name].add))
        for batch in batches:
            run(batch)
    return sums


def check_enough(name: str, count: int, width: int) -> None:
    """Raise :class:`UserError` unless a layer saw more tokens than it is wide."""
    if count <= width:
        raise UserError(
            f'{name}: merge(least_squares) needs more tokens than the layer is wide ({width}), '
            f'got {count}; give more batches'
        )


class CellSums:
    """Sums over tokens x, extended by a 1 if the layer has a bias, and over cell outputs z.

    The fit of an update Wd z is Wd times the fit of z, which is only r wide.
    """

    def __init__(self, layer: NASLoRALinear):
        self.layer = layer
        self.count = 0
        self.xx: Tensor | float = 0.0
        self.xz = dict.fromkeys(layer.branches, 0.0)
        self.zz = dict.fromkeys(layer.branches, 0.0)
        self.z = dict.fromkeys(layer.branches, 0.0)

    def add(self, layer: NASLoRALinear, inputs: tuple[Tensor]) -> None:
        """Add the tokens of an input; a forward pre-hook."""
        for tokens in layer.maps(inputs[0]):
            x = tokens.flatten(0, 2).double()
            if layer.base.bias is not None:
                x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            self.count += len(x)
            self.xx = self.xx + x.T @ x
            for part, branch in layer.branches.items():
                z = branch.features(tokens).flatten(0, 2).double()
                self.xz[part] = self.xz[part] + x.T @ z
                self.zz[part] = self.zz[part] + z.T @ z
                self.z[part] = self.z[part] + z.sum(0)

    def solve(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, float]:
        """Solve z = M x + c for M (r, I) and c (r,) of each part; also R^2 of the whole update."""
        width = self.layer.base.in_features
        # After a layer norm tokens lie in a hyperplane, up to rounding, which must not be fitted.
        inverse = torch.linalg.pinv(self.xx, rtol=1e-9, hermitian=True)
        mixed, shift, left, total = {}, {}, 0.0, 0.0
        for part, branch in self.layer.branches.items():
            fit = inverse @ self.xz[part]
            mixed[part], shift[part] = fit[:width].T, fit[width:].sum(0)
            up = branch.up.weight.double()
            gram = up.T @ up
            left += float((gram * (self.zz[part] - self.xz[part].T @ fit)).sum())
            center = torch.outer(self.z[part], self.z[part]) / self.count
            total += float((gram * (self.zz[part] - center)).sum())
        return mixed, shift, 1 - left / total if total > 0 else float('nan')
