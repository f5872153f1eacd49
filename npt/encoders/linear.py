"""Linear layers whose weights are frozen.

They are F.linear on the weights as they are, or, on CPUs, oneDNN's kernels on copies of the weights
in oneDNN's own layout; these kernels also add the residual or apply the activation. Which of the
two is a fixed rule and not a measurement at run time, because the last bits of the results differ,
and a run must give the same figures whenever it is repeated.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from npt.errors import NPTError

WAYS = ("auto", "torch", "onednn")  # the values of MODEL.LINEAR
NARROW = 256  # with fewer inputs or outputs, a call of oneDNN costs more than its kernel gains
EVERY = slice(None)  # rows of a weight

_ways = WeakTensorKeyDictionary()  # weight -> one of WAYS; "auto" if it has no entry


def choose(weights: Iterable[Tensor], way: str) -> None:
    """Compute the products with these weights as `way` says, one of WAYS.

    torch: F.linear, without copies in float32
    onednn: oneDNN with laid-out copies; NPTError in the first product if it cannot
    auto: oneDNN for bfloat16 and weights that are not narrow, if it works here; otherwise F.linear
    """
    for weight in weights:
        _ways[weight] = way


def chosen(weight: Tensor) -> str:
    return _ways.get(weight, "auto")


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


def use_onednn(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of dtype `dtype` with this weight take oneDNN.

    NPTError if it was chosen but does not exist for this device, type or processor.
    """
    way = chosen(weight)
    if way == "torch" or (
        way == "auto" and (dtype != torch.bfloat16 or min(weight.shape) < NARROW)
    ):
        return False
    supported = weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    if supported and onednn_works(dtype):
        return True
    if way == "onednn":
        raise NPTError(
            f"MODEL.LINEAR is onednn, but here oneDNN has no linear layers of "
            f"{str(dtype).removeprefix('torch.')} on {weight.device.type}; set it to auto"
        )
    return False


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
    if weight.is_mkldnn:
        return _onednn(x, weight, bias, residual, silu)
    y = F.linear(x, weight, bias)
    if residual is not None:
        return y.add_(residual)
    return F.silu(y, inplace=True) if silu else y


Copies = dict[tuple, tuple[tuple, Tensor]]  # (dtype, ...) -> version of the weight, its copy
_copies = WeakTensorKeyDictionary()  # weight -> its Copies


def version(weight: Tensor) -> tuple:
    """Changes when the weight changes, except by changes through `.data`."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def laid_out(
    weight: Tensor, dtype: torch.dtype, rows: slice = EVERY, transposed: bool = False
) -> Tensor:
    """Rows of a frozen weight (out, in), or their transpose, in `dtype`, for `affine`.

    A view of the weight, or of one copy in another dtype; for oneDNN a copy in its layout. Copies
    take memory in addition to the weight, and are cached until the weight changes or is freed.
    """
    if use_onednn(weight, dtype):
        key = (dtype, rows.start, rows.stop, transposed)
        return _copied(
            weight, key, lambda w: _reordered(_part(w, rows, transposed).to(dtype).contiguous())
        )
    if weight.dtype != dtype:
        weight = _copied(weight, (dtype,), lambda w: w.to(dtype))
    return _part(weight, rows, transposed)


def _part(weight: Tensor, rows: slice, transposed: bool) -> Tensor:
    part = weight if rows == EVERY else weight[rows]
    return part.t() if transposed else part


def _copied(weight: Tensor, key: tuple, copy: Callable[[Tensor], Tensor]) -> Tensor:
    copies: Copies = _copies.setdefault(weight, {})
    current = version(weight)
    if key not in copies or copies[key][0] != current:
        with torch.no_grad():
            copies[key] = (current, copy(weight))
    return copies[key][1]


def laid_out_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes of the cached copies that `laid_out` made of these weights."""
    copies = [copy for w in weights for _, copy in _copies.get(w, {}).values()]
    return sum(copy.numel() * copy.element_size() for copy in copies)


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
