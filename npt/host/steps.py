"""What the arguments of a trainer's `forward_backward` are: the batch, and the labels in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npt.errors import NPTError

LABELS = ("label", "labels", "target", "targets", "y")  # names in a batch, the likeliest first
UNLABELLED = re.compile(r"unlabell?ed|_u$|^u_|weak|strong")  # names of arguments
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def batch_of_step(step: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """The batch of a step: its argument that is a whole batch, else all arguments.

    Examples: {"img": ..., "label": ...} for `forward_backward(batch)`, and also for
    `forward_backward(batch_u, batch_x)`; (images, labels) for `forward_backward(images, labels)`.

    step: the host's method; of several batches, those without labels are told by their names
    """
    named = arguments_of(step, args, kwargs) or dict(enumerate((*args, *kwargs.values())))
    for name in sorted(named, key=lambda name: bool(UNLABELLED.search(str(name)))):
        value = named[name]
        if isinstance(value, (dict, tuple, list)) and _find(value) is not None:
            return value
    return args if not kwargs else {**dict(enumerate(args)), **kwargs}


def labels_of_batch(batch: Any, trainer: str) -> Tensor:
    """The labels (B,) of a batch: a dict, tuple or list that holds a vector of integers.

    NPTError if there is none.
    """
    found = _find(batch)
    if found is None:
        raise NPTError(
            f"The step of {trainer} got no labels, neither in a batch nor beside it: hand its "
            'forward_backward a dict with the images "img" and the class numbers "label" (B,).'
        )
    return found


def _find(batch: Any) -> Tensor | None:
    """Labels by their name, else the first vector of integers of a batch without names."""
    if isinstance(batch, dict):
        named = [batch[name] for name in LABELS if name in batch]
        named += [v for k, v in batch.items() if isinstance(k, str) and "label" in k.lower()]
        named += [v for k, v in batch.items() if not isinstance(k, str)]
        return _first(named)
    return _first(batch) if isinstance(batch, (tuple, list)) else None


def _first(values: Iterable[Any]) -> Tensor | None:
    """The first vector of integers."""
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            value = torch.from_numpy(value)
        if isinstance(value, Tensor) and value.dim() == 1 and value.dtype in INTEGERS:
            return value
    return None


def on_device(labels: Tensor, device: torch.device) -> Tensor:
    """A copy of the labels on a device, which `is_of_batch` knows without looking at its values."""
    moved = labels.to(device, non_blocking=True)
    if moved is not labels:
        moved.copy_of = labels  # type: ignore[attr-defined]
    return moved


def is_of_batch(target: Any, labels: Tensor) -> bool:
    """Whether `target` is the labels of the batch.

    A batch in several versions has its labels as often, one after the other or side by side.
    Comparing the values waits for the device, which a copy by `on_device` spares.
    """
    if target is labels or getattr(target, "copy_of", None) is labels:
        return True
    if not isinstance(target, Tensor) or target.dim() != 1 or target.dtype.is_floating_point:
        return False
    size = len(labels)
    if not size or not len(target) or len(target) % size:
        return False
    labels = labels.to(target.device)
    times = len(target) // size
    return torch.equal(target, labels.repeat(times)) or torch.equal(
        target, labels.repeat_interleave(times)
    )


def arguments_of(
    method: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str | int, Any]:
    """The arguments of a host's method by its own names, those of *args by number.

    Empty if they do not fit.
    """
    try:
        bound = inspect.signature(method).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    found: dict[str | int, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found.update(enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(moved(value, device) for value in batch)
    return batch
