"""Whether a faster computation gives what a host's own module gives: its outputs and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The largest relative deviations allowed for outputs and gradients.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-9, 1e-8)}
TOLERANCE_IN_HALF = (2e-2, 5e-2)


class Unsuitable(Exception):
    """The reason why a faster computation cannot be used."""


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and raise Unsuitable instead of any error in it."""
    try:
        return function(*args)
    except Unsuitable:
        raise
    except Exception as error:
        raise Unsuitable(" ".join(str(error).split()) or type(error).__name__) from error


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, and in modules' lists of parameters."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list, torch.nn.ParameterList)):
        return [x for item in value for x in tensors_in(item)]
    return []


@contextmanager
def same_random_numbers() -> Iterator[Callable[[], None]]:
    """Gives a function that resets the random state to that at the beginning of the `with` block.

    At its end, the random state is that before the function was called.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    first = _random_state(devices)
    last = []

    def rewind() -> None:
        last.append(_random_state(devices))
        _restore(first, devices)

    try:
        yield rewind
    finally:
        if last:
            _restore(last[0], devices)


def _random_state(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]


def _restore(state: list[Tensor], devices: list[int]) -> None:
    torch.set_rng_state(state[0])
    for i, of_device in zip(devices, state[1:], strict=True):
        torch.cuda.set_rng_state(of_device, i)


def check_same(
    expected: Any, found: Any, trained: list[Tensor], what: str, of_gradients: float | None = None
) -> None:
    """Raises Unsuitable if two outputs, or the gradients of `trained`, differ.

    what: names the outputs in the reason
    of_gradients: allowed deviation of the gradients, instead of that of the outputs' dtype
    """
    both = tensors_in(expected), tensors_in(found)
    shapes = [[(tuple(x.shape), x.dtype) for x in tensors] for tensors in both]
    if type(expected) is not type(found) or shapes[0] != shapes[1] or not shapes[0]:
        raise Unsuitable(f"{what} have another shape or type: {shapes[0]}, not {shapes[1]}")
    kinds = {x.dtype for x in both[0]}
    pairs = [TOLERANCE.get(dtype, TOLERANCE_IN_HALF) for dtype in kinds]
    allowed, allowed_gradients = (max(column) for column in zip(*pairs, strict=True))
    deviation = _deviation(*both)
    if not deviation <= allowed:
        raise Unsuitable(f"{what} differ by {deviation:.1e}")
    deviation = _deviation(*_gradients(*both, trained))
    if not deviation <= (of_gradients or allowed_gradients):
        raise Unsuitable(f"gradients of its prompts differ by {deviation:.1e}")


def _gradients(
    expected: list[Tensor], found: list[Tensor], trained: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of `trained` of the same random function of both outputs."""
    generator = torch.Generator().manual_seed(0)  # leaves the global random state unchanged
    cotangents = [
        torch.randn(x.shape, generator=generator).to(x)
        if x.is_floating_point()
        else torch.zeros_like(x)
        for x in expected
    ]

    def of(outputs: list[Tensor]) -> list[Tensor]:
        pairs = [(x, c) for x, c in zip(outputs, cotangents, strict=True) if x.requires_grad]
        if not pairs or not trained:
            return [torch.zeros(()) for _ in trained]
        tensors, of_tensors = map(list, zip(*pairs, strict=True))
        found = torch.autograd.grad(
            tensors, trained, of_tensors, retain_graph=True, allow_unused=True
        )
        return [torch.zeros(()) if g is None else g for g in found]

    return of(expected), of(found)


def _deviation(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest absolute difference between two lists of tensors, relative to `expected`.

    The difference in each tensor is divided by the tensor's largest absolute value, but at least
    by a thousandth of the largest absolute value of all tensors. NaN counts as infinite.
    """
    largest = [float(x.detach().abs().max()) if x.numel() else 0.0 for x in expected]
    floor = max(max(largest, default=0.0) / 1000, 1e-30)
    deviations = [
        float((a.detach().double() - b.detach().double()).abs().max()) / max(scale, floor)
        for a, b, scale in zip(expected, found, largest, strict=True)
        if a.numel()
    ]
    return max((math.inf if math.isnan(d) else d for d in deviations), default=0.0)
