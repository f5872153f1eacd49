"""NPT over any CoOp-family trainer: the terms join the wrapped trainer's own forward pass.

`forward_backward` of the wrapped trainer runs as it is. A hook on its model reads the features of
that very pass and adds w1 L_LC + w2 L_MI to what comes out: to the loss, where the model returns a
loss; and where it returns logits, by way of the backward pass, since the loss will be taken in
code that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npt import config
from npt.errors import NPTError
from npt.features import Features, FeatureTap
from npt.geometry import language_collapse_degree, multimodal_isomorphism_degree
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss
from npt.measure import Measured


class Terms(NamedTuple):
    """The two terms of one batch and the measures beside them: scalars of float32 or better."""

    loss_lc: Tensor
    loss_mi: Tensor
    lcd: Tensor
    mid: Tensor
    weighted: Tensor  # w1 L_LC + w2 L_MI, with gradient


class NPTMixin(Measured):
    """Put before a trainer class: `class MaPLeNPT(NPTMixin, MaPLe)`. L = L_host + w1 LC + w2 MI.

    The trainer needs `self.model` with modules `text_encoder` and `image_encoder`; in a training
    step the model returns a scalar loss, logits (B, K), or a tuple that begins with one of them.
    Where a step runs the model more than once, the first pass with gradient carries the terms.
    """

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        config.check(cfg, required="TRAINER.NPT")

    def forward_backward(self, batch: dict[str, Any], *more: Any) -> dict[str, Any]:
        model = getattr(self, "model", None)
        if not isinstance(model, nn.Module):
            raise NPTError(f"{type(self).__name__} has no `model` whose features NPT could read.")
        step = _Step(self.cfg.TRAINER.NPT, batch["label"], getattr(self, "scaler", None))
        with FeatureTap(model) as tap:
            handle = model.register_forward_hook(step.hook(tap))
            try:
                summary = super().forward_backward(batch, *more)
            finally:
                handle.remove()
        return step.summary(summary or {})


class _Step:
    """One training step: adds the terms to the model's output, and knows what was added."""

    def __init__(self, npt: Any, labels: Tensor, scaler: Any):
        self.npt, self.labels, self.scaler = npt, labels, scaler
        self.terms: Terms | None = None
        self.output: Tensor | None = None  # the host's own loss or logits, detached
        self.to_loss = False

    def hook(self, tap: FeatureTap) -> Callable[[nn.Module, Any, Any], Any]:
        def add_terms(model: nn.Module, args: Any, output: Any) -> Any:
            if self.terms is not None or not torch.is_grad_enabled():
                tap.clear()
                return None
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            self.to_loss = isinstance(first, Tensor) and first.dim() == 0
            if not self.to_loss and not (isinstance(first, Tensor) and first.dim() == 2):
                raise NPTError(
                    f"{type(model).__name__} returned {_describe(first)} in a training step, where "
                    "NPT can only add its terms to a scalar loss or to logits (B, K)."
                )
            self.output = first.detach()
            self.terms = terms = take_terms(tap.take(), self.labels, self.npt)
            if self.npt.W1 == 0 and self.npt.W2 == 0:
                return None  # bit for bit the wrapped trainer
            if self.to_loss:
                changed = first + terms.weighted
            else:
                changed = _Carry.apply(first, terms.weighted, self.scaler)
            return changed if first is output else _with_first(output, changed)

        return add_terms

    def summary(self, host: dict[str, Any]) -> dict[str, Any]:
        """The host's entries; `loss` is the total, `loss_clip` what the host minimises itself."""
        if self.terms is None or self.output is None:
            raise NPTError(
                "The trainer's forward_backward did not run self.model with gradients, so NPT had "
                "no forward pass to add its terms to."
            )
        lc, mi, lcd, mid, weighted, own = torch.stack(
            [x.detach().float() for x in self.terms] + [self._own_loss()]
        ).tolist()  # one copy from the device
        if "loss" in host:  # it knows of terms added to a loss, and not of those logits carry
            total = float(host["loss"]) + (0.0 if self.to_loss else weighted)
            own = total - weighted
        else:
            total = own + weighted
        ours = {"loss": total, "loss_clip": own, "loss_lc": lc, "loss_mi": mi, "lcd": lcd}
        return {**ours, "mid": mid, **{k: v for k, v in host.items() if k not in ours}}

    def _own_loss(self) -> Tensor:
        output = self.output.float()
        if self.to_loss:
            return output
        return F.cross_entropy(output, self.labels.to(output.device))


class _Carry(torch.autograd.Function):
    """Logits, unchanged, in whose backward pass the weighted terms get their gradient too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weighted: Tensor, scaler: Any) -> Tensor:
        ctx.scaler = scaler
        ctx.like = weighted.detach()
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        one = torch.ones_like(ctx.like)
        # The host's loss comes multiplied by its GradScaler's factor; so must the terms.
        return grad, one if ctx.scaler is None else ctx.scaler.scale(one), None


def take_terms(features: Features, labels: Tensor, npt: Any) -> Terms:
    """Both terms of a batch under the node TRAINER.NPT; without a graph where the weight is 0."""
    labels = labels.to(features.text.device, non_blocking=True)
    with torch.set_grad_enabled(npt.W1 > 0):
        lc = language_collapse_loss(features.text, npt.E_W, npt.REDUCTION)
    with torch.set_grad_enabled(npt.W2 > 0):
        mi = multimodal_isomorphism_loss(
            features.image, features.text, labels, npt.E_W, npt.E_H, npt.REDUCTION
        )
    weighted = sum((w * x for w, x in ((npt.W1, lc), (npt.W2, mi)) if w > 0), torch.zeros_like(lc))
    lcd = language_collapse_degree(features.text).signed
    mid = multimodal_isomorphism_degree(features.image, features.text, labels).signed
    return Terms(lc, mi, lcd, mid, weighted)


def _with_first(output: Any, first: Tensor) -> Any:
    """A tuple, named tuple or list with its first item replaced."""
    if hasattr(output, "_fields"):
        return type(output)(first, *output[1:])
    return type(output)([first, *output[1:]])


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


# ---- registration


def npt_class(base: str) -> type:
    """The NPT trainer around the trainer registered as `base`: the host's, else ours."""
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    if base not in names:
        import npt.trainers  # noqa: F401  registers ours, under names that are still free

        names = TRAINER_REGISTRY.registered_names()
    wrappable = [name for name in names if isinstance(TRAINER_REGISTRY.get(name), type)]
    if base not in wrappable:
        said = f'"{base}"' if base else "empty"
        raise NPTError(
            f"The trainer to wrap is {said}, but it must be one of {', '.join(wrappable)}; set it "
            "by TRAINER.NPT.BASE for the trainer NPT."
        )
    return type(f"{base}NPT", (NPTMixin, TRAINER_REGISTRY.get(base)), {})


def CoCoOpNPT(cfg: Any) -> Any:
    """The trainer CoCoOpNPT; what it wraps is looked up now, when a host has registered its own."""
    return npt_class("CoCoOp")(cfg)


def MaPLeNPT(cfg: Any) -> Any:
    """The trainer MaPLeNPT."""
    return npt_class("MaPLe")(cfg)


def NPT(cfg: Any) -> Any:
    """NPT around the trainer that TRAINER.NPT.BASE names."""
    return npt_class(cfg.TRAINER.NPT.get("BASE", ""))(cfg)


def register() -> None:
    """Register the three names with the engine; safe to repeat."""
    from dassl.engine import TRAINER_REGISTRY

    for build in (CoCoOpNPT, MaPLeNPT, NPT):
        if build.__name__ not in TRAINER_REGISTRY.registered_names():
            TRAINER_REGISTRY.register(build)
