"""Linear maps by frozen weights, as fast as the machine has them.

On CPUs that is oneDNN with weights in a layout of its own: on two cores of an EPYC a third faster
than what F.linear calls, and it adds or activates on the fly. Elsewhere it is F.linear.
"""

import weakref
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear map, which torch.compile uses too, is there and right."""
    x = torch.linspace(-1, 1, 24).view(3, 8)  # not drawn: a run's draws are its own
    weight, bias = torch.linspace(-1, 2, 32).view(4, 8), torch.linspace(0, 1, 4)
    with torch.autocast("cpu", enabled=False):
        plain = F.linear(x, weight, bias)
    x, weight, bias, one = (z.to(dtype) for z in (x, weight, bias, torch.ones(3, 4)))
    try:
        weight = _reordered(weight)
        results = [_onednn(x, weight, bias, one, False), _onednn(x, weight, bias, None, True)]
    except (AttributeError, RuntimeError):  # no such operator; not for this processor
        return False
    close = 1e-5 if dtype == torch.float32 else 0.1
    return all(
        torch.allclose(result.float(), right, atol=close)
        for result, right in zip(results, [plain + 1, F.silu(plain)], strict=True)
    )


def use_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    simple = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return simple and onednn_works(dtype)


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
    """x (M, in) weight^T + bias, and then + residual (M, out) or silu; no autograd.

    weight: as `laid_out` gives it. On CPUs oneDNN takes the second step on the fly.
    """
    same = residual is None or residual.dtype == x.dtype
    if use_onednn(x.device, x.dtype):
        y = _onednn(x, weight, bias, residual if same else None, silu)
        return y if same else y + residual
    y = F.linear(x, weight, bias)
    if residual is not None:
        return y.add_(residual) if same else y + residual
    return F.silu(y, inplace=True) if silu else y


Layouts = dict[tuple, tuple[tuple, Tensor]]  # (rows, transposed, dtype) -> version, layout
_layouts: dict[int, Layouts] = {}  # by the id of the weight, as long as that lives


def version(weight: Tensor) -> tuple:
    """Changes when a weight does, if not behind autograd's back (through `.data`)."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def laid_out(
    weight: Tensor, dtype: torch.dtype, rows: slice | None = None, transposed: bool = False
) -> Tensor:
    """Some rows of a frozen weight (out, in), or their transpose, as `affine` wants them.

    In `dtype`, and on CPUs in the layout of the fastest kernels. Made once, and again only after
    the weight has changed; it takes memory beside the weight.
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
    now = version(weight)
    made = layouts.get(key)
    if made is None or made[0] != now:
        with torch.no_grad():
            part = weight if rows is None else weight[rows]
            part = (part.t() if transposed else part).to(dtype).contiguous()
            made = layouts[key] = (now, _reordered(part) if onednn else part)
    return made[1]


def laid_out_bytes(weights: Iterable[Tensor]) -> int:
    """What the layouts of some weights take, beside the weights."""
    layouts = [layout for w in weights for _, layout in _layouts.get(id(w), {}).values()]
    return sum(layout.numel() * layout.element_size() for layout in layouts)


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype matrix products have here: that of `like`, or autocast's."""
    probe = like.detach().new_ones(1, 1)
    return torch.mm(probe, probe).dtype
