"""`NPTMixin` adds the loss terms of NPT to any trainer of the CoOp family.

The wrapped trainer's `forward_backward` runs unchanged. A forward hook on its model reads the
features of that forward pass and computes the weighted terms of `npt.terms`. If the model returns a
loss, they are added to it. If it returns logits, the trainer computes the loss in code that is not
ours, and the gradient of the terms is added in the backward pass of the logits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npt import config
from npt.errors import NPTError
from npt.host.acceleration import accelerate
from npt.host.features import HOW_TO_ADAPT, FeatureTap, PassFeatures
from npt.remedied import Remedied
from npt.remedies import NODE, Remedies, warn_of_sampler
from npt.results import Results
from npt.terms import Batch, Evaluated, Run, any_weight, evaluate

DERIVED = ("token_prefix", "token_suffix")  # buffers made of a model's own class names


class NPTMixin(Remedied):
    """A mixin for trainers, `class MaPLeNPT(NPTMixin, MaPLe)`: L = L_host + w1 L_LC + w2 L_MI + ...

    The trainer must have `self.model`, whose features are read as in `npt.host.features`. In a
    training step the model returns a scalar loss, logits (B, K), or a tuple, list or dict that
    contains one of them. A scalar in the first place is the loss; otherwise the terms are added to
    the backward pass of every returned tensor with gradient. If a step runs the model several
    times, the terms belong to the first forward pass with gradient. If it runs several backward
    passes through that forward pass (ProGrad), they belong to the last one.
    """

    _npt_warned: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        self._npt_last_epoch = _EpochMeans()
        super().__init__(*args, **kwargs)

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        config.check(cfg, config.PAPER_KEYS, config.keys_of_any_trainer())
        if cfg.TRAINER.NPT.get("W_BALANCED", 0) > 0:
            warn_of_sampler(cfg, f"{NODE}.W_BALANCED")

    def build_model(self) -> None:
        super().build_model()
        if self.cfg.MODEL.get("ACCELERATE", False) and isinstance(self.model, nn.Module):
            accelerate(self.model)

    def load_model(self, directory: str, epoch: int | None = None, *args: Any, **more: Any) -> Any:
        with self._npt_fitting():
            loaded = super().load_model(directory, epoch, *args, **more)
        self._measure_loaded(directory, epoch)
        return loaded

    def resume_model_if_exist(self, *args: Any, **kwargs: Any) -> Any:
        with self._npt_fitting():
            return super().resume_model_if_exist(*args, **kwargs)

    @contextmanager
    def _npt_fitting(self) -> Iterator[None]:
        """Adapt checkpoints to the host's models inside a `with` block (`_fit_state_dict`)."""
        models = [m for m in getattr(self, "_models", {}).values() if isinstance(m, nn.Module)]
        handles = [
            m._register_load_state_dict_pre_hook(_fit_state_dict, with_module=True) for m in models
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forward_backward(self, batch: dict[str, Any], *more: Any) -> dict[str, Any]:
        tap = self._measure_tap()
        classes = getattr(self, "num_classes", None)
        step = _Step(self.knowledge(), batch, classes, _scaler_of(self), self._remedies)
        with tap:
            handle = tap.model.register_forward_hook(step.hook(tap))
            try:
                summary = super().forward_backward(batch, *more)
            finally:
                handle.remove()
        for text in step.warnings():
            if text not in self._npt_warned:
                self._npt_warned = (*self._npt_warned, text)
                warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)
        summary = step.summary(summary or {})
        self._npt_last_epoch.add(getattr(self, "epoch", 0), step.own_entries(summary))
        return summary

    def training_figures(self) -> Results:
        """The mean of the loss, each term and each logged measure over the last epoch trained."""
        return self._npt_last_epoch.means()

    def progress_state(self) -> dict[str, Any]:
        return {**super().progress_state(), "last_epoch": dict(vars(self._npt_last_epoch))}

    def load_progress_state(self, state: dict[str, Any]) -> None:
        super().load_progress_state(state)
        vars(self._npt_last_epoch).update(state.get("last_epoch", {}))


class _EpochMeans:
    """Means of named figures over the batches of the epoch that was added last."""

    def __init__(self) -> None:
        self.epoch, self.count = -1, 0
        self.sums: dict[str, float] = {}

    def add(self, epoch: int, figures: dict[str, float]) -> None:
        if epoch != self.epoch:
            self.epoch, self.count, self.sums = epoch, 0, {}
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> Results:
        """None where a figure was infinite or not a number."""
        means = {name: total / self.count for name, total in self.sums.items()}
        return {name: x if math.isfinite(x) else None for name, x in means.items()}


def _scaler_of(trainer: Any) -> Any:
    """The trainer's GradScaler, under any attribute name; None if there is none."""
    kinds = (torch.cuda.amp.GradScaler, getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler))
    found = [x for x in vars(trainer).values() if isinstance(x, kinds)]
    return getattr(trainer, "scaler", None) or next(iter(found), None)


def _fit_state_dict(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Edit a state dict before it is loaded, in place.

    DataParallel's prefix `module.` is removed. Buffers that depend on the class names keep the
    values of the model that loads, so that a checkpoint can be used on other classes.
    """
    wrapped = state and all(key.startswith("module.") for key in state)
    if wrapped and not prefix and not hasattr(module, "module"):
        for key in list(state):
            state[key.removeprefix("module.")] = state.pop(key)
    own = dict(module.named_buffers())
    for key in list(state):
        name = key.removeprefix(prefix)
        if name.rpartition(".")[2] in DERIVED and name in own:
            state[key] = own[name]


class _Step:
    """One training step: adds the terms to the model's output and records what was added."""

    def __init__(
        self,
        run: Run,
        batch: dict[str, Any],
        classes: int | None,
        scaler: Any,
        remedies: Remedies,
    ):
        self.run, self.batch, self.classes, self.scaler = run, batch, classes, scaler
        self.remedies = remedies
        self.labels: Tensor = batch["label"]
        self.passes = 0  # forward passes with gradient
        self.evaluated: Evaluated | None = None
        self.own_loss: Tensor | None = None  # the host's loss, as far as the output shows it
        self.to_loss = False
        self.backward: _Backward | None = None

    def hook(self, tap: FeatureTap) -> Callable[[nn.Module, Any, Any], Any]:
        def add_terms(model: nn.Module, args: Any, output: Any) -> Any:
            if not torch.is_grad_enabled():
                if not self.passes:
                    tap.clear()
                return None
            self.passes += 1
            if self.passes > 1:
                return None
            returned = _Output(output)
            loss = returned.loss()
            self.to_loss = loss is not None
            tensors = returned.with_gradient()
            if loss is None and not tensors:
                raise NPTError(
                    f"{type(model).__name__} returned {_describe(output)} in a training step, "
                    "but NPT adds its terms to a scalar loss or to logits (B, K) with gradient."
                )
            logits = returned.logits(len(self.labels))
            self.own_loss = _own_loss(loss, logits, self.labels, self.remedies)
            classes = self.classes if logits is None else logits.shape[1]
            features = tap.take(self.batch, classes)
            self.evaluated = evaluate(batch_of(features, self.labels, self.run))
            weighted = self.evaluated.weighted
            if not any_weight(self.run.settings):
                return None  # the wrapped trainer stays as it is, bit for bit
            if not weighted.requires_grad:
                return None  # the terms depend on nothing that is learned
            self.backward = backward = _Backward(weighted, self.scaler)
            if loss is not None:
                weighted.register_hook(backward.record)
                return returned.replaced({0: loss + weighted})
            return returned.replaced({i: backward.attach(x, weighted) for i, x in tensors.items()})

        return add_terms

    def warnings(self) -> list[str]:
        """Warnings for training loops that NPT does not support."""
        found = []
        if self.passes > 1:
            found.append(
                "the model runs several times with gradients in a step, and only the first of "
                "these forward passes has the terms of NPT"
            )
        if self.backward is not None and self.backward.factor not in (None, 1.0):
            found.append(
                "the first value that the model returned was multiplied before the backward pass, "
                "and the terms of NPT with it; a model should return its loss, or its logits, first"
            )
        if self.evaluated is not None and self.evaluated.without_gradient:
            names = ", ".join(self.evaluated.without_gradient)
            found.append(f"{names} has a weight, but depends on nothing that is learned")
        return found

    def summary(self, host: dict[str, Any]) -> dict[str, Any]:
        """The host's entries and ours; `loss` is the total, `loss_clip` the host's own loss.

        NPTError if the step gave the terms no effect.
        """
        if self.evaluated is None or self.own_loss is None:
            raise NPTError(
                "The trainer's forward_backward did not run self.model with gradients, so NPT had "
                "no forward pass to add its terms to; let it call self.model(...)."
            )
        if self.backward is not None and not self.backward.done:
            raise NPTError(
                "The trainer's backward pass did not reach what its model returned"
                + (" without keeping the graph" if self.backward.reached else "")
                + ", so the terms of NPT had no effect; let it minimise a loss of the model's "
                "output, and keep the graph (retain_graph) only if another backward pass follows."
            )
        values, weighted, _ = self.evaluated
        scalars = [x.detach().float() for x in (self.own_loss, weighted, *values.values())]
        own, added, *figures = torch.stack(scalars).tolist()  # one copy from the device
        if not math.isfinite(added):
            named = ", ".join(f"{k} {x:g}" for k, x in zip(values, figures, strict=True))
            raise NPTError(
                f"The terms of NPT are infinite or not a number ({named}): lower OPTIM.LR or the "
                "weights under TRAINER.NPT, or use a higher precision."
            )
        taken = sorted(values.keys() & host.keys())
        if taken:
            raise NPTError(
                f"The trainer reports {', '.join(taken)} itself: rename that term or measure of "
                "npt.terms."
            )
        if "loss" in host:  # with the terms if they were added to it
            total = float(host["loss"]) + (0.0 if self.to_loss else added)
            own = total - added
        else:
            total = own + added
        ours = {"loss": total, "loss_clip": own, **dict(zip(values, figures, strict=True))}
        return {**ours, **{k: v for k, v in host.items() if k not in ours}}

    def own_entries(self, summary: dict[str, Any]) -> dict[str, float]:
        """The entries of a summary that come from NPT."""
        names = ("loss", "loss_clip", *(self.evaluated.values if self.evaluated else ()))
        return {name: summary[name] for name in names}


class _Output:
    """What a model returned: one value, or the values of a tuple, list or dict."""

    def __init__(self, output: Any):
        self.output = output
        if isinstance(output, dict):
            self.values = list(output.values())
        else:
            self.values = list(output) if isinstance(output, (tuple, list)) else [output]

    def loss(self) -> Tensor | None:
        """The first value, if it is a scalar with gradient."""
        first = self.values[0] if self.values else None
        scalar = isinstance(first, Tensor) and first.dim() == 0 and first.requires_grad
        return first if scalar else None

    def with_gradient(self) -> dict[int, Tensor]:
        """The tensors with gradient, by position."""
        return {
            i: x for i, x in enumerate(self.values) if isinstance(x, Tensor) and x.requires_grad
        }

    def logits(self, images: int) -> Tensor | None:
        """The first tensor that is not a scalar, if it has the shape (B, K) of logits."""
        tensors = [x for x in self.values if isinstance(x, Tensor) and x.dim() > 0]
        fits = tensors and tensors[0].dim() == 2 and len(tensors[0]) == images
        return tensors[0] if fits and self.loss() is None else None

    def replaced(self, new: dict[int, Tensor]) -> Any:
        """The output with the values at some positions replaced."""
        values = [new.get(i, x) for i, x in enumerate(self.values)]
        if isinstance(self.output, dict):
            return type(self.output)(zip(self.output, values, strict=True))
        if hasattr(self.output, "_fields"):  # a named tuple
            return type(self.output)(*values)
        return type(self.output)(values) if isinstance(self.output, (tuple, list)) else values[0]


class _Backward:
    """The gradient of the weighted terms in the trainer's backward pass, and whether it got there.

    reached: a backward pass has reached the model's output
    done: the terms have received their gradient
    factor: what the terms were multiplied by after they were added to a loss, without the
        GradScaler's factor; None if they were not added to a loss
    """

    def __init__(self, weighted: Tensor, scaler: Any):
        # Not `weighted` itself: its hook refers to this object, and the cycle would keep its graph.
        self.one, self.scaler = torch.ones_like(weighted.detach()), scaler
        self.reached = self.done = False
        self.factor: float | None = None
        self._last_pass = -1  # id of the last backward pass that reached the output

    def attach(self, x: Tensor, weighted: Tensor) -> Tensor:
        """x unchanged; its backward pass also starts that of the terms."""
        return _AttachTerms.apply(x, weighted, self)

    def gradient(self) -> Tensor | None:
        """The gradient that starts the terms' backward pass; None unless this pass is the last.

        The last backward pass is the one that does not keep the graph.
        """
        self.reached = True
        this_pass, last_pass = torch._C._current_graph_task_id(), self._last_pass
        self._last_pass = this_pass
        keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
        if keeps is None and self.done and this_pass != last_pass:
            raise NPTError(
                "The trainer runs several backward passes through one forward pass of its model, "
                f"which NPT supports on torch 2.2 or newer; this is {torch.__version__}."
            )
        if self.done or (keeps is not None and keeps()):
            return None
        self.done = True
        # A GradScaler multiplies the host's loss; the terms need the same factor.
        return self.one if self.scaler is None else self.scaler.scale(self.one)

    def record(self, gradient: Tensor) -> None:
        """Gradient hook of terms that were added to a loss."""
        self.reached = self.done = True
        one = torch.ones_like(gradient)
        factor = gradient / (one if self.scaler is None else self.scaler.scale(one))
        self.factor = round(float(factor), 4)


class _AttachTerms(torch.autograd.Function):
    """The identity on x; backward also passes a gradient to the weighted terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weighted: Tensor, backward: _Backward) -> Tensor:
        ctx.terms_backward = backward
        return x.clone()  # not a view, because some hosts change logits in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return grad, ctx.terms_backward.gradient(), None


def batch_of(features: PassFeatures, labels: Tensor, run: Run) -> Batch:
    """The features of a forward pass as a Batch. NPTError if their number is not the labels'."""
    image, text = features
    if len(image) != len(labels):
        raise NPTError(
            f"{len(image)} images were encoded for a batch of {len(labels)} labels; {HOW_TO_ADAPT}."
        )
    return Batch(image, text, labels.to(text.device, non_blocking=True), run)


def _own_loss(
    loss: Tensor | None, logits: Tensor | None, labels: Tensor, remedies: Remedies
) -> Tensor:
    """The model's loss, else the cross-entropy of its logits with the remedies, else NaN."""
    if loss is not None:
        return loss.detach().float()
    if logits is None:
        return torch.full((), float("nan"), device=labels.device)
    return remedies.loss(F.cross_entropy, logits.detach().float(), labels.to(logits.device))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
