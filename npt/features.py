"""Reading image and text features from a model's own forward pass, by hooks on its two encoders."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npt.errors import NPTError


class Features(NamedTuple):
    """What one forward pass of a CLIP model encoded, as the encoders gave it (not normalised)."""

    image: Tensor  # (B, D)
    text: Tensor  # (K, D), or (B, K, D) where every image has texts of its own


class FeatureTap:
    """Records the outputs of `model.text_encoder` and `model.image_encoder` while it is entered.

    `take()` hands out, and forgets, what was recorded since the last call: one forward pass of the
    model. A text encoder that is called image by image, as upstream CoCoOp does, gives (B, K, D).
    An encoder that is also run without gradient in a pass that has one (for a frozen teacher, say)
    is read from the calls with gradient. NPTError where the model lacks one of the attributes.
    """

    def __init__(self, model: nn.Module):
        inner = unwrap(model)
        self._encoders = {name: _encoder(inner, name) for name in ("image_encoder", "text_encoder")}
        self._handles: list[Any] = []
        self._lock = threading.Lock()  # DataParallel runs its replicas, and their hooks, in threads
        self._outputs: dict[str, list[Tensor]] = {name: [] for name in self._encoders}

    def __enter__(self) -> FeatureTap:
        for name, encoder in self._encoders.items():
            self._handles.append(encoder.register_forward_hook(self._recorder(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        for outputs in self._outputs.values():
            outputs.clear()

    def take(self) -> Features:
        """The features of the pass recorded last; NPTError where they cannot be told."""
        images, texts = (_read(self._outputs[name]) for name in self._outputs)
        self.clear()
        for name, found in (("image_encoder", images), ("text_encoder", texts)):
            if not found:
                raise NPTError(
                    f"The model's {name} was not run as a module in this forward pass, so its "
                    f"features cannot be read; let the model call self.{name}(...)."
                )
        devices = sorted(set(images) & set(texts))
        if not devices:
            raise NPTError("The model's image_encoder and text_encoder run on different devices.")
        home = images[devices[0]][0].device
        parts = [_pass(images[device], texts[device]) for device in devices]
        image = torch.cat([part.image.to(home) for part in parts])  # (B, D)
        if parts[0].text.dim() == 2:  # replicas of one set of texts: the first tells all
            return Features(image, parts[0].text)
        return Features(image, torch.cat([part.text.to(home) for part in parts]))

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(tensor, Tensor):
                with self._lock:
                    self._outputs[name].append(tensor)

        return record


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model


def _encoder(model: nn.Module, name: str) -> nn.Module:
    encoder = getattr(model, name, None)
    if not isinstance(encoder, nn.Module):
        raise NPTError(
            f"{type(model).__name__} has no module `{name}`; NPT and its measures read the "
            "features of CoOp-family models from their image_encoder and text_encoder."
        )
    return encoder


def _read(outputs: list[Tensor]) -> dict[int, list[Tensor]]:
    """Outputs by device, in order; only those with gradient, where some have it."""
    learning = [x for x in outputs if x.requires_grad]
    by_device: dict[int, list[Tensor]] = {}
    for x in learning or outputs:
        by_device.setdefault(-1 if x.device.index is None else x.device.index, []).append(x)
    return by_device


def _pass(images: list[Tensor], texts: list[Tensor]) -> Features:
    """One forward pass on one device."""
    if len(images) > 1 and not images[0].requires_grad:
        images = images[:1]
    if len(images) > 1 or images[0].dim() != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in images)
        raise NPTError(
            f"The image_encoder gave {shapes} in one forward pass, where NPT reads one (B, D)."
        )
    image = images[0]
    if len(texts) == 1 and texts[0].dim() in (2, 3):
        return Features(image, texts[0])
    if len(texts) == len(image) and all(x.shape == texts[0].shape for x in texts):
        return Features(image, torch.stack(texts))  # (B, K, D)
    shapes = ", ".join(str(tuple(x.shape)) for x in texts[:3])
    raise NPTError(
        f"The text_encoder ran {len(texts)} times for {len(image)} images in one forward pass "
        f"({shapes}{', ...' if len(texts) > 3 else ''}), where NPT reads one (K, D), one "
        "(B, K, D), or one (K, D) an image."
    )
