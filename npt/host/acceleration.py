"""Faster encoders for the models of a host repository, with the same results.

Hosts of the CoOp family run all 77 tokens of every class through CLIP's text transformer, and all
images through modules that prepare gradients of frozen weights. `accelerate` gives each encoder of
a model other ways to its results, the fastest first:

    text encoder    packed (`packed.py`): every token that matters once, by `npt.encoders`
                    truncated (`truncated.py`): the host's own code, on prompts that end with the
                    longest class name, and with quick modules
    image encoder   the host's own code with quick modules (`quick.py`), whose last layer computes
                    the class token only
    both            the host's own code with quick modules

A way is used if its results and gradients equal those of the host's own computation in the first
batch, and again whenever the mode (train or eval), the precision, the set of trained parameters or
the form of the call changes. Otherwise the next way is tried (`accelerator.py`).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from npt.host.features import unwrap

# Modules that use npt.encoders are imported when they are needed: see npt/backbones/openai.py.
if TYPE_CHECKING:
    from npt.host.accelerator import Accelerator, Way

    HostEncoder = nn.Module
else:
    HostEncoder = object  # `Accelerated` is mixed into the encoder's own class

RESULTS = {"text_encoder": "text features", "image_encoder": "image features"}
OTHER = "outputs of a transformer"


def accelerate(model: nn.Module, linear: str = "auto") -> bool:
    """Make the encoders of `model` faster; returns whether there is one that is supported.

    linear: how products with frozen weights are computed, see `npt.encoders.linear.choose`
    Names of weights, checkpoints and results do not change. If an encoder's results differ in the
    first batch, it falls back to its own computation with one warning. Replicas of DataParallel
    always use their own computation.
    """
    from npt.encoders import ImageEncoder, TextEncoder
    from npt.encoders.linear import choose
    from npt.host.accelerator import Accelerator

    inner = unwrap(model)
    supported = False
    for encoder, what in _encoders(inner):
        done = isinstance(encoder, (TextEncoder, ImageEncoder, Accelerated))
        ways = [] if done else _ways(inner, encoder, what)
        if ways:
            choose(encoder.parameters(), linear)
            encoder._npt_accelerator = Accelerator(inner, what, ways)
            kind = type(encoder)
            encoder.__class__ = type(kind.__name__, (Accelerated, kind), {})
        supported |= done or bool(ways)
    if not supported:
        warnings.warn(
            f"{type(inner).__name__} is not accelerated: no module of it has layers of CLIP's "
            "transformers.",
            stacklevel=2,
        )
    return supported


def _encoders(model: nn.Module) -> list[tuple[Any, str]]:
    """The modules to accelerate, and what they return.

    They are the encoders and, outside of these, all modules that contain layers: those of a
    teacher, or of a model that calls CLIP's transformers itself.
    """
    found: list[tuple[nn.Module, str]] = []
    for name, what in RESULTS.items():
        encoder = getattr(model, name, None)
        if isinstance(encoder, nn.Module):
            found.append((unwrap(encoder), what))
    known = {id(m) for encoder, _ in found for m in encoder.modules()}
    for module in model.modules():
        if id(module) not in known and hasattr(module, "resblocks"):
            found.append((module, OTHER))
            known |= {id(m) for m in module.modules()}
    return found


def _ways(model: nn.Module, encoder: nn.Module, what: str) -> list[Way]:
    """The ways to the results of an encoder, the fastest first."""
    from npt.host.packed import Packed
    from npt.host.quick import Quick, quick_modules
    from npt.host.truncated import Truncated

    if not quick_modules(encoder):
        return []
    if what == RESULTS["text_encoder"]:
        return [Packed(model), Packed(model, round_deep=True), Truncated(), Quick()]
    if what == RESULTS["image_encoder"]:
        return [Quick(only_first_token=True), Quick()]
    return [Quick()]


class Accelerated(HostEncoder):
    """Mixin that is put in front of the class of a host's encoder."""

    _npt_accelerator: Accelerator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from npt.host.calls import Call

        host_forward = super().forward
        if getattr(self, "_is_replica", False):
            return host_forward(*args, **kwargs)
        return self._npt_accelerator(Call(self, host_forward, args, kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle it as an instance of the host's class, which can be accelerated again."""
        kind = type(self).__mro__[2]
        state = {key: x for key, x in self.__dict__.items() if key != "_npt_accelerator"}
        return _new, (kind,), state


def _new(kind: Any) -> Any:
    return kind.__new__(kind)
