"""NPT over any CoOp-family trainer: the terms join the wrapped trainer's own forward pass.

`forward_backward` of the wrapped trainer runs as it is. A hook on its model reads the features of
that very pass and adds w1 L_LC + w2 L_MI to what comes out: to the loss, where the model returns a
loss; and where it returns logits, by way of the backward pass, since the loss will be taken in
code that is not ours.
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
from npt.host.features import HOW_TO_ADAPT, Features, FeatureTap, unwrap
from npt.measure import Measured
from npt.results import Results
from npt.terms import Batch, Evaluated, Run, any_weight, evaluate

DERIVED = ("token_prefix", "token_suffix")  # buffers made of a model's own class names


class NPTMixin(Measured):
    """Put before a trainer class: `class MaPLeNPT(NPTMixin, MaPLe)`. L = L_host + w1 LC + w2 MI.

    The trainer needs `self.model`, whose features are read as `npt.host.features` says. In a
    training step the model returns a scalar loss, logits (B, K), or a tuple, list or dict with
    either: a scalar that comes first is taken for the loss, else the terms join whatever the host's
    backward pass reaches. Where a step runs the model more than once, the first pass with gradient
    carries the terms; where it goes backward more than once through that pass (ProGrad), the last
    time.
    """

    _npt_run: Run | None = None  # made at the first step
    _npt_warned: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        self._npt_last_epoch = _EpochMeans()
        super().__init__(*args, **kwargs)

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        config.check(cfg, required="TRAINER.NPT", keys=config.keys_of_any_trainer())

    def build_model(self) -> None:
        super().build_model()
        if self.cfg.MODEL.get("ACCELERATE", False) and isinstance(self.model, nn.Module):
            accelerate(self.model)

    def before_train(self) -> None:
        super().before_train()
        self._npt_run = None  # class counts are known now

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        with self._npt_fitting():
            return super().load_model(*args, **kwargs)

    def resume_model_if_exist(self, *args: Any, **kwargs: Any) -> Any:
        with self._npt_fitting():
            return super().resume_model_if_exist(*args, **kwargs)

    @contextmanager
    def _npt_fitting(self) -> Iterator[None]:
        """While entered, checkpoints are made to fit whatever the host loads them into."""
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
        if self._npt_run is None:
            self._npt_run = self.knowledge()
        step = _Step(self._npt_run, batch, getattr(self, "num_classes", None), _scaler_of(self))
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

    def knowledge(self) -> Run:
        """What terms may use beside the features of a batch."""
        model = unwrap(self.model)
        device = next(model.parameters()).device
        counts, scale = self.train_counts, getattr(model, "logit_scale", None)
        return Run(
            self.cfg.TRAINER.NPT,
            None if counts is None else torch.tensor(counts, device=device),
            scale.detach().exp() if isinstance(scale, Tensor) else None,
            lambda: self._frozen_text(device),
        )

    def _frozen_text(self, device: torch.device) -> Tensor:
        from npt.trainers.zsclip import frozen_text_features

        return frozen_text_features(self.cfg.MODEL.BACKBONE.NAME, self.dm.dataset, device)

    def training_figures(self) -> Results:
        """The mean of the loss, each term and each logged measure over the last epoch trained."""
        return self._npt_last_epoch.means()


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
    """The trainer's GradScaler, whatever it calls it; None where it has none."""
    kinds = (torch.cuda.amp.GradScaler, getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler))
    found = [x for x in vars(trainer).values() if isinstance(x, kinds)]
    return getattr(trainer, "scaler", None) or next(iter(found), None)


def _fit_state_dict(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Lets a checkpoint fit: without `module.` of DataParallel, with this model's class names."""
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
    """One training step: adds the terms to the model's output, and knows what was added."""

    def __init__(self, run: Run, batch: dict[str, Any], classes: int | None, scaler: Any):
        self.run, self.batch, self.classes, self.scaler = run, batch, classes, scaler
        self.labels: Tensor = batch["label"]
        self.passes = 0  # with gradient
        self.evaluated: Evaluated | None = None
        self.own_loss: Tensor | None = None  # the host's, as far as the model's output tells
        self.to_loss = False
        self.carried: _Carried | None = None

    def hook(self, tap: FeatureTap) -> Callable[[nn.Module, Any, Any], Any]:
        def add_terms(model: nn.Module, args: Any, output: Any) -> Any:
            if not torch.is_grad_enabled():
                if not self.passes:
                    tap.clear()
                return None
            self.passes += 1
            if self.passes > 1:
                return None
            items = _Items(output)
            loss = items.loss()
            self.to_loss = loss is not None
            reached = items.with_gradient()
            if loss is None and not reached:
                raise NPTError(
                    f"{type(model).__name__} returned {_describe(output)} in a training step, "
                    "where NPT can only add its terms to a scalar loss or to logits (B, K)."
                )
            logits = items.logits(len(self.labels))
            self.own_loss = _own_loss(loss, logits, self.labels)
            classes = self.classes if logits is None else logits.shape[1]
            features = tap.take(self.batch, classes)
            self.evaluated = evaluate(batch_of(features, self.labels, self.run))
            weighted = self.evaluated.weighted
            if not any_weight(self.run.settings):
                return None  # bit for bit the wrapped trainer
            if not weighted.requires_grad:
                return None  # nothing that the terms depend on is learned
            self.carried = carried = _Carried(weighted, self.scaler)
            if loss is not None:
                weighted.register_hook(carried.arrived)
                return items.replaced({0: loss + weighted})
            return items.replaced({i: carried.by(x) for i, x in reached.items()})

        return add_terms

    def warnings(self) -> list[str]:
        """Warnings for training loops that NPT does not support."""
        found = []
        if self.passes > 1:
            found.append(
                "the model runs several times with gradients in a step, and only the first of "
                "these passes has the terms of NPT"
            )
        if self.carried is not None and self.carried.factor not in (None, 1.0):
            found.append(
                "what the model returned first was multiplied on its way to the loss, and the "
                "terms of NPT with it; a model should return its loss, or its logits, first"
            )
        return found

    def summary(self, host: dict[str, Any]) -> dict[str, Any]:
        """The host's entries; `loss` is the total, `loss_clip` what the host minimises itself."""
        if self.evaluated is None or self.own_loss is None:
            raise NPTError(
                "The trainer's forward_backward did not run self.model with gradients, so NPT had "
                "no forward pass to add its terms to; let it call self.model(...)."
            )
        if self.carried is not None and not self.carried.done:
            raise NPTError(
                "The trainer's backward pass did not reach what its model returned"
                + (" without keeping the graph" if self.carried.met else "")
                + ", so the terms of NPT had no effect; let it minimise a loss of the model's "
                "output, and keep the graph (retain_graph) only where another backward pass follows"
            )
        values, weighted = self.evaluated
        scalars = [x.detach().float() for x in (self.own_loss, weighted, *values.values())]
        own, added, *figures = torch.stack(scalars).tolist()  # one copy from the device
        if "loss" in host:  # it includes terms that were added to a loss, but no carried ones
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


class _Items:
    """What a model returned: a tensor, or the values of a tuple, list or dict."""

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
        return {
            i: x for i, x in enumerate(self.values) if isinstance(x, Tensor) and x.requires_grad
        }

    def logits(self, images: int) -> Tensor | None:
        """The first value (B, K), if there is one before any other tensor but scalars."""
        tensors = [x for x in self.values if isinstance(x, Tensor) and x.dim() > 0]
        fits = tensors and tensors[0].dim() == 2 and len(tensors[0]) == images
        return tensors[0] if fits and self.loss() is None else None

    def replaced(self, new: dict[int, Tensor]) -> Any:
        """The output with some of its values replaced."""
        values = [new.get(i, x) for i, x in enumerate(self.values)]
        if isinstance(self.output, dict):
            return type(self.output)(zip(self.output, values, strict=True))
        if hasattr(self.output, "_fields"):  # a named tuple
            return type(self.output)(*values)
        return type(self.output)(values) if isinstance(self.output, (tuple, list)) else values[0]


class _Carried:
    """The weighted terms on their way into a backward pass that is not ours."""

    def __init__(self, weighted: Tensor, scaler: Any):
        self.weighted, self.scaler = weighted, scaler
        self.met = self.done = False
        self.factor: float | None = None  # of the terms in a loss, beside the scaler's
        self._last_way = -1  # the backward pass that was met last

    def by(self, x: Tensor) -> Tensor:
        """x, in whose backward pass the terms get their gradient too."""
        return _Carry.apply(x, self.weighted, self)

    def gradient(self) -> Tensor | None:
        """Of the terms, once: on the last way back, which is the one that keeps no graph."""
        self.met = True
        way, before = torch._C._current_graph_task_id(), self._last_way
        self._last_way = way
        keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
        if keeps is None and self.done and way != before:
            raise NPTError(
                "The trainer goes back more than once through a pass of its model, which NPT can "
                f"only follow on torch 2.2 or newer; this is {torch.__version__}."
            )
        if self.done or (keeps is not None and keeps()):
            return None
        self.done = True
        one = torch.ones_like(self.weighted)
        # The host's loss comes multiplied by its GradScaler's factor; so must the terms.
        return one if self.scaler is None else self.scaler.scale(one)

    def arrived(self, gradient: Tensor) -> None:
        """Told of the gradient that terms added to a loss get."""
        self.met = self.done = True
        one = torch.ones_like(gradient)
        factor = gradient / (one if self.scaler is None else self.scaler.scale(one))
        self.factor = round(float(factor), 4)


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weighted: Tensor, carried: _Carried) -> Tensor:
        ctx.carried = carried
        return x.clone()  # no view, as some hosts adjust logits in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return grad, ctx.carried.gradient(), None


def batch_of(features: Features, labels: Tensor, run: Run) -> Batch:
    """What terms are computed from. NPTError where features and labels do not fit."""
    image, text = features.image, features.text
    if image is None or text is None or len(image) != len(labels):
        raise NPTError(
            f"{0 if image is None else len(image)} images were encoded for a batch of "
            f"{len(labels)} labels; {HOW_TO_ADAPT}."
        )
    return Batch(image, text, labels.to(text.device, non_blocking=True), run)


def _own_loss(loss: Tensor | None, logits: Tensor | None, labels: Tensor) -> Tensor:
    """The model's loss, the cross-entropy of its logits, or NaN where it returned neither."""
    if loss is not None:
        return loss.detach().float()
    if logits is None:
        return torch.full((), float("nan"), device=labels.device)
    return F.cross_entropy(logits.detach().float(), labels.to(logits.device))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
