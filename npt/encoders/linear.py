"""Fast linear layers whose weights are frozen.

On CPUs they run in oneDNN, with the weights stored in oneDNN's own layout: on two cores of an EPYC
that is a third faster than F.linear, and the same kernel adds the residual or applies the
activation. On other devices they are F.linear.
"""

import weakref
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear operators exist in this torch and give correct results.

    They are the operators that torch.compile generates calls to.
    """
    x = torch.linspace(-1, 1, 24).view(3, 8)  # fixed: random numbers would change the run's own
    weight, bias = torch.linspace(-1, 2, 32).view(4, 8), torch.linspace(0, 1, 4)
    with torch.autocast("cpu", enabled=False):
        exact = F.linear(x, weight, bias)
    x, weight, bias, one = (z.to(dtype) for z in (x, weight, bias, torch.ones(3, 4)))
    try:
        weight = _reordered(weight)
        results = [_onednn(x, weight, bias, one, False), _onednn(x, weight, bias, None, True)]
    except (AttributeError, RuntimeError):  # the operator or the processor's support is missing
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    return all(
        torch.allclose(result.float(), expected, atol=tolerance)
        for result, expected in zip(results, [exact + 1, F.silu(exact)], strict=True)
    )


def use_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    supported = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return supported and onednn_works(dtype)


def _onednn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, silu: bool
) -> Tensor:
    linear = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return linear.binary(x, residual, weight, bias, "add")
    return linear(x, weight, bias, "swish" if silu else "none", [], "")


def _reordered(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """x (M, in) weight^T + bias, then either + residual (M, out) or silu; no autograd.

    weight: the result of `laid_out`
    """
    if residual is not None and residual.dtype != x.dtype:
        return affine(x, weight, bias) + residual
    if use_onednn(x.device, x.dtype):
        return _onednn(x, weight, bias, residual, silu)
    y = F.linear(x, weight, bias)
    if residual is not None:
        return y.add_(residual)
    return F.silu(y, inplace=True) if silu else y


Layouts = dict[tuple, tuple[tuple, Tensor]]  # (rows, transposed, dtype) -> version, converted copy
_layouts: dict[int, Layouts] = {}  # by id of the weight; removed when the weight is freed


def version(weight: Tensor) -> tuple:
    """Changes when the weight changes, except by changes through `.data`."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def laid_out(
    weight: Tensor, dtype: torch.dtype, rows: slice | None = None, transposed: bool = False
) -> Tensor:
    """Rows of a frozen weight (out, in), or their transpose, converted for `affine`.

    The result has dtype `dtype` and, on CPUs, oneDNN's layout. It is cached until the weight
    changes or is freed, and takes memory in addition to the weight.
    """
    onednn = use_onednn(weight.device, dtype)
    if not onednn and transposed:
        return laid_out(weight, dtype, rows).t()
    if not onednn and weight.dtype == dtype:
        return weight if rows is None else weight[rows]
    layouts = _layouts.get(id(weight))
    if layouts is None:
        layouts = _layouts[id(weight)] = {}
        weakref.finalize(weight, _layouts.pop, id(weight), None)
    key = (None if rows is None else (rows.start, rows.stop), transposed, dtype)
    current = version(weight)
    entry = layouts.get(key)
    if entry is None or entry[0] != current:
        with torch.no_grad():
            part = weight if rows is None else weight[rows]
            part = (part.t() if transposed else part).to(dtype).contiguous()
            entry = layouts[key] = (current, _reordered(part) if onednn else part)
    return entry[1]


def laid_out_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes of the cached results of `laid_out` for these weights."""
    layouts = [layout for w in weights for _, layout in _layouts.get(id(w), {}).values()]
    return sum(layout.numel() * layout.element_size() for layout in layouts)


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype of matrix products of tensors like `like`, which autocast may change."""
    device = like.device.type
    if not hasattr(torch, "get_autocast_dtype"):  # torch before 2.4: try one
        probe = like.detach().new_ones(1, 1)
        return torch.mm(probe, probe).dtype
    try:
        changes = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    except RuntimeError:  # a device type without autocast
        return like.dtype
    return torch.get_autocast_dtype(device) if changes else like.dtype
