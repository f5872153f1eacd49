"""A host model's text encoder, computed without waste and to the same values.

Hosts of the CoOp family push all 77 tokens of every class through CLIP's text transformer.
`accelerate` has their text encoder compute what `npt.encoders` computes instead, and what does
not depend on the image once per state of the model in a test. It knows text encoders that are
called with (prompts (K, 77, D), token ids (K, 77)), and after them deep prompts, where they have
any (MaPLe); or keep deep prompts in their layers (independent V-L prompting, PromptSRC); beside a
prompt learner with CoOp's `token_prefix` and `token_suffix`. Whether it knew right is checked, not
believed: what is fixed is compared at every call, and the first results, with their gradients, are
compared with those of the host's own computation.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npt.features import unwrap

# of a frozen layer of CLIP's text transformer; anything more is somebody's addition
LAYER = {
    *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
}
DEEP_PROMPT = "VPT_shallow"  # the name of a layer's own prompt in independent V-L prompting
PARTS = ("transformer", "positional_embedding", "ln_final", "text_projection")
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-9, 1e-8)}  # features, gradients
TOLERANCE_IN_HALF = (2e-2, 5e-2)


def accelerate(model: nn.Module) -> bool:
    """Let `model.text_encoder` do its work the fast way; whether it is of a kind that is known.

    Names of weights, checkpoints and results stay as they are. A model that is not known, or turns
    out to differ on its first batch, keeps its own computation, and one warning says so. Replicas
    of DataParallel keep their own, too.
    """
    from npt.encoders import TextEncoder

    inner = unwrap(model)
    encoder = getattr(inner, "text_encoder", None)
    if isinstance(encoder, (TextEncoder, Accelerated)):
        return True
    reason = _strange(inner, encoder)
    if reason:
        warnings.warn(f"{type(inner).__name__} is not accelerated: {reason}.", stacklevel=2)
        return False
    kind = type(encoder)
    encoder._npt_fast = _Fast(inner)
    encoder.__class__ = type(kind.__name__, (Accelerated, kind), {})
    return True


def install() -> None:
    """Have every trainer of the engine obey MODEL.ACCELERATE; safe to repeat."""
    from dassl.engine import SimpleTrainer

    init = SimpleTrainer.__init__
    if getattr(init, "accelerates", False):
        return

    @functools.wraps(init)
    def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        init(self, cfg, *args, **kwargs)
        if cfg.MODEL.get("ACCELERATE", False) and isinstance(
            getattr(self, "model", None), nn.Module
        ):
            accelerate(self.model)

    __init__.accelerates = True  # type: ignore[attr-defined]
    SimpleTrainer.__init__ = __init__


class Accelerated:
    """Put before the class of a host's text encoder."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        own = super().forward
        if kwargs or getattr(self, "_is_replica", False):
            return own(*args, **kwargs)
        return self._npt_fast(own, *args)


class _StepAside(Exception):
    """Why a call cannot be answered the fast way."""


class _Fast:
    """The fast computation beside a host's text encoder, and the checks on it."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.on = True
        self.encoder: Any = None  # npt.encoders.TextEncoder for the prompts seen last
        self.rounds = False  # whether deep prompts are rounded to half, as MaPLe's code does
        self.checked: set[bool] = set()  # with, without gradients

    def __call__(self, own: Callable[..., Tensor], *args: Any) -> Tensor:
        if not self.on:
            return own(*args)
        try:
            return self._answer(own, *args)
        except _StepAside as reason:
            self.on, self.encoder = False, None
            warnings.warn(
                f"{type(self.model).__name__} is no longer accelerated: {reason}.", stacklevel=2
            )
            return own(*args)

    def _answer(self, own: Callable[..., Tensor], *args: Any) -> Tensor:
        prompts, tokens, deep = _understood(args)
        if not self._fits(prompts, tokens):
            self._prepare(prompts, tokens)
        deep = deep or self._deep_of_layers()
        learning = torch.is_grad_enabled() and (
            prompts.requires_grad or any(p.requires_grad for p in deep)
        )
        if learning in self.checked:
            return self._features(prompts, deep)
        right = own(*args)
        for self.rounds in (False, True) if deep and prompts.dtype != torch.half else (False,):
            features = self._features(prompts, deep)
            difference = self._difference(right, features, learning)
            if not difference:
                self.checked.add(learning)
                return features
        raise _StepAside(difference)

    def _features(self, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
        ctx = prompts if self.class_specific else prompts[:1]
        places = self.slots[: len(ctx), :, None].expand(-1, -1, prompts.shape[-1])
        ctx = ctx.gather(1, places)  # (K or 1, n, D)
        deep = [p.half() if self.rounds else p for p in deep]
        return self.encoder(ctx if self.class_specific else ctx[0], deep)

    # ---- what is fixed in the prompts

    def _prepare(self, prompts: Tensor, tokens: Tensor) -> None:
        """Find the context vectors of the prompts and lay out the rest."""
        from npt.encoders import ClassPrompts, TextEncoder
        from npt.encoders.packing import place_context

        learner = self.model.prompt_learner
        n = prompts.shape[1] - learner.token_prefix.shape[1] - learner.token_suffix.shape[1]
        where = getattr(learner, "class_token_position", "end")
        lengths = getattr(learner, "name_lens", None)
        if learner.token_prefix.shape[1] != 1 or n < 1 or (where != "end" and not lengths):
            raise _StepAside("its prompts are not a start token, context vectors, and the rest")
        self.given = tokens
        ids, _, _ = placed = place_context(tokens.cpu(), n, where, lengths)
        ctx = getattr(learner, "ctx", None)
        per_class = isinstance(ctx, Tensor) and ctx.dim() == 3
        self.slots = placed.slots.to(prompts.device)
        self.class_specific = per_class or not self._alike(prompts)
        vocabulary, ids = ids.unique(return_inverse=True)  # sorted, so EOT stays the largest
        length = ids.argmax(dim=-1) + 1
        fixed = torch.arange(ids.shape[1]) < length[:, None]  # (K, 77)
        fixed.scatter_(1, placed.slots, False)
        self.fixed = fixed.to(prompts.device)
        with torch.no_grad():
            self.words = prompts[self.fixed].clone()  # (T, D)
            table = prompts.new_zeros(len(vocabulary), prompts.shape[-1])
            table[ids.to(prompts.device)[self.fixed]] = self.words
            if not torch.equal(table[ids.to(prompts.device)[self.fixed]], self.words):
                raise _StepAside("its prompts have other words than their token ids say")
        parts = _Clip(self.model.text_encoder, table)
        self.encoder = TextEncoder(parts, ClassPrompts(ids, placed.slots, self.class_specific))
        self.encoder.to(prompts.device)
        self.checked.clear()

    def _fits(self, prompts: Tensor, tokens: Tensor) -> bool:
        """Whether what is laid out is still what these prompts have beside their contexts."""
        if self.encoder is None or prompts.device != self.slots.device:
            return False
        if tokens is not self.given and not (
            tokens.shape == self.given.shape and torch.equal(tokens, self.given)
        ):
            return False
        words = prompts.detach()[self.fixed]
        fits = words.dtype == self.words.dtype and torch.equal(words, self.words)
        return fits and (self.class_specific or self._alike(prompts))

    def _alike(self, prompts: Tensor) -> bool:
        """Whether all classes have the same context vectors."""
        places = self.slots[:, :, None].expand(-1, -1, prompts.shape[-1])
        ctx = prompts.detach().gather(1, places)
        return torch.equal(ctx, ctx[:1].expand_as(ctx))

    def _deep_of_layers(self) -> list[Tensor]:
        layers = self.model.text_encoder.transformer.resblocks
        return [getattr(x, DEEP_PROMPT) for x in layers if hasattr(x, DEEP_PROMPT)]

    # ---- the check

    def _difference(self, right: Tensor, features: Tensor, learning: bool) -> str:
        """How the host's own results differ from ours; empty where they do not."""
        if right.shape != features.shape or right.dtype != features.dtype:
            return f"its text features are {tuple(right.shape)} of {right.dtype}"
        of_features, of_gradients = TOLERANCE.get(features.dtype, TOLERANCE_IN_HALF)
        if self.rounds:
            of_gradients = TOLERANCE_IN_HALF[1]
        far = _distance([right], [features])
        if not far <= of_features:
            return f"its text features differ by {far:.1e}"
        if not learning:
            return ""
        learned = [p for p in self.model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)  # a run's draws are its own
        cotangent = torch.randn(features.shape, generator=generator).to(features)
        far = _distance(*(_gradients(x, learned, cotangent) for x in (right, features)))
        return "" if far <= of_gradients else f"gradients of its prompts differ by {far:.1e}"


class _Clip:
    """A host's text encoder with the attributes that TextEncoder reads of a CLIP."""

    def __init__(self, encoder: nn.Module, words: Tensor):
        self.ln_final = encoder.ln_final
        self.text_projection = encoder.text_projection
        self.positional_embedding = encoder.positional_embedding
        self.token_embedding = nn.Embedding.from_pretrained(words)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(_without_prompt(layer) for layer in encoder.transformer.resblocks)
        )


def _without_prompt(layer: nn.Module) -> nn.Module:
    """A layer's own modules, without a deep prompt that stands beside them."""
    plain = nn.Module()
    for name in ("ln_1", "attn", "mlp", "ln_2"):
        setattr(plain, name, getattr(layer, name))
    return plain


def _strange(model: nn.Module, encoder: Any) -> str:
    """Why a model is none of those `accelerate` knows; empty where it may be one."""
    if not isinstance(encoder, nn.Module):
        return "it has no module `text_encoder`"
    lacking = [part for part in PARTS if not hasattr(encoder, part)]
    if lacking or not hasattr(encoder.transformer, "resblocks"):
        return f"its text_encoder has no {', '.join(lacking) or 'transformer.resblocks'}"
    learner = getattr(model, "prompt_learner", None)
    if not (hasattr(learner, "token_prefix") and hasattr(learner, "token_suffix")):
        return "it has no prompt_learner with token_prefix and token_suffix"
    if any(p.requires_grad for n, p in encoder.named_parameters() if DEEP_PROMPT not in n):
        return "weights of its text_encoder are trained"
    prompted = []
    for layer in encoder.transformer.resblocks:
        names = {name for name, _ in layer.named_parameters()}
        prompted.append(DEEP_PROMPT in names)
        if names - {DEEP_PROMPT} != LAYER:
            more = ", ".join(sorted((names - {DEEP_PROMPT}) ^ LAYER))
            return f"layers of its text_encoder are not CLIP's ({more})"
    if prompted[0] or prompted[1:] != sorted(prompted[1:], reverse=True):
        return "its deep prompts do not begin at the second layer"
    return ""


def _understood(args: tuple) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Prompts, token ids, and deep prompts, out of what a text encoder was called with."""
    fits = len(args) in (2, 3) and all(isinstance(x, Tensor) for x in args[:2])
    if fits:
        prompts, tokens = args[:2]
        fits = prompts.dim() == 3 and tokens.shape == prompts.shape[:2]
    deep = list(args[2]) if fits and len(args) == 3 else []
    if not fits or not all(isinstance(p, Tensor) and p.dim() == 2 for p in deep):
        raise _StepAside("its text_encoder is not called with (prompts, token ids[, deep prompts])")
    return prompts, tokens, deep


def _gradients(features: Tensor, learned: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(features, learned, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learned, found, strict=True)]


def _distance(right: list[Tensor], found: list[Tensor]) -> float:
    """The largest deviation, relative to its tensor's largest value or a thousandth of any's."""
    largest = [float(x.detach().abs().max()) for x in right]
    floor = max(max(largest, default=0.0) / 1000, 1e-30)
    deviations = [
        float((a.detach().double() - b.detach().double()).abs().max()) / max(scale, floor)
        for a, b, scale in zip(right, found, largest, strict=True)
    ]
    return max((math.inf if math.isnan(d) else d for d in deviations), default=0.0)
