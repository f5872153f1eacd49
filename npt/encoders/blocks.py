"""The transformer layers of an unmodified, frozen CLIP, run with prompts, for text and image alike.

Only prompts learn, so a layer's backward needs the gradient of its input and nothing else. Its
linear maps are therefore autograd functions of their own, that keep for backward just what the
input's gradient needs, and reach for the fastest product the machine has (see `affine`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npt.errors import NPTError

GELU_SLOPE = 1.702  # CLIP's x * sigmoid(1.702 x)


# ---- linear maps


@lru_cache
def onednn_works() -> bool:
    """Whether oneDNN's linear map, which torch.compile also uses, is there and right."""
    try:
        x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
        y = _onednn(x, weight, bias, None, True)
        z = _onednn(x, weight.t().contiguous().t(), bias, torch.ones(3, 4), False)
        plain = F.linear(x, weight, bias)
        return torch.allclose(y, F.silu(plain), atol=1e-5) and torch.allclose(
            z, plain + 1, atol=1e-5
        )
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _onednn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, silu: bool
) -> Tensor:
    linear = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return linear.binary(x, residual, weight, bias, "add")
    return linear(x, weight, bias, "swish" if silu else "none", [], "")


def affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """x (M, in) weight^T + bias, and then + residual (M, out) or silu; no autograd.

    On CPUs through oneDNN: it takes the second step on the fly, and on processors that are not
    Intel's it is faster than the library behind F.linear.
    """
    same = residual is None or residual.dtype == x.dtype
    simple = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if simple and same and onednn_works():
        return _onednn(x, weight, bias, residual, silu)
    y = F.linear(x, weight, bias)
    if residual is not None:
        return y.add_(residual) if same else y + residual
    return F.silu(y, inplace=True) if silu else y


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A frozen weight in `dtype`: converted once, and again only after it has changed."""
    if weight.dtype == dtype:
        return weight
    version = (weight._version, weight.data_ptr(), dtype)
    kept = getattr(weight, "_npt_cast", None)
    if kept is None or kept[0] != version:
        kept = (version, weight.detach().to(dtype))
        weight._npt_cast = kept
    return kept[1]


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype matrix products have here: that of `like`, or autocast's."""
    one = like.detach().new_ones(1, 1)
    return torch.mm(one, one).dtype


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
    """LayerNorm, then a linear map: x (M, D) -> (M, out) in the dtype of `weight`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
        y, mean, rstd = _normalise(norm, x)
        ctx.norm = norm
        ctx.save_for_backward(x, mean, rstd, weight)
        return affine(y.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        grad = _normalise_backward(ctx.norm, affine(grad, weight.t()), x, mean, rstd)
        return grad.to(x.dtype), None, None, None


class LinearAdd(torch.autograd.Function):
    """A linear map of x (M, in), added to `residual` (M, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return affine(x, weight, bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return affine(grad.to(weight.dtype), weight.t()), None, None, grad


class NormMLP(torch.autograd.Function):
    """x (M, D) plus CLIP's two-layer perceptron of its LayerNorm.

    With a = 1.702, CLIP's QuickGELU is x sigmoid(ax) = silu(ax) / a, so that one tensor serves
    forward and backward, where the two factors cancel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ResidualAttentionBlock, dtype: torch.dtype) -> Tensor:
        norm, fc, proj = layer.ln_2, layer.mlp.c_fc, layer.mlp.c_proj
        y, mean, rstd = _normalise(norm, x)
        y, bias = y.mul_(GELU_SLOPE).to(dtype), cast(fc.bias, dtype) * GELU_SLOPE
        if ctx.needs_input_grad[0]:
            scaled = affine(y, cast(fc.weight, dtype), bias)  # (M, 4D)
            ctx.layer, ctx.dtype = layer, dtype
            ctx.save_for_backward(x, mean, rstd, scaled)
            hidden = F.silu(scaled)
        else:
            hidden = affine(y, cast(fc.weight, dtype), bias, silu=True)
        hidden.mul_(1 / GELU_SLOPE)
        return affine(hidden, cast(proj.weight, dtype), cast(proj.bias, dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scaled = ctx.saved_tensors
        layer, dtype = ctx.layer, ctx.dtype
        inner = affine(grad.to(dtype), cast(layer.mlp.c_proj.weight, dtype).t())  # (M, 4D)
        inner = torch.ops.aten.silu_backward(inner, scaled)
        inner = affine(inner, cast(layer.mlp.c_fc.weight, dtype).t())
        inner = _normalise_backward(layer.ln_2, inner, x, mean, rstd).to(x.dtype)
        return inner.add_(grad), None, None


# ---- layers

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def project(
    layer: ResidualAttentionBlock, x: Tensor, dtype: torch.dtype, first: int = 0, last: int = 3
) -> tuple[Tensor, ...]:
    """Queries, keys and values (those of the three asked for) of x (B, N, D): (B, N, H, d) each."""
    attn, (b, n, d) = layer.attn, x.shape
    rows = slice(first * d, last * d)
    weight, bias = cast(attn.in_proj_weight, dtype)[rows], cast(attn.in_proj_bias, dtype)[rows]
    y = NormLinear.apply(x.reshape(b * n, d), layer.ln_1, weight, bias)
    return y.view(b, n, last - first, attn.num_heads, -1).unbind(2)


def finish(layer: ResidualAttentionBlock, x: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What follows attention: x (B, N, D) plus the map of `seen` (B, N, H, d), then the MLP."""
    out, d = layer.attn.out_proj, x.shape[-1]
    flat = LinearAdd.apply(
        seen.reshape(-1, d), cast(out.weight, dtype), cast(out.bias, dtype), x.reshape(-1, d)
    )
    return NormMLP.apply(flat, layer, dtype).view(x.shape)


def run_layers(
    layers: nn.Sequential,
    fixed: Tensor,
    prompts: Sequence[Tensor],
    read: Tensor,
    attend: Attend,
    attend_read: Attend,
) -> Tensor:
    """All layers over a sequence of fixed tokens and prompts; the tokens `read` come out.

    fixed: (B or 1, T, D), tokens that are no function of what is learned
    prompts: (B or 1, M, D) each; the i-th follows the fixed tokens into layer i, in place of what
        the layer before made of those rows. More prompts than layers: the rest is unused.
    read: (R,) rows that come out, (B, R, D); the last layer computes no other query and MLP
    attend(queries, keys, values), attend_read: the attention of all N rows, of the rows read;
        (B, N or R, H, d) and twice (B, N, H, d) -> (B, N or R, H, d)

    Fixed tokens are the same for all images of a batch where `fixed` has 1 row: up to the first
    attention they are then computed once. Nothing is recorded for backward before prompts join.
    """
    if torch.is_grad_enabled() and layers[0].attn.in_proj_weight.requires_grad:
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
        sources = parts if i == 0 else [x]
        first = 1 if i == last else 0  # the last layer's queries come from the rows read
        several = [project(layer, source, dtype, first) for source in sources]
        qkv = [joined(list(same)) for same in zip(*several, strict=True)]
        if i < last:
            x = finish(layer, x, attend(*qkv), dtype)
        else:
            x = x.index_select(1, read)  # (B, R, D)
            query = project(layer, x, dtype, 0, 1)
            x = finish(layer, x, attend_read(*query, *qkv), dtype)
    return x
