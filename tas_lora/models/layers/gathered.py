"""Products with vectors gathered from a table, for which autograd keeps only the table."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _GatheredProduct(torch.autograd.Function):
    """Product of (N, M, ·) with (N, W, D) vectors, which the backward gathers again."""

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
            # The gradient of F.embedding, which is deterministic on a GPU also.
            grad_table = torch.ops.aten.embedding_dense_backward(
                pairs.to(table.dtype), index, len(table), -1, False
            )
        grad_x = grad @ (vectors if ctx.transposed else vectors.transpose(1, 2))
        return grad_x, grad_table, None, None


def _gather(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    # Autocast is off in the backward, so cast both sides to one type here.
    return F.embedding(index, table.to(like.dtype))


def gathered_product(x: Tensor, table: Tensor, index: Tensor, transposed: bool = False) -> Tensor:
    """Multiply each token with its own vectors, T_nw = table[index_nw].

    The vectors of all tokens would take far more memory than the table.

    Args:
        x: (B, H, N, W), or with ``transposed`` (B, H, N, D).
        table: (rows, D).
        index: (N, W).
        transposed: Take the dot product with each vector instead of their weighted sum.

    Returns:
        sum_w x_nw T_nw, (B, H, N, D); with ``transposed`` x_n . T_nw, (B, H, N, W).
    """
    tokens_first = x.permute(2, 0, 1, 3).flatten(1, 2)  # (N, B H, ...)
    y = _GatheredProduct.apply(tokens_first, table, index, transposed)
    return y.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3)
