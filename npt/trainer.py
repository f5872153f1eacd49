"""`NPTMixin` adds the loss terms of NPT to any trainer of the CoOp family.

The wrapped trainer's `forward_backward` runs unchanged. A forward hook on its model reads the
features of that forward pass and computes the weighted terms of `npt.terms`. If the model returns a
loss, they are added to it. If it returns logits, the trainer computes the loss in code that is not
ours, and the gradient of the terms is added in the backward pass of the logits. If it returns
neither, the logits are those that the trainer computes its loss of.
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
from npt.host.attach import Backward, Output, describe
from npt.host.features import HOW_TO_ADAPT, Claim, FeatureTap, PassFeatures
from npt.host.steps import arguments_of, batch_of_step, is_of_batch, labels_of_batch
from npt.late import Late, must_wait, reported
from npt.names import for_host
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
    the backward pass of every returned tensor with gradient. If the model returns no logits, or
    the step does not call it, the terms are added to the backward pass of the logits of the
    trainer's own cross-entropy or softmax. If a step runs the model several
    times, the terms belong to the first forward pass with gradient. If it runs several backward
    passes through that forward pass (ProGrad), they belong to the last one.
    """

    _npt_warned: tuple[str, ...] = ()

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any):
        self._npt_late = Late()
        super().__init__(for_host(cfg), *args, **kwargs)

    def check_cfg(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        checked = super().check_cfg(cfg, *args, **kwargs)
        config.check(cfg, config.PAPER_KEYS, config.keys_of_any_trainer())
        if cfg.TRAINER.NPT.get("W_BALANCED", 0) > 0:
            warn_of_sampler(cfg, f"{NODE}.W_BALANCED")
        return checked

    def before_train(self, *args: Any, **kwargs: Any) -> Any:
        names = self._measure_classnames()
        if len(names) == 1 and any_weight(self.cfg.TRAINER.get("NPT")):
            raise NPTError(
                f"{type(self).__name__} cannot train on one class ({names[0]!r}), because NPT's "
                "terms are about the angles between classes: add a class "
                "(DATASET.SUBSAMPLE_CLASSES may have left this one), or train without NPT."
            )
        return super().before_train(*args, **kwargs)

    def build_model(self, *args: Any, **kwargs: Any) -> Any:
        built = super().build_model(*args, **kwargs)
        if self.cfg.MODEL.get("ACCELERATE", False) and isinstance(self.model, nn.Module):
            accelerate(self.model, self.cfg.MODEL.get("LINEAR", "auto"))
        return built

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        given = arguments_of(super().load_model, args, kwargs)
        with self._npt_fitting():
            loaded = super().load_model(*args, **kwargs)
        self._measure_loaded(given.get("directory"), given.get("epoch"))
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

    def forward_backward(self, *args: Any, **kwargs: Any) -> Any:
        tap = self._measure_tap()
        first = tap.look_again(getattr(self, "epoch", 0))
        batch = batch_of_step(self.host_s("forward_backward"), args, kwargs)
        labels = labels_of_batch(batch, type(self).__name__)
        classes = getattr(self, "num_classes", None)
        step = _Step(
            *(self.knowledge(), batch, labels, classes, _scaler_of(self), self._remedies, first)
        )
        with step.added(tap):
            by_host = super().forward_backward(*args, **kwargs)
        summary = step.summary(by_host if isinstance(by_host, dict) else {})
        if step.figures is not None:
            self._npt_late.add(step.figures, step.check)
        if not must_wait(summary := reported(summary)):
            self._npt_late.finish()
        for text in step.warnings():
            if text not in self._npt_warned:
                self._npt_warned = (*self._npt_warned, text)
                warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)
        entries = step.own_entries(summary)
        self._measure_course.add(getattr(self, "epoch", 0), entries, step.features)
        return summary if by_host is None or isinstance(by_host, dict) else by_host

    def training_figures(self) -> Results:
        """The mean of the loss, each term and each logged measure over the last epoch trained."""
        return self._measure_course.means()


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
    """One training step: adds the terms to the model's output and records what was added.

    If the model returns neither a loss nor logits, or is not called at all, the terms are added to
    the logits of the trainer's own loss.
    """

    def __init__(
        self,
        run: Run,
        batch: Any,
        labels: Tensor,
        classes: int | None,
        scaler: Any,
        remedies: Remedies,
        first: bool = True,
    ):
        """first: whether it is the first step of an epoch, which looks at more"""
        self.first = first
        self.run, self.batch, self.labels = run, batch, labels
        self.classes, self.scaler, self.remedies = classes, scaler, remedies
        self.passes = 0  # forward passes with gradient
        self.inside = False  # whether a forward pass is running
        self.settled = False  # whether no later loss can take over
        self.returned = ""  # what the model returned, if it was neither loss nor logits
        self.unread = ""  # why there are no features, in a step without weights
        self.features: Batch | None = None  # that the terms are of
        self.evaluated: Evaluated | None = None
        self.figures: Tensor | None = None  # own loss, weighted terms, and each of `evaluated`
        self.own_loss: Tensor | None = None  # the host's loss, as far as the output shows it
        self.to_loss = False
        self.backward: Backward | None = None

    @contextmanager
    def added(self, tap: FeatureTap) -> Iterator[None]:
        """The forward passes and losses inside a `with` block have the terms."""
        products = tap.products
        products.classes, products.shift = self.classes, self.remedies.shift
        products.listener = lambda claim: self.at_loss(tap, claim)
        try:
            with tap:
                handles = [
                    tap.model.register_forward_pre_hook(self.begin),
                    tap.model.register_forward_hook(self.hook(tap)),
                ]
                try:
                    yield
                finally:
                    for handle in handles:
                        handle.remove()
        finally:
            products.listener = None

    def begin(self, model: nn.Module, args: Any) -> None:
        self.inside = True

    def hook(self, tap: FeatureTap) -> Callable[[nn.Module, Any, Any], Any]:
        def add_terms(model: nn.Module, args: Any, output: Any) -> Any:
            self.inside = False
            if tap.busy:  # an adapter runs the model
                return None
            if not torch.is_grad_enabled():
                if not self.passes:
                    tap.clear()
                return None
            self.passes += 1
            if self.passes > 1:
                return None
            with tap.paused():
                try:
                    return self.at_output(tap, Output(output))
                except NPTError as error:
                    if any_weight(self.run.settings):
                        raise
                    self.unread = str(error)  # the host's own run goes on without the terms
                    return None

        return add_terms

    def at_output(self, tap: FeatureTap, returned: Output) -> Any:
        """What the model shall return instead; None for no change."""
        loss, tensors = returned.loss(), returned.with_gradient()
        if loss is None and not tensors:
            self.returned = describe(returned.output)
            return None  # until a loss of the trainer shows logits
        logits = returned.logits(len(self.labels), self.classes, tap.encoders.text_rows())
        features: PassFeatures | None
        if loss is None and logits is None and tap.adapter is None:
            self.returned = describe(returned.output)
            features = tap.encoded(self.classes)  # until a loss of the trainer shows more
            if features is None or len(features.image) != len(self.labels):
                return None
        else:
            self.settled = True
            classes = self.classes if logits is None else logits.shape[1]
            features = tap.take(self.batch, classes, logits, self.labels)
        self.to_loss = loss is not None
        weighted = self.evaluate(features, self.labels, loss, logits)
        if weighted is None:
            return None
        self.backward = backward = Backward(weighted, self.scaler, self.first)
        if loss is not None:
            weighted.register_hook(backward.record)
            return returned.replaced({0: loss + weighted})
        return returned.replaced({i: backward.attach(x, weighted) for i, x in tensors.items()})

    def at_loss(self, tap: FeatureTap, claim: Claim) -> Tensor:
        """The logits of a loss outside of the model's forward pass, with the terms attached."""
        if self.inside or self.settled or tap.busy or not torch.is_grad_enabled():
            return claim.logits
        mine = claim.target is not None and is_of_batch(claim.target, self.labels)
        fits = claim.logits.shape == (len(self.labels), self.classes)
        if not mine and (claim.target is not None or not fits):
            return claim.logits
        with tap.paused():
            labels = self.labels if claim.target is None else claim.target
            features = tap.of_claim(claim, self.batch, labels)
            if features is None or len(features.image) != len(labels):
                return claim.logits
            self.settled = True
            if self.backward is not None:
                self.backward.cancel()
            self.backward = None
            logits = tap.products.without_shift(claim) if mine else None
            weighted = self.evaluate(features, labels, None, logits)
            if weighted is None:
                return claim.logits
            self.backward = Backward(weighted, self.scaler)
            return self.backward.attach(claim.logits, weighted)

    def evaluate(
        self, features: PassFeatures, labels: Tensor, loss: Tensor | None, logits: Tensor | None
    ) -> Tensor | None:
        """The weighted terms; None if there is nothing to add.

        loss, logits: of the host, of which the loss without the terms is known
        """
        batch = self.features = batch_of(features, labels, self.run)
        self.evaluated = evaluate(batch)
        self.own_loss = _own_loss(loss, logits, batch.labels, self.remedies)
        weighted = self.evaluated.weighted
        if not any_weight(self.run.settings):
            return None  # the wrapped trainer stays as it is, bit for bit
        # Otherwise the terms depend on nothing that is learned.
        return weighted if weighted.requires_grad else None

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
        if self.unread:
            found.append(f"no terms are in its log, which have no weight either ({self.unread})")
        return found

    def summary(self, host: dict[str, Any]) -> dict[str, Any]:
        """The host's entries and ours; `loss` is the total, `loss_clip` the host's own loss.

        NPTError if the step gave the terms no effect.
        """
        if self.evaluated is None or self.own_loss is None:
            found = (
                f"self.model returned {self.returned}"
                if self.returned
                else "The trainer's forward_backward did not run self.model with gradients"
            )
            why = (
                f"{found}, and NPT found no cross-entropy or softmax of a product of features that "
                "it could add its terms to; let self.model(...) return a loss or logits (B, K), or "
                f"{HOW_TO_ADAPT}."
            )
            if any_weight(self.run.settings):
                raise NPTError(why)
            self.unread = self.unread or why
            return host
        if self.backward is not None and not self.backward.done:
            raise NPTError(
                "The trainer's backward pass did not reach what its model returned"
                + (" without keeping the graph" if self.backward.reached else "")
                + ", so the terms of NPT had no effect; let it minimise a loss of the model's "
                "output, and keep the graph (retain_graph) only if another backward pass follows."
            )
        values, weighted, _ = self.evaluated
        taken = sorted(values.keys() & host.keys())
        if taken:
            raise NPTError(
                f"The trainer reports {', '.join(taken)} itself: rename that term or measure of "
                "npt.terms."
            )
        scalars = [x.detach().float() for x in (self.own_loss, weighted, *values.values())]
        # In float64, where sums are what they are among Python's numbers.
        self.figures = torch.stack([x.to(weighted.device) for x in scalars]).double()
        own, added, *figures = self.figures.unbind()
        if "loss" in host:  # with the terms if they were added to it
            total = _scalar(host["loss"], own) + (0.0 if self.to_loss else added)
            own = total - added
        else:
            total = own + added
        ours = {"loss": total, "loss_clip": own, **dict(zip(values, figures, strict=True))}
        return {**ours, **{k: v for k, v in host.items() if k not in ours}}

    def check(self, figures: Tensor) -> None:
        """NPTError if the terms are not finite, by `figures` on the host."""
        assert self.evaluated is not None
        _, added, *values = figures.tolist()
        if not math.isfinite(added):
            pairs = zip(self.evaluated.values, values, strict=True)
            named = ", ".join(f"{name} {x:g}" for name, x in pairs)
            raise NPTError(
                f"The terms of NPT are infinite or not a number ({named}): lower OPTIM.LR or the "
                "weights under TRAINER.NPT, or use a higher precision."
            )

    def own_entries(self, summary: dict[str, Any]) -> dict[str, float | Tensor]:
        """The entries of a summary that come from NPT."""
        names = ("loss", "loss_clip", *(self.evaluated.values if self.evaluated else ()))
        return {name: summary[name] for name in names if name in summary}


def _scalar(value: Any, like: Tensor) -> Tensor:
    """A number that a host reports, read from the device or not, as a tensor like another."""
    return value.detach().to(like) if isinstance(value, Tensor) else like.new_full((), float(value))


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
    logits, labels = logits.detach().float(), labels.to(logits.device)
    if remedies and logits.shape[1] != remedies.classes:  # `Remedied` ends the step with a sentence
        return F.cross_entropy(logits, labels)
    return remedies.loss(F.cross_entropy, logits, labels)
