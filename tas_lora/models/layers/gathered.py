"""Products with vectors gathered from a table, of which autograd keeps the table alone."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _GatheredProduct(torch.autograd.Function):
    """Product of (N, M, ·) with (N, W, D) vectors, which are gathered again in the backward."""

    @staticmethod
    def forward(ctx, x, table, index, transposed):
        ctx.transposed = transposed
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, table, index)
        vectors = _gather(table, index, x)
        return x @ (vectors.transpose(1, 2) if transposed else vectors)

    @staticmethod
    def backward(ctx, grad):
        x, table, index = ctx.saved_tensors
        vectors, grad_table = _gather(table, index, grad), None
        if x is not None:
            by_line, by_width = (grad, x) if ctx.transposed else (x, grad)
            pairs = by_line.transpose(1, 2) @ by_width.to(by_line.dtype)  # (N, W, D)
            # What the gradient of F.embedding is: the same at each run on a GPU, too.
            grad_table = torch.ops.aten.embedding_dense_backward(
                pairs.to(table.dtype), index, len(table), -1, False
            )
        grad_x = grad @ (vectors if ctx.transposed else vectors.transpose(1, 2))
        return grad_x, grad_table, None, None


def _gather(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    # Autocast is off in the backward: both sides must be of one type by themselves.
    return F.embedding(index, table.to(like.dtype))


def gathered_product(x: Tensor, table: Tensor, index: Tensor, transposed: bool = False) -> Tensor:
    """What each token makes of its own vectors, T_nw = table[index_nw].

    Those of all tokens take far more memory than the table.

    Args:
        x: (B, H, N, W), or with ``transposed`` (B, H, N, D).
        table: (rows, D).
        index: (N, W).
        transposed: Multiply with the vectors rather than weigh them.

    Returns:
        sum_w x_nw T_nw, (B, H, N, D); with ``transposed`` x_n . T_nw, (B, H, N, W).
    """
    tokens_first = x.permute(2, 0, 1, 3).flatten(1, 2)  # (N, B H, ...)
    y = _GatheredProduct.apply(tokens_first, table, index, transposed)
    return y.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3)
