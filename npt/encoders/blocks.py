"""The transformer layers of an unmodified, frozen CLIP, run with prompts, for text and image alike.

Only prompts learn, so a layer's backward needs the gradient of its input and nothing else. Its
linear maps are therefore autograd functions of their own: they keep for backward just what the
input's gradient needs, and their weights are laid out once for the machine (see `laid_out`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npt.encoders.linear import affine, laid_out, product_dtype
from npt.encoders.openai import ResidualAttentionBlock
from npt.errors import NPTError

GELU_SLOPE = 1.702  # CLIP's x * sigmoid(1.702 x)


# ---- normalisation


def _normalise(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP's LayerNorm, in the dtype of its own weights; and the means and deviations used."""
    x = x.to(norm.weight.dtype)
    return torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _normalise_backward(
    norm: nn.LayerNorm, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    weight = norm.weight
    grad, shape = grad.to(weight.dtype), norm.normalized_shape
    needed = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(
        grad, x.to(weight.dtype), shape, mean, rstd, weight, norm.bias, needed
    )[0]


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """CLIP's LayerNorm: computed in the dtype of its own weights, returned in that of `x`."""
    y = F.layer_norm(
        x.to(norm.weight.dtype), norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    return y.to(x.dtype)


# ---- the pieces of a layer, each with the backward of its input alone


class NormLinear(torch.autograd.Function):
    """LayerNorm of x (M, D), then `rows` of a linear map, in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: nn.LayerNorm,
        weight: Tensor,
        bias: Tensor,
        rows: slice,
        dtype: torch.dtype,
    ) -> Tensor:
        y, mean, rstd = _normalise(norm, x)
        ctx.norm, ctx.weight, ctx.rows = norm, weight, rows
        ctx.save_for_backward(x, mean, rstd)
        return affine(y.to(dtype), laid_out(weight, dtype, rows), bias[rows].to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd = ctx.saved_tensors
        grad = affine(grad, laid_out(ctx.weight, grad.dtype, ctx.rows, transposed=True))
        grad = _normalise_backward(ctx.norm, grad, x, mean, rstd)
        return grad.to(x.dtype), None, None, None, None, None


class LinearAdd(torch.autograd.Function):
    """A linear map of x (M, in), added to `residual` (M, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear, residual: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = linear.weight, x.dtype
        bias = linear.bias.to(x.dtype)
        return affine(x, laid_out(linear.weight, x.dtype), bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = laid_out(ctx.weight, ctx.dtype, transposed=True)
        return affine(grad.to(ctx.dtype), weight), None, grad


class NormMLP(torch.autograd.Function):
    """x (M, D) plus CLIP's two-layer perceptron of its LayerNorm.

    With a = 1.702, CLIP's QuickGELU is x sigmoid(ax) = silu(ax) / a, so that one tensor serves
    forward and backward, where the two factors cancel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ResidualAttentionBlock, dtype: torch.dtype) -> Tensor:
        norm, fc, proj = layer.ln_2, layer.mlp.c_fc, layer.mlp.c_proj
        y, mean, rstd = _normalise(norm, x)
        y, bias = y.mul_(GELU_SLOPE).to(dtype), fc.bias.to(dtype) * GELU_SLOPE
        if ctx.needs_input_grad[0]:
            scaled = affine(y, laid_out(fc.weight, dtype), bias)  # (M, 4D)
            ctx.layer, ctx.dtype = layer, dtype
            ctx.save_for_backward(x, mean, rstd, scaled)
            hidden = F.silu(scaled)
        else:
            hidden = affine(y, laid_out(fc.weight, dtype), bias, silu=True)
        hidden.mul_(1 / GELU_SLOPE)
        return affine(hidden, laid_out(proj.weight, dtype), proj.bias.to(dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scaled = ctx.saved_tensors
        mlp, norm, dtype = ctx.layer.mlp, ctx.layer.ln_2, ctx.dtype
        inner = affine(grad.to(dtype), laid_out(mlp.c_proj.weight, dtype, transposed=True))
        inner = torch.ops.aten.silu_backward(inner, scaled)  # (M, 4D)
        inner = affine(inner, laid_out(mlp.c_fc.weight, dtype, transposed=True))
        inner = _normalise_backward(norm, inner, x, mean, rstd).to(x.dtype)
        return inner.add_(grad), None, None


# ---- layers


def project(
    layer: ResidualAttentionBlock, x: Tensor, dtype: torch.dtype, first: int = 0, last: int = 3
) -> Tensor:
    """Of queries, keys and values (0, 1, 2) those from `first` to before `last`.

    x (B, N, D) -> (B, N, last - first, H, d)
    """
    attn, (b, n, d) = layer.attn, x.shape
    flat, rows = x.reshape(b * n, d), slice(first * d, last * d)
    y = NormLinear.apply(flat, layer.ln_1, attn.in_proj_weight, attn.in_proj_bias, rows, dtype)
    return y.view(b, n, last - first, attn.num_heads, -1)


def after_attention(
    layer: ResidualAttentionBlock, x: Tensor, seen: Tensor, dtype: torch.dtype
) -> Tensor:
    """What follows attention: x (B, N, D) plus the map of `seen` (B, N, H, d), then the MLP."""
    out, d = layer.attn.out_proj, x.shape[-1]
    flat = LinearAdd.apply(seen.reshape(-1, d), out, x.reshape(-1, d))
    return NormMLP.apply(flat, layer, dtype).view(x.shape)


def run_layers(
    layers: nn.Sequential,
    fixed: Tensor,
    prompts: Sequence[Tensor],
    read: Tensor,
    attend: Callable[[Tensor], Tensor],
    attend_read: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """All layers over a sequence of fixed tokens and prompts; the tokens `read` come out.

    fixed: (B or 1, T, D), tokens that are no function of what is learned
    prompts: (B or 1, M, D) each; the i-th follows the fixed tokens into layer i, in place of what
        the layer before made of those rows. More prompts than layers: the rest is unused.
    read: (R,) rows that come out, (B, R, D); the last layer computes no other query and MLP
    attend: the attention of all N rows, (B, N, 3, H, d) queries, keys, values -> (B, N, H, d)
    attend_read: of the rows read, (B, R, 1, H, d) queries, (B, N, 2, H, d) -> (B, R, H, d)

    Fixed tokens are the same for all images of a batch where `fixed` has 1 row: up to the first
    attention they are then computed once. Nothing is recorded for backward before prompts join.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in layers.parameters()):
        raise NPTError(
            "these encoders give no gradient to CLIP's weights; call requires_grad_(False) on them"
        )
    dtype = product_dtype(layers[0].attn.in_proj_weight)
    batch = max([len(fixed), *(len(p) for p in prompts[:1])])
    t = fixed.shape[1]

    def joined(parts: list[Tensor]) -> Tensor:
        if len(parts) == 1 and len(parts[0]) == batch:
            return parts[0]
        return torch.cat([p.expand(batch, *p.shape[1:]) for p in parts], dim=1)

    last = len(layers) - 1
    x = fixed
    for i, layer in enumerate(layers):
        parts = [x[:, :t], prompts[i]] if i < len(prompts) else [x]
        x = joined(parts)  # (B, N, D)
        first = 1 if i == last else 0  # the last layer's queries come from the rows read
        sources = parts if i == 0 else [x]
        qkv = joined([project(layer, source, dtype, first) for source in sources])
        if i < last:
            x = after_attention(layer, x, attend(qkv), dtype)
        else:
            x = x.index_select(1, read)  # (B, R, D)
            x = after_attention(layer, x, attend_read(project(layer, x, dtype, 0, 1), qkv), dtype)
    return x
