"""The outputs of a model's encoders in a forward pass, and what they mean.

It is the table of docs/plugin.md. K classes, B images, D the length of a feature vector:

- (K, D): text features shared by all images;
- (B, K, D), or B calls with (K, D) as in CoCoOp: text features of each image;
- N calls with (K, D), or (N, K, D): N prompts per class, which are averaged; the same holds for K
  calls with (N, D), one per class;
- no call: the text features of an earlier pass, if they had no gradient (models that cache their
  text features).
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npt.errors import NPTError
from npt.host.adapters import HOW_TO_ADAPT
from npt.losses import unit_rows

ENCODERS = ("image_encoder", "text_encoder")


class PassFeatures(NamedTuple):
    """The features of one forward pass; the rows need not have unit length."""

    image: Tensor  # (B, D)
    text: Tensor  # (K, D), or (B, K, D) if each image has its own text features


class EncoderOutputs:
    """Records the outputs of `model.image_encoder` and `model.text_encoder`, once it is hooked.

    If N outputs of the text encoder could belong to N images or to N prompts, the model runs once
    more with one image, to find out. If an encoder runs both with and without gradient in one pass
    (for example, for a frozen teacher), only the calls with gradient are read.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.recorded: dict[str, list[Tensor]] = {name: [] for name in ENCODERS}
        self.texts_per_image: bool | None = None  # None: not determined yet
        self.call: tuple[tuple, dict[str, Any]] = ((), {})  # arguments of the model's last call
        self._cached_text: Tensor | None = None  # the last (K, D) text features without gradient
        self._had_gradient: dict[str, tuple[bool, ...]] = {}  # for each call of a training pass
        self._handles: list[Any] = []
        self._lock = threading.Lock()  # DataParallel runs its replicas, and their hooks, in threads

    def hook(self) -> None:
        for name in ENCODERS:
            encoder = getattr(unwrap(self.model), name, None)
            if isinstance(encoder, nn.Module):
                self._handles.append(encoder.register_forward_hook(self._output_hook(name)))
        hook = self.model.register_forward_pre_hook(self._record_call, with_kwargs=True)
        self._handles.append(hook)

    def unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def clear(self) -> None:
        for outputs in self.recorded.values():
            outputs.clear()
        self.call = ((), {})

    def text_rows(self) -> set[int]:
        """The numbers of rows of the text features of this pass."""
        return {x.shape[-2] for x in self.recorded["text_encoder"] if x.dim() > 1}

    def features(
        self,
        classes: int | None = None,
        image: Tensor | None = None,
        text: Tensor | None = None,
    ) -> PassFeatures:
        """The features of the pass, but for those that are given.

        classes: the number K of classes, if it is known. NPTError if the outputs are unclear.
        """
        outputs = {name: list(recorded) for name, recorded in self.recorded.items()}
        images, texts = (self._by_device(name, outputs[name]) for name in ENCODERS)
        if not texts and text is None and self._cached_text is not None and images:
            texts = {device: [self._cached_text] for device in images}
        for name, given, found in zip(ENCODERS, (image, text), (images, texts), strict=True):
            if given is None and not found:
                raise self._missing(name)
        if image is None:
            of_devices = {device: _image_features(found) for device, found in images.items()}
            image_counts = {device: len(x) for device, x in of_devices.items()}
            image = _concatenate(list(of_devices.values()))  # (B, D)
        else:
            image_counts = {device: len(image) for device in texts}
        if text is None:
            text = self._text_features(texts, image_counts, classes)
            self._cached_text = text if text.dim() == 2 and not text.requires_grad else None
        return PassFeatures(image, text.to(image.device))

    def _missing(self, name: str) -> NPTError:
        model = unwrap(self.model)
        if not isinstance(getattr(model, name, None), nn.Module):
            return NPTError(
                f"{type(model).__name__} has no module `{name}` to read features from, and NPT "
                f"found no product of features that gives its logits; {HOW_TO_ADAPT}."
            )
        return NPTError(
            f"The model's {name} was not run as a module in this forward pass, so its features "
            f"cannot be read, and NPT found no product of features that gives its logits; call "
            f"self.{name}(...) in the model's forward method, or {HOW_TO_ADAPT}."
        )

    def _by_device(self, name: str, outputs: list[Tensor]) -> dict[int, list[Tensor]]:
        """The outputs of each device, in call order.

        If some outputs have gradients, only those are kept. If none has, as in a test, those are
        kept whose calls had gradients in training.
        """
        by_device: dict[int, list[Tensor]] = {}
        for x in outputs:
            by_device.setdefault(-1 if x.device.index is None else x.device.index, []).append(x)
        for device, found in by_device.items():
            has_gradient = tuple(x.requires_grad for x in found)
            if any(has_gradient):
                self._had_gradient[name] = has_gradient
            kept = self._had_gradient.get(name, ())
            if len(kept) == len(found):
                by_device[device] = [x for x, keep in zip(found, kept, strict=True) if keep]
            elif not all(kept):  # the number of calls changed: it is unknown which to keep
                raise _unclear_outputs(name, found)
        return dict(sorted(by_device.items()))

    def _text_features(
        self, texts: dict[int, list[Tensor]], images: dict[int, int], classes: int | None
    ) -> Tensor:
        """(K, D) or (B, K, D), from the outputs and the number of images of each device."""
        found = [
            self._text_features_of_device(outputs, images.get(device, 0), classes)
            for device, outputs in texts.items()
        ]
        if len(found) == 1:
            return found[0]
        single = all(images.get(device) == 1 for device in texts)
        if all(x.dim() == 2 for x in found) and (not single or _same(found)):
            return found[0]  # all replicas computed the same text features
        return _concatenate([x if x.dim() == 3 else x[None] for x in found])

    def _text_features_of_device(
        self, outputs: list[Tensor], images: int, classes: int | None
    ) -> Tensor:
        """(K, D) or (images, K, D)"""
        same_shape = all(x.shape == outputs[0].shape for x in outputs)
        x = outputs[0] if len(outputs) == 1 else torch.stack(outputs) if same_shape else None
        if x is None or x.dim() not in (2, 3):
            raise _unclear_outputs("text_encoder", outputs, images)
        if x.dim() == 2:
            if classes is not None and len(x) != classes:
                raise _unclear_outputs("text_encoder", outputs, images, classes)
            return x
        sets, rows = x.shape[:2]
        if rows == (classes or rows):
            if sets == images and self._is_text_per_image(images):
                return x
            if sets != classes and not self.texts_per_image:
                return unit_rows(x).mean(0)
        elif sets == classes:  # (K, N, D): one call per class
            return unit_rows(x).mean(1)
        raise _unclear_outputs("text_encoder", outputs, images, classes)

    def _is_text_per_image(self, images: int) -> bool:
        """Whether `images` sets of text features belong to the images, not to as many prompts."""
        if self.texts_per_image is None:
            if images == 1:
                return True  # both cases give the same result
            self.texts_per_image = self._text_sets_of_one_image() == 1
        return self.texts_per_image

    def _text_sets_of_one_image(self) -> int:
        """The number of sets of text features in a forward pass with the first image only."""
        args, kwargs = self.call
        size = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), 0)

        def first(x: Any) -> Any:
            return x[:1] if isinstance(x, Tensor) and x.dim() and len(x) == size else x

        for recorded in self.recorded.values():
            recorded.clear()
        model = unwrap(self.model)
        devices = {p.device for p in model.parameters() if p.is_cuda}
        training = {module: module.training for module in model.modules()}
        model.eval()  # this pass must not change statistics, queues or counters of the model
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                model(*map(first, args), **{k: first(v) for k, v in kwargs.items()})
        finally:
            for module, mode in training.items():
                module.training = mode
        outputs = self.recorded["text_encoder"]
        return len(outputs[0]) if len(outputs) == 1 and outputs[0].dim() == 3 else len(outputs)

    def _record_call(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.call = (args, kwargs)

    def _output_hook(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(tensor, Tensor):
                with self._lock:
                    self.recorded[name].append(tensor)

        return record


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel, or `model` itself."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Parts from several devices, on the device of the first."""
    return torch.cat([x.to(parts[0].device) for x in parts])


def _same(texts: list[Tensor]) -> bool:
    """Whether all devices computed the same text features, up to rounding."""
    first = unit_rows(texts[0].detach())
    return all(torch.allclose(unit_rows(x.detach()).to(first), first, atol=1e-2) for x in texts)


def _image_features(outputs: list[Tensor]) -> Tensor:
    """(B, D) of one device."""
    if len(outputs) > 1 and not outputs[0].requires_grad:
        outputs = outputs[:1]
    if len(outputs) > 1 or outputs[0].dim() != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in outputs)
        raise NPTError(
            f"The image_encoder returned {shapes} in one forward pass, but NPT needs one output "
            f"(B, D); {HOW_TO_ADAPT}."
        )
    return outputs[0]


def _unclear_outputs(
    name: str, outputs: list[Tensor], images: int | None = None, classes: int | None = None
) -> NPTError:
    shapes = ", ".join(str(tuple(x.shape)) for x in outputs[:3])
    more = ", ..." if len(outputs) > 3 else ""
    known = "" if images is None else f" for {images} images"
    known += "" if classes is None else f" of {classes} classes"
    return NPTError(
        f"The {name} ran {len(outputs)} times{known} in one forward pass and returned {shapes}"
        f"{more}, and NPT cannot find out which features the model classifies with; "
        f"{HOW_TO_ADAPT}."
    )
