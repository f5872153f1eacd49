"""The transformer layers of an unmodified CLIP, run with prompts, for text and image alike.

Sequences are laid out so that every exact saving is a slice: the rows that are read at the end
(the class token; the end-of-text tokens) come first, the prompts last. Attention does not care
about the order of rows; what a row may see is said by the mask alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

GELU_SLOPE = 1.702  # CLIP's x * sigmoid(1.702 x)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """CLIP's LayerNorm: computed in the dtype of its own weights, returned in that of `x`."""
    weight = norm.weight
    if x.dtype == weight.dtype:
        y = F.layer_norm(x, norm.normalized_shape, weight, norm.bias, norm.eps)
    else:
        y = F.layer_norm(x.to(weight.dtype), norm.normalized_shape, weight, norm.bias, norm.eps)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def attention(attn: nn.MultiheadAttention, x: Tensor, rows: int, mask: Tensor | None) -> Tensor:
    """Self-attention of the first `rows` rows of x (N, T, D) over all its rows: (N * rows, D)."""
    n, t, d = x.shape
    heads = (attn.num_heads, d // attn.num_heads)
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    flat = x.reshape(n * t, d)
    if 2 * rows >= t:
        qkv = F.linear(flat, weight, bias).view(n, t, 3, *heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (N, H, T, d)
        if rows < t:
            q = q[:, :, :rows]
    else:  # few queries: worth a product of their own
        q = F.linear(x[:, :rows], weight[:d], bias[:d]).view(n, rows, *heads).transpose(1, 2)
        kv = F.linear(flat, weight[d:], bias[d:]).view(n, t, 2, *heads)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    if mask is not None:
        mask = mask[:, :, :rows] if rows < t else mask
        mask = mask if mask.dtype == q.dtype else mask.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, H, rows, d)
    out = out.transpose(1, 2).reshape(n * rows, d)
    return F.linear(out, attn.out_proj.weight, attn.out_proj.bias)


class QuickGELU(torch.autograd.Function):
    """x sigmoid(ax) = silu(ax) / a: one tensor kept for backward, where the two factors cancel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * GELU_SLOPE
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / GELU_SLOPE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(grad, *ctx.saved_tensors)


def mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """CLIP's two-layer perceptron."""
    h = QuickGELU.apply(F.linear(x, layers.c_fc.weight, layers.c_fc.bias))
    return F.linear(h, layers.c_proj.weight, layers.c_proj.bias)


def block(layer: ResidualAttentionBlock, x: Tensor, rows: int, mask: Tensor | None) -> Tensor:
    """One residual attention block; only the first `rows` of x (N, T, D) come out.

    Linear maps are given matrices: with three dimensions each would cost two more views.
    """
    n, t, d = x.shape
    y = attention(layer.attn, layer_norm(layer.ln_1, x), rows, mask)
    x = (x if rows == t else x[:, :rows]).reshape(n * rows, d) + y
    x = x + mlp(layer.mlp, layer_norm(layer.ln_2, x))
    return x.view(n, rows, d)


def run_layers(
    layers: nn.Sequential,
    tokens: Tensor,
    prompts: Sequence[Tensor],
    keep: int,
    mask: Tensor | None = None,
) -> Tensor:
    """All layers over `tokens` (N, T, D), with prompts beside them; the first `keep` rows come out.

    prompts: (N or 1, M, D) each; the i-th takes the last M rows at the input of layer i, in place
    of what the layer before made of them (which is therefore not computed). More prompts than
    layers: the rest is unused.
    mask: (N or 1, 1, T + M, T + M), added to the attention scores.
    """
    x, (n, t, _) = tokens, tokens.shape
    prompts = prompts[: len(layers)]
    last = len(layers) - 1
    for i, layer in enumerate(layers):
        if i < len(prompts):
            x = torch.cat([x, prompts[i].expand(n, -1, -1)], dim=1)  # (N, T + M, D)
        rows = keep if i == last else t if i + 1 < len(prompts) else x.shape[1]
        x = block(layer, x, rows, mask)
    return x  # (N, keep, D)
