"""The forward pass of a frozen CLIP's transformer layers with prompts, for text and images.

Only the prompts are trained, so the backward pass of a layer computes the gradient of the layer's
input and no gradient of its weights. The linear layers are therefore custom autograd functions.
They save only the tensors that the gradient of the input needs. Where a copy of the weights is
faster than the weights themselves, they make it once (see `linear.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npt.encoders.linear import affine, laid_out, product_dtype
from npt.errors import NPTError

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock

GELU_SLOPE = 1.702  # CLIP's x * sigmoid(1.702 x)


# ---- normalisation


def _normalise(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP's LayerNorm in the dtype of its weights; also the means and 1 / standard deviations."""
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
    """CLIP's LayerNorm, computed in the dtype of its weights and returned in the dtype of `x`."""
    y = F.layer_norm(
        x.to(norm.weight.dtype), norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    return y.to(x.dtype)


# ---- the parts of a layer; each computes only the gradient of its input


def once_or(again: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a `backward`: `again` replaces it if its result is differentiated, too.

    That is so with create_graph=True, as in meta-learning. `again` consists of operations that
    autograd knows.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        once = once_differentiable(backward)

        def either(ctx: Any, *grads: Tensor) -> Any:
            return (again if torch.is_grad_enabled() else once)(ctx, *grads)

        return either

    return decorate


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(GELU_SLOPE * x)


def frozen_mlp(
    x: Tensor,
    fc: nn.Linear,
    proj: nn.Linear,
    activation: Callable[[Tensor], Tensor] = quick_gelu,
) -> Tensor:
    """CLIP's MLP of x (M, D), in the dtype of x, with operations that autograd knows."""
    hidden = activation(F.linear(x, fc.weight.to(x.dtype), fc.bias.to(x.dtype)))
    return F.linear(hidden, proj.weight.to(x.dtype), proj.bias.to(x.dtype))


def _norm_linear_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x = ctx.saved_tensors[0]
    y = layer_norm(ctx.norm, x).to(grad.dtype) @ ctx.weight[ctx.rows].to(grad.dtype).t()
    return *torch.autograd.grad(y, x, grad, create_graph=True), None, None, None, None, None


def _linear_add_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad.to(ctx.dtype) @ ctx.weight.to(ctx.dtype), None, grad


def _norm_mlp_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mlp = ctx.saved_tensors[0], ctx.layer.mlp
    y = layer_norm(ctx.layer.ln_2, x).to(ctx.dtype)
    y = frozen_mlp(y, mlp.c_fc, mlp.c_proj, mlp.gelu)
    (inner,) = torch.autograd.grad(y, x, grad.to(ctx.dtype), create_graph=True)
    return inner + grad, None, None


class NormLinear(torch.autograd.Function):
    """LayerNorm of x (M, D), then a linear layer with `rows` of its weight, in `dtype`."""

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
    @once_or(_norm_linear_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd = ctx.saved_tensors
        grad = affine(grad, laid_out(ctx.weight, grad.dtype, ctx.rows, transposed=True))
        grad = _normalise_backward(ctx.norm, grad, x, mean, rstd)
        return grad.to(x.dtype), None, None, None, None, None


class LinearAdd(torch.autograd.Function):
    """A linear layer of x (M, in), plus `residual` (M, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear, residual: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = linear.weight, x.dtype
        bias = linear.bias.to(x.dtype)
        return affine(x, laid_out(linear.weight, x.dtype), bias, residual)

    @staticmethod
    @once_or(_linear_add_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = laid_out(ctx.weight, ctx.dtype, transposed=True)
        return affine(grad.to(ctx.dtype), weight), None, grad


class Activation(NamedTuple):
    """The activation f(x) = apply(slope x) / slope of an MLP, and the gradient of `apply`."""

    slope: float
    apply: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient, input) -> gradient of the input


QUICK_GELU = Activation(GELU_SLOPE, F.silu, torch.ops.aten.silu_backward)
GELUS = {
    how: Activation(
        1.0,
        partial(F.gelu, approximate=how),
        partial(torch.ops.aten.gelu_backward, approximate=how),
    )
    for how in ("none", "tanh")
}


def activation_of(layer: ResidualAttentionBlock) -> Activation:
    """QuickGELU, as OpenAI's models have it, or GELU."""
    module = layer.mlp.gelu
    return GELUS[module.approximate] if isinstance(module, nn.GELU) else QUICK_GELU


class NormMLP(torch.autograd.Function):
    """x (M, D) plus CLIP's two-layer MLP of LayerNorm(x).

    OpenAI's activation is QuickGELU(x) = x sigmoid(ax) = silu(ax) / a with a = 1.702. The first
    linear layer returns ax, so the only large tensor that is saved for backward is ax, and in the
    gradient the factors a and 1 / a cancel. With GELU, a is 1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ResidualAttentionBlock, dtype: torch.dtype) -> Tensor:
        norm, fc, proj = layer.ln_2, layer.mlp.c_fc, layer.mlp.c_proj
        slope, apply, _ = activation = activation_of(layer)
        y, mean, rstd = _normalise(norm, x)
        y, bias = y.mul_(slope).to(dtype), fc.bias.to(dtype) * slope
        if ctx.needs_input_grad[0]:
            scaled = affine(y, laid_out(fc.weight, dtype), bias)  # (M, 4D)
            ctx.layer, ctx.dtype = layer, dtype
            ctx.save_for_backward(x, mean, rstd, scaled)
            hidden = apply(scaled)
        elif activation is QUICK_GELU:
            hidden = affine(y, laid_out(fc.weight, dtype), bias, silu=True)
        else:
            hidden = apply(affine(y, laid_out(fc.weight, dtype), bias))
        if slope != 1:
            hidden.mul_(1 / slope)
        return affine(hidden, laid_out(proj.weight, dtype), proj.bias.to(dtype), x)

    @staticmethod
    @once_or(_norm_mlp_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scaled = ctx.saved_tensors
        mlp, norm, dtype = ctx.layer.mlp, ctx.layer.ln_2, ctx.dtype
        inner = affine(grad.to(dtype), laid_out(mlp.c_proj.weight, dtype, transposed=True))
        inner = activation_of(ctx.layer).backward(inner, scaled)  # (M, 4D)
        inner = affine(inner, laid_out(mlp.c_fc.weight, dtype, transposed=True))
        inner = _normalise_backward(norm, inner, x, mean, rstd).to(x.dtype)
        return inner.add_(grad), None, None


# ---- layers

_modules: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Its parameters; in a third of the time of `parameters`, and those that are shared twice."""
    left = [module]
    while left:
        one = left.pop()
        yield from (p for p in one._parameters.values() if p is not None)
        left += one.children()


def is_frozen(layers: nn.Sequential) -> bool:
    """Whether no weight requires a gradient.

    The modules are listed once: to find them takes a twentieth of a step on a GPU.
    """
    if layers not in _modules:
        _modules[layers] = [m for m in layers.modules() if m is not layers]
    weights = (p for m in _modules[layers] for p in m._parameters.values() if p is not None)
    return not any(p.requires_grad for p in weights)


def project(
    layer: ResidualAttentionBlock, x: Tensor, dtype: torch.dtype, first: int = 0, last: int = 3
) -> Tensor:
    """Queries, keys and values (0, 1, 2) of a layer: those from `first` to `last` - 1.

    x (B, N, D) -> (B, N, last - first, H, d)
    """
    attn, (b, n, d) = layer.attn, x.shape
    flat, rows = x.reshape(b * n, d), slice(first * d, last * d)
    y = NormLinear.apply(flat, layer.ln_1, attn.in_proj_weight, attn.in_proj_bias, rows, dtype)
    return y.view(b, n, last - first, attn.num_heads, -1)


def after_attention(
    layer: ResidualAttentionBlock, x: Tensor, attended: Tensor, dtype: torch.dtype
) -> Tensor:
    """The layer after attention: x (B, N, D) + out_proj(attended (B, N, H, d)), then the MLP."""
    out, d = layer.attn.out_proj, x.shape[-1]
    flat = LinearAdd.apply(attended.reshape(-1, d), out, x.reshape(-1, d))
    return NormMLP.apply(flat, layer, dtype).view(x.shape)


def run_layers(
    layers: nn.Sequential,
    fixed: Tensor,
    prompts: Sequence[Tensor],
    read: Tensor,
    attend: Callable[[Tensor], Tensor],
    attend_read: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run all layers on N = T + M tokens: T fixed ones, then M prompts; returns (B, R, D).

    fixed: (B or 1, T, D), the input of the first layer without prompts; it needs no gradient
    prompts: (B or 1, M, D) each; the i-th is the input of layer i at the last M tokens, where it
        replaces the output of layer i - 1. Prompts beyond the number of layers are not used.
    read: (R,) the tokens to return. The last layer computes queries and the MLP for them only.
    attend: attention of all tokens, (B, N, 3, H, d) queries, keys, values -> (B, N, H, d)
    attend_read: attention of the tokens `read`, (B, R, 1, H, d) queries and (B, N, 2, H, d) keys
        and values -> (B, R, H, d)

    If `fixed` has 1 row, its tokens are the same for all images of the batch, and their queries,
    keys and values in the first layer are computed once. Raises NPTError if a layer's weights
    require gradients, because the parts of a layer compute none for them.
    """
    if torch.is_grad_enabled() and not is_frozen(layers):
        raise NPTError(
            "these encoders give no gradient to CLIP's weights; call requires_grad_(False) on the "
            "model"
        )
    first_layer: ResidualAttentionBlock = layers[0]
    dtype = product_dtype(first_layer.attn.in_proj_weight)
    batch = max([len(fixed), *(len(p) for p in prompts[:1])])
    t = fixed.shape[1]

    def joined(parts: list[Tensor]) -> Tensor:
        if len(parts) == 1 and len(parts[0]) == batch:
            return parts[0]
        return torch.cat([p.expand(batch, *p.shape[1:]) for p in parts], dim=1)

    def projected(layer: ResidualAttentionBlock, sources: list[Tensor], first: int) -> Tensor:
        return joined([project(layer, source, dtype, first) for source in sources])

    # No name here keeps queries, keys, values or an earlier x alive during the MLP, whose hidden
    # values are the largest tensor of a layer.
    last = len(layers) - 1
    x = fixed
    for i, layer in enumerate(layers):
        sources = [x[:, :t], prompts[i]] if i < len(prompts) else [x]
        x = joined(sources)  # (B, N, D)
        if i > 0:
            sources = [x]
        if i < last:
            x = after_attention(layer, x, attend(projected(layer, sources, 0)), dtype)
        else:  # queries for `read` only
            kv = projected(layer, sources, 1)
            x = x.index_select(1, read)  # (B, R, D)
            x = after_attention(layer, x, attend_read(project(layer, x, dtype, 0, 1), kv), dtype)
    return x
