"""The image and text features of a model's own forward pass.

They are read by hooks on the model's two encoders, or where a model computes them elsewhere, by an
adapter: a function `(model, batch) -> Features` that is called right after that pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npt.errors import NPTError
from npt.losses import unit_rows

ENCODERS = ("image_encoder", "text_encoder")
HOW_TO_ADAPT = (
    "write an adapter, a function (model, batch) -> npt.Features(image, text), and hand it to "
    'npt.register("<trainer>", features=...): see docs/plugin.md'
)


class Features(NamedTuple):
    """What one forward pass of a CLIP model encoded; the lengths of the rows do not matter.

    In what an adapter returns, None stands for what the model's encoder gives.
    """

    image: Tensor | None  # (B, D)
    text: Tensor | None  # (K, D), or (B, K, D) where every image has texts of its own


Adapter = Callable[[nn.Module, dict[str, Any]], Features]


class FeatureTap:
    """Hears the outputs of `model.text_encoder` and `model.image_encoder` while it is entered.

    `take()` hands out, and forgets, what was heard since the last call: one forward pass of the
    model. What it makes of the text encoder's outputs:

    - (K, D): the texts of all images; (B, K, D), or one (K, D) an image as in CoCoOp: of each;
    - several (K, D), or (N, K, D): N prompts a class, averaged; so are (N, D), one for each class;
    - none: those heard last, where they had no gradient (a model that keeps its text features).

    Several for each image or several prompts a class: where the numbers do not tell, the model is
    run once more with one image. An encoder that also runs without gradient in a pass that has one
    (a frozen teacher, say) is read from the calls with gradient. NPTError where a feature cannot be
    had.
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None = None):
        self.model, self.adapter = model, adapter
        found = {name: getattr(unwrap(model), name, None) for name in ENCODERS}
        self._encoders = {k: v for k, v in found.items() if isinstance(v, nn.Module)}
        if adapter is None:
            for name in ENCODERS:
                if name not in self._encoders:
                    raise NPTError(
                        f"{type(unwrap(model)).__name__} has no module `{name}` to read features "
                        f"from; {HOW_TO_ADAPT}."
                    )
        self._handles: list[Any] = []
        self._lock = threading.Lock()  # DataParallel runs its replicas, and their hooks, in threads
        self._heard: dict[str, list[Tensor]] = {name: [] for name in ENCODERS}
        self._call: tuple[tuple, dict[str, Any]] = ((), {})  # what the model was called with last
        self._kept_text: Tensor | None = None  # the last texts without gradient
        self._texts_per_image: bool | None = None  # once it is known
        self._learned: dict[str, tuple[bool, ...]] = {}  # which calls of a pass had gradients

    def __enter__(self) -> FeatureTap:
        for name, encoder in self._encoders.items():
            self._handles.append(encoder.register_forward_hook(self._recorder(name)))
        remember = self.model.register_forward_pre_hook(self._remember, with_kwargs=True)
        self._handles.append(remember)
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
        """Forget what was heard."""
        for outputs in self._heard.values():
            outputs.clear()
        self._call = ((), {})

    def take(self, batch: dict[str, Any] | None = None, classes: int | None = None) -> Features:
        """The features of the pass heard last.

        batch: what the adapter is given, its tensors moved to where the model is
        classes: K, where it is known
        """
        heard = {name: list(outputs) for name, outputs in self._heard.items()}
        try:
            return self._take(heard, batch, classes)
        finally:
            self.clear()

    def _take(
        self, heard: dict[str, list[Tensor]], batch: dict[str, Any] | None, classes: int | None
    ) -> Features:
        image = text = None
        if self.adapter is not None:
            image, text = self._adapted(batch or {})
        if image is not None and text is not None:
            return Features(image, text.to(image.device))
        images, texts = (self._by_device(name, heard[name]) for name in ENCODERS)
        if not texts and text is None and self._kept_text is not None and images:
            texts = {device: [self._kept_text] for device in images}
        for name, given, outputs in zip(ENCODERS, (image, text), (images, texts), strict=True):
            if given is None and not outputs:
                raise NPTError(
                    f"The model's {name} was not run as a module in this forward pass, so its "
                    f"features cannot be read; let the model call self.{name}(...), or "
                    f"{HOW_TO_ADAPT}."
                )
        counts = {device: len(image) for device in texts} if image is not None else {}
        if image is None:
            of_devices = {device: _images(outputs) for device, outputs in images.items()}
            counts = {device: len(x) for device, x in of_devices.items()}
            image = _together(list(of_devices.values()))  # (B, D)
        if text is None:
            text = self._all_texts(texts, counts, classes)
            self._kept_text = text if text.dim() == 2 and not text.requires_grad else None
        return Features(image, text.to(image.device))

    def _by_device(self, name: str, outputs: list[Tensor]) -> dict[int, list[Tensor]]:
        """Outputs by device, in order; only those with gradient, where some have it.

        Where none has, as in tests, those in whose places there were gradients in training.
        """
        by_device: dict[int, list[Tensor]] = {}
        for x in outputs:
            by_device.setdefault(-1 if x.device.index is None else x.device.index, []).append(x)
        for device, found in by_device.items():
            learned = tuple(x.requires_grad for x in found)
            if any(learned):
                self._learned[name] = learned
            places = self._learned.get(name, ())
            if len(places) == len(found):
                by_device[device] = [x for x, one in zip(found, places, strict=True) if one]
            elif not all(places):  # some other number of calls, and some of them not to be read
                raise _unreadable(name, found)
        return dict(sorted(by_device.items()))

    def _all_texts(
        self, texts: dict[int, list[Tensor]], images: dict[int, int], classes: int | None
    ) -> Tensor:
        """(K, D) or (B, K, D) of all devices."""
        found = [self._texts(x, images.get(device, 0), classes) for device, x in texts.items()]
        if len(found) == 1:
            return found[0]
        single = all(images.get(device) == 1 for device in texts)
        if all(x.dim() == 2 for x in found) and (not single or _same(found)):
            return found[0]  # replicas of one set of texts: one tells all
        return _together([x if x.dim() == 3 else x[None] for x in found])

    def _adapted(self, batch: dict[str, Any]) -> Features:
        model = unwrap(self.model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        found = self.adapter(model, moved)
        if not isinstance(found, tuple) or len(found) != 2:
            raise NPTError(
                f"The adapter {_name(self.adapter)} returned a {type(found).__name__}, where "
                "npt.Features(image, text) is due."
            )
        image, text = found
        fits = (image is None or image.dim() == 2) and (text is None or text.dim() in (2, 3))
        if not fits or (None not in found and text.dim() == 3 and len(text) != len(image)):
            shapes = ", ".join("None" if x is None else str(tuple(x.shape)) for x in found)
            raise NPTError(
                f"The adapter {_name(self.adapter)} returned features of shapes {shapes}, where "
                "image (B, D) and text (K, D) or (B, K, D) are due."
            )
        return Features(image, text)

    def _texts(self, outputs: list[Tensor], images: int, classes: int | None) -> Tensor:
        """(K, D) or (images, K, D) out of what the text encoder gave on one device."""
        alike = all(x.shape == outputs[0].shape for x in outputs)
        x = outputs[0] if len(outputs) == 1 else torch.stack(outputs) if alike else None
        if x is None or x.dim() not in (2, 3):
            raise _unreadable("text_encoder", outputs, images)
        if x.dim() == 2:
            if classes is not None and len(x) != classes:
                raise _unreadable("text_encoder", outputs, images, classes)
            return x
        sets, rows = x.shape[:2]
        if rows == (classes or rows):
            if sets == images and self._are_of_images(images):
                return x
            if sets != classes and not self._texts_per_image:
                return unit_rows(x).mean(0)
        elif sets == classes:  # class by class
            return unit_rows(x).mean(1)
        raise _unreadable("text_encoder", outputs, images, classes)

    def _are_of_images(self, images: int) -> bool:
        """Whether as many sets of texts as images are the images', and not so many prompts."""
        if self._texts_per_image is None:
            if images == 1:
                return True  # the same either way
            self._texts_per_image = self._sets_for_one_image() == 1
        return self._texts_per_image

    def _sets_for_one_image(self) -> int:
        """How many sets of texts the model encodes for the first image of its last call."""
        args, kwargs = self._call
        size = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), 0)

        def first(x: Any) -> Any:
            return x[:1] if isinstance(x, Tensor) and x.dim() and len(x) == size else x

        for outputs in self._heard.values():
            outputs.clear()
        model = unwrap(self.model)
        devices = {p.device for p in model.parameters() if p.is_cuda}
        training = {module: module.training for module in model.modules()}
        model.eval()  # no statistics, queues or counters of the host's move
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                model(*map(first, args), **{k: first(v) for k, v in kwargs.items()})
        finally:
            for module, mode in training.items():
                module.training = mode
        heard = self._heard["text_encoder"]
        return len(heard[0]) if len(heard) == 1 and heard[0].dim() == 3 else len(heard)

    def _remember(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._call = (args, kwargs)

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(tensor, Tensor):
                with self._lock:
                    self._heard[name].append(tensor)

        return record


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model


def _together(parts: list[Tensor]) -> Tensor:
    """What several devices hold, on the first of them."""
    return torch.cat([x.to(parts[0].device) for x in parts])


def _same(texts: list[Tensor]) -> bool:
    """Whether devices hold the same features, up to rounding."""
    first = unit_rows(texts[0].detach())
    return all(torch.allclose(unit_rows(x.detach()).to(first), first, atol=1e-2) for x in texts)


def _images(outputs: list[Tensor]) -> Tensor:
    """(B, D) of one device."""
    if len(outputs) > 1 and not outputs[0].requires_grad:
        outputs = outputs[:1]
    if len(outputs) > 1 or outputs[0].dim() != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in outputs)
        raise NPTError(
            f"The image_encoder gave {shapes} in one forward pass, where NPT reads one (B, D); "
            f"{HOW_TO_ADAPT}."
        )
    return outputs[0]


def _unreadable(
    name: str, outputs: list[Tensor], images: int | None = None, classes: int | None = None
) -> NPTError:
    shapes = ", ".join(str(tuple(x.shape)) for x in outputs[:3])
    more = ", ..." if len(outputs) > 3 else ""
    known = "" if images is None else f" for {images} images"
    known += "" if classes is None else f" of {classes} classes"
    return NPTError(
        f"The {name} ran {len(outputs)} times{known} in one forward pass ({shapes}{more}), which "
        f"NPT cannot tell apart into what the model classifies with; {HOW_TO_ADAPT}."
    )


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
