"""What a training step launches on a GPU, and where it waits for it, counted without one.

    python benchmarks/launches.py --classes 100

A step runs on torch's device "meta", whose tensors have a shape and a dtype and no values: nothing
is computed, but all that a GPU would be given passes by (`Operations`). An operation counts as one
launch unless it returns another view of a tensor, or memory without values; attention is one, as in
CUDA's fused kernels. Some operations launch two or three kernels, in all columns alike. There is no
autocast on "meta": steps under it run on the CPU, with the linear layers that GPUs have. The rows
are a ViT-B/16 with the encoders and the optimiser, without data and measures.
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import _checkout  # noqa: F401  first: npt of this checkout
import step
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npt.backbones.openai import openai_clip
from npt.trainers.prompts import PromptedCLIP

META = torch.device("meta")
ON_CPU = torch.nn.functional.scaled_dot_product_attention
FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view")  # and all views
ANSWERS = {"_local_scalar_dense": 1.0, "item": 1.0, "equal": True, "is_nonzero": True}
SHAPED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount")


class Operations(TorchDispatchMode):
    """Counts the operations on a device inside a `with` block.

    launches: how often each was launched
    waits: operations that make the host wait for the device, with the lines that ask for them
    """

    def __init__(self, device: torch.device = META):
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        here, elsewhere = self._places((args, kwargs))
        if here and self.device == META:
            if name in ANSWERS:
                self.waits.append(_line(name))
                return ANSWERS[name]
            if name in SHAPED_BY_VALUES:
                self.waits.append(_line(name))
            if name == "_to_copy" and kwargs.get("device", META).type != "meta":
                self.waits.append(_line(name))
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        made, _ = self._places(result)
        if name in ("_to_copy", "copy_") and elsewhere and made and not _is_queued(args, kwargs):
            self.waits.append(_line(name))
        if (here or made) and not _is_free(func, name):
            self.launches[name] += 1
        return result

    def _places(self, values: Any) -> tuple[bool, bool]:
        """Whether a tensor is on the device, and whether one is elsewhere."""
        devices = {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}
        return self.device.type in devices, bool(devices - {self.device.type})


def _is_free(func: Any, name: str) -> bool:
    returned = func._schema.returns
    alias = returned[0].alias_info if returned else None
    return name.startswith(FREE) or (alias is not None and not alias.is_write)


def _is_queued(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a copy to the device is `non_blocking`; from pinned memory, it is then queued."""
    return kwargs.get("non_blocking", args[2] if len(args) > 2 else False)


def _line(name: str) -> str:
    """The operation, and the lines outside of torch that lead to it, the nearest first."""
    frames = [x for x in traceback.extract_stack() if "/torch/" not in x.filename][:-2]
    places = [f"{x.filename.rpartition('/')[2]}:{x.lineno} {x.line}" for x in frames[:-4:-1]]
    return f"{name} in {' < '.join(places)}"


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any
) -> Tensor:
    """Torch's attention, as on CUDA one operation on "meta"."""
    if query.device != META:
        return ON_CPU(query, key, value, attn_mask, *more)
    keeps = any(x.requires_grad for x in (query, key, value))
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, attn_mask, keeps)[0]


class Arrived:
    """The event of a copy that has arrived."""

    def synchronize(self) -> None:
        pass


@contextmanager
def pretended() -> Iterator[None]:
    """On "meta", attention is one operation, and `npt.late` copies without waiting, as on CUDA."""

    def to_host(values: Tensor) -> tuple[Tensor, Any]:
        return torch.zeros(values.shape, dtype=values.dtype), Arrived()

    with (
        patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
        patch("npt.late._to_host", to_host),
    ):
        yield


# ---- steps of the shapes of benchmarks/step.py, on any device

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")  # fp16: the weights are; bf16: autocast


@contextmanager
def computed_in(precision: str, device: torch.device) -> Iterator[None]:
    """Matrix products inside a `with` block have a precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with (
            nullcontext()
            if device == META
            else torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def model_on(
    device: torch.device, method: str, classes: int, kind: str, precision: str
) -> PromptedCLIP:
    """A CLIP with the prompts of a method, and one kind of encoders."""
    clip_model, learner, prompts = step.build(method, classes)
    if precision == "fp16":
        openai_clip().model.convert_weights(clip_model)
    if precision == "float64":
        clip_model, learner = clip_model.double(), learner.double()
    encoders = step.encoders(kind, clip_model, prompts)
    return PromptedCLIP(learner, *encoders, clip_model.logit_scale).to(device)


def batch_on(device: torch.device, classes: int, size: int) -> tuple[Tensor, Tensor]:
    """Random images and labels, the same on each device."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, step.IMAGE, step.IMAGE, generator=random)
    return images.to(device), torch.randint(classes, (size,), generator=random).to(device)


def step_on(
    device: torch.device, case: step.Case, kind: str, precision: str = "fp32"
) -> Callable[[], None]:
    """A function for one training or test step."""
    method, phase, classes, size = case
    model = model_on(device, method, classes, kind, precision).train(phase == "train")
    image, label = batch_on(device, classes, size)
    weights = list(model.prompt_learner.parameters())
    optimiser = torch.optim.SGD(weights, 1e-6, momentum=0.9, weight_decay=5e-4, foreach=True)

    def train() -> None:
        with computed_in(precision, device):
            loss = model(image, label)
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()

    def test() -> None:
        with torch.no_grad(), computed_in(precision, device):
            model(image)

    return train if phase == "train" else test


def count(case: step.Case, kind: str, precision: str) -> int:
    """The launches of the second step; the first one also fills what is kept."""
    device = torch.device("cpu" if precision == "bf16" else "meta")
    with pretended(), patch("npt.encoders.linear.use_onednn", lambda *_: False):
        run = step_on(device, case, kind, precision)
        run()
        with Operations(device) as seen:
            run()
    return sum(seen.launches.values())


SMALL = {"WIDTH": 64, "VISUAL_WIDTH": 64, "EMBED": 64, "PATCH": 16, "IMAGE": 32}


def shrink(**more: int) -> None:
    """Give the models of benchmarks/step.py small layers, and as many of them."""
    for name, value in {**SMALL, **more}.items():
        setattr(step, name, value)


def main() -> None:
    shrink()  # changes no count
    parser = argparse.ArgumentParser(description="Count the launches of a training step.")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    rows = []
    for precision in ("fp32", "bf16"):
        for method in step.METHODS:
            case = (method, "train", args.classes, args.batch)
            counts = {kind: count(case, kind, precision) for kind in step.kinds(*case[:2])}
            rows.append({"method": method, "precision": precision, **counts})
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
