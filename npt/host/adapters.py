"""Adapters: functions that provide the features of models that compute them elsewhere.

def features(model, batch):            # or (model, batch, trainer)
    return npt.Features(image, text)   # (B, D), (K, D)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npt.errors import NPTError
from npt.host.steps import moved

HOW_TO_ADAPT = (
    "write an adapter, a function (model, batch) -> npt.Features(image, text), and pass it to "
    'npt.register("<trainer>", features=...): see docs/plugin.md'
)


class Features(NamedTuple):
    """The features that an adapter returns; the rows need not have unit length.

    None: use the output of the model's encoder instead.
    """

    image: Tensor | None  # (B, D)
    text: Tensor | None  # (K, D), or (B, K, D) if each image has its own text features


# (model, batch) or (model, batch, trainer); the batch is a dict, or what a step without one got
Adapter = Callable[..., Features]


def adapted(adapter: Adapter, model: nn.Module, batch: Any, trainer: Any = None) -> Features:
    """The features that an adapter returns. NPTError if they are none.

    model: without DataParallel around it; the batch's tensors are moved to its device
    trainer: for an adapter that takes it as a third argument, or under the name `trainer`
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    more, named = _trainer_argument(adapter, trainer)
    found: Any = adapter(model, moved(batch, device), *more, **named)
    if not isinstance(found, tuple) or len(found) != 2:
        raise NPTError(
            f"The adapter {_name(adapter)} returned a {type(found).__name__}; it must return "
            "npt.Features(image, text)."
        )
    image, text = found
    fits = (image is None or image.dim() == 2) and (text is None or text.dim() in (2, 3))
    both = image is not None and text is not None
    if not fits or (both and text.dim() == 3 and len(text) != len(image)):
        shapes = ", ".join("None" if x is None else str(tuple(x.shape)) for x in found)
        raise NPTError(
            f"The adapter {_name(adapter)} returned features of shapes {shapes}; the image "
            "features must be (B, D), and the text features (K, D) or (B, K, D)."
        )
    return Features(image, text)


def _trainer_argument(adapter: Adapter, trainer: Any) -> tuple[tuple, dict[str, Any]]:
    """The trainer as the third argument, or by its name, if the adapter takes it so."""
    try:
        parameters = inspect.signature(adapter).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return (), {}
    positional = [
        x for x in parameters.values() if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)
    ]
    own = parameters.get("trainer")
    if own is not None and own.kind in (own.KEYWORD_ONLY, own.POSITIONAL_OR_KEYWORD):
        return (), {"trainer": trainer}
    third = positional[2] if len(positional) > 2 else None
    return ((trainer,), {}) if third is not None and third.default is third.empty else ((), {})


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
