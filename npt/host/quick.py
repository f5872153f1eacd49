"""CLIP's frozen attention and MLP modules, computed in less time inside a host's own code.

A host runs its own encoder, with its own prompts and whatever else it has between and inside the
layers. Only two kinds of modules are computed differently while it runs: nn.MultiheadAttention and
CLIP's MLP (linear layer, QuickGELU, linear layer). If their weights are frozen, the backward pass
needs only the gradient of their input, and far less has to be kept for it.

`shadowed` replaces attributes of modules for the duration of a `with` block, without a change of
names, weights or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npt.encoders.blocks import GELU_SLOPE, frozen_mlp, once_or
from npt.encoders.linear import EVERY, affine, laid_out, product_dtype
from npt.host.calls import HOOKED, Call, hooked
from npt.host.verification import Unsuitable

Shadow = tuple[nn.Module, str, Any]  # a module, the name of an attribute, its value for a while


@contextmanager
def shadowed(shadows: Iterable[Shadow]) -> Iterator[None]:
    """Replace attributes of modules in a `with` block, parameters and buffers included."""
    before: list[Shadow] = []
    try:
        for module, name, value in shadows:
            before.append((module, name, module.__dict__.get(name, before)))
            module.__dict__[name] = value  # found before parameters and buffers are searched
        yield
    finally:
        for module, name, value in reversed(before):
            if value is before:  # it had no such entry
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value


def quick_modules(encoder: nn.Module, only_first_token: bool = False) -> list[Shadow]:
    """The faster `forward` of each module in `encoder` that has one, for `shadowed`.

    only_first_token: the last layer computes the first token only. Its other outputs are wrong, so
        this suits an encoder that does not read them.
    """
    found: list[tuple[nn.Module, Callable[..., Any]]] = []
    for module in encoder.modules():
        if _hooked(module) or "forward" in module.__dict__:
            continue
        if type(module) is nn.MultiheadAttention and _is_clip_s(module):
            found.append((module, _attention))
        elif _is_clip_mlp(module):
            found.append((module, _mlp))
    is_layer = [function for _, function in found[-2:]] == [_attention, _mlp]
    last = len(found) - 2 if only_first_token and is_layer else len(found)
    return [
        (module, "forward", partial(function, module, 1 if i >= last else None))
        for i, (module, function) in enumerate(found)
    ]


def _hooked(module: nn.Module) -> bool:
    """Whether one of the modules inside it, which would not run any more, has hooks."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.children())


def _is_clip_s(attention: nn.MultiheadAttention) -> bool:
    plain = attention.bias_k is None and attention.bias_v is None and not attention.add_zero_attn
    plain = plain and attention.in_proj_weight is not None and attention.in_proj_bias is not None
    return plain and not attention.batch_first and attention.dropout == 0.0


def _is_clip_mlp(module: nn.Module) -> bool:
    """Whether it is a sequence of a linear layer, QuickGELU and a linear layer."""
    parts = list(module.children())
    if type(module) is not nn.Sequential or len(parts) != 3:
        return False
    if type(parts[0]) is not nn.Linear or type(parts[2]) is not nn.Linear:
        return False
    if parts[0].bias is None or parts[2].bias is None or next(parts[1].parameters(), None):
        return False
    x = torch.linspace(-3, 3, 13)
    with torch.no_grad():
        found = parts[1](x.clone())
    expected = x * torch.sigmoid(GELU_SLOPE * x)
    return isinstance(found, Tensor) and torch.allclose(found, expected, atol=1e-6)


def _trained(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())


class Quick:
    """A way to an encoder's results: the host's own code, with quick modules.

    only_first_token: the last layer computes the class token only
    """

    of_gradients: float | None = None

    def __init__(self, only_first_token: bool = False):
        self.only_first_token = only_first_token

    def plan(self, call: Call) -> None:
        if self.only_first_token and hooked(call.encoder):
            raise Unsuitable(HOOKED)

    def run(self, call: Call, plan: None) -> Any:
        with shadowed(quick_modules(call.encoder, self.only_first_token)):
            return call.host_s()


# ---- the modules


def _linear_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad @ ctx.weight[ctx.rows].to(grad.dtype), None, None, None


def _mlp_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, x = ctx.saved_tensors
    y = frozen_mlp(x, ctx.fc, ctx.proj)
    return *torch.autograd.grad(y, x, grad, create_graph=True), None, None


class FrozenLinear(torch.autograd.Function):
    """Rows of a linear layer with frozen weights, of x (M, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: slice) -> Tensor:
        ctx.weight, ctx.rows = weight, rows
        return affine(x, laid_out(weight, x.dtype, rows), bias[rows].to(x.dtype))

    @staticmethod
    @once_or(_linear_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = laid_out(ctx.weight, grad.dtype, ctx.rows, transposed=True)
        return affine(grad, weight), None, None, None


class FrozenMLP(torch.autograd.Function):
    """CLIP's MLP of x (M, D) with frozen weights; see `npt.encoders.blocks.NormMLP`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fc: nn.Linear, proj: nn.Linear) -> Tensor:
        dtype = x.dtype
        y, bias = x * GELU_SLOPE, fc.bias.to(dtype) * GELU_SLOPE
        if ctx.needs_input_grad[0]:
            scaled = affine(y, laid_out(fc.weight, dtype), bias)  # (M, 4D)
            ctx.fc, ctx.proj = fc, proj
            ctx.save_for_backward(scaled, x)
            hidden = F.silu(scaled)
        else:
            hidden = affine(y, laid_out(fc.weight, dtype), bias, silu=True)
        hidden.mul_(1 / GELU_SLOPE)
        return affine(hidden, laid_out(proj.weight, dtype), proj.bias.to(dtype))

    @staticmethod
    @once_or(_mlp_again)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, _ = ctx.saved_tensors
        inner = affine(grad, laid_out(ctx.proj.weight, grad.dtype, transposed=True))
        inner = torch.ops.aten.silu_backward(inner, scaled)
        return affine(inner, laid_out(ctx.fc.weight, grad.dtype, transposed=True)), None, None


def _attention(
    attention: nn.MultiheadAttention,
    first: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """As nn.MultiheadAttention.forward; of the `first` tokens only, with zeros for the others."""
    usual = query is key and key is value and query.dim() == 3 and not is_causal
    usual = usual and key_padding_mask is None and not need_weights
    if not usual or _trained(attention):
        return type(attention).forward(
            attention,
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )
    length, batch, width = query.shape  # (L, B, D)
    heads, read = attention.num_heads, first or length
    x = query.to(product_dtype(query))
    weight, bias = attention.in_proj_weight, attention.in_proj_bias

    def projected(x: Tensor, rows: slice) -> list[Tensor]:  # (B, H, rows of x, d) each
        y = FrozenLinear.apply(x.reshape(-1, width), weight, bias, rows)
        y = y.view(len(x), batch, -1, heads, width // heads)
        return list(y.permute(2, 1, 3, 0, 4).unbind(0))

    if read == length:
        q, k, v = projected(x, EVERY)
    else:
        (q,), (k, v) = (
            projected(x[:read], slice(0, width)),
            projected(x, slice(width, 3 * width)),
        )
    mask = attn_mask
    if mask is not None:
        # In a mask of dtype bool, True means "do not attend" to nn.MultiheadAttention only.
        mask = ~mask if mask.dtype == torch.bool else mask.to(q.dtype)
        mask = mask.unflatten(0, (batch, heads)) if mask.dim() == 3 else mask  # (B * H, L, L)
        mask = mask[..., :read, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, read, d)
    out = attention.out_proj
    y = FrozenLinear.apply(y.permute(2, 0, 1, 3).reshape(-1, width), out.weight, out.bias, EVERY)
    return _padded(y.view(read, batch, width), length), None


def _mlp(mlp: nn.Module, first: int | None, x: Tensor) -> Tensor:
    """As the MLP's own forward; of the `first` tokens of x (L, B, D) only, zeros for the others."""
    if _trained(mlp) or x.dim() < 2:
        return type(mlp).forward(mlp, x)
    fc, _, proj = mlp.children()
    read = x if first is None else x[:first]
    y = FrozenMLP.apply(read.to(product_dtype(x)).reshape(-1, x.shape[-1]), fc, proj)
    return _padded(y.view(*read.shape[:-1], -1), len(x))


def _padded(x: Tensor, length: int) -> Tensor:
    """x (n, B, D), with zeros after its rows to (length, B, D)."""
    return x if len(x) == length else F.pad(x, (0, 0, 0, 0, 0, length - len(x)))
