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

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npt.host.features import unwrap

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
LAYOUTS = 4  # sets of prompts that are kept at a time


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


class Accelerated:
    """Put before the class of a host's text encoder."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = super().forward
        if kwargs:
            bound = inspect.signature(own).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        if kwargs or getattr(self, "_is_replica", False):
            return own(*args, **kwargs)
        return self._npt_fast(own, *args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copied and saved as the host's own kind, which can be accelerated again."""
        kind = type(self).__mro__[2]
        state = {key: x for key, x in self.__dict__.items() if key != "_npt_fast"}
        return _new, (kind,), state


def _new(kind: type) -> Any:
    return kind.__new__(kind)


class _StepAside(Exception):
    """Why a call cannot be answered the fast way."""


class _Fast:
    """The fast computation beside a host's text encoder, and the checks on it."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layouts: list[_Layout] | None = []  # None: given up

    def __call__(self, own: Callable[..., Any], *args: Any) -> Any:
        if self.layouts is None:
            return own(*args)
        try:
            return self._answer(own, *args)
        except _StepAside as reason:
            self.layouts = None
            warnings.warn(
                f"{type(self.model).__name__} is no longer accelerated: {reason}.", stacklevel=2
            )
            return own(*args)

    def _answer(self, own: Callable[..., Any], *args: Any) -> Any:
        from npt.encoders.linear import product_dtype

        prompts, tokens, deep = _understood(args)
        encoder = self.model.text_encoder
        if _hooked(encoder.transformer):
            raise _StepAside("somebody listens to the layers of its text_encoder")
        layers = encoder.transformer.resblocks
        deep = deep or [getattr(x, DEEP_PROMPT) for x in layers if hasattr(x, DEEP_PROMPT)]
        layout = next((x for x in self.layouts if x.fits(prompts, tokens)), None)
        if layout is None:
            if len(self.layouts) == LAYOUTS:
                raise _StepAside("its classes, or the words around them, change too often")
            layout = _tried(_Layout, self.model, prompts, tokens)
            self.layouts.append(layout)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (prompts, *deep))
        ids = [id(p) for p in learned] if learning else []
        state = (encoder.training, product_dtype(prompts), *ids)
        if state in layout.checked:
            return layout.features(prompts, deep)
        right = own(*args)
        features = _tried(layout.check, right, prompts, deep, learned if learning else [])
        layout.checked.add(state)
        return features


class _Layout:
    """What is fixed in a set of prompts, laid out; the rest are context vectors."""

    def __init__(self, model: nn.Module, prompts: Tensor, tokens: Tensor):
        from npt.encoders import ClassPrompts, TextEncoder
        from npt.encoders.packing import place_context

        encoder, learner = model.text_encoder, model.prompt_learner
        n = prompts.shape[1] - learner.token_prefix.shape[1] - learner.token_suffix.shape[1]
        where = getattr(learner, "class_token_position", "end")
        lengths = getattr(learner, "name_lens", None)
        if learner.token_prefix.shape[1] != 1 or n < 1 or (where != "end" and not lengths):
            raise _StepAside("its prompts are not a start token, context vectors, and the rest")
        self.checked: set[tuple] = set()  # under which circumstances it was found to agree
        self.rounds = False  # whether deep prompts are rounded to half, as MaPLe's code does
        self.positions = encoder.positional_embedding
        ctx = getattr(learner, "ctx", None)
        with torch.inference_mode(False), torch.no_grad():
            self.given, prompts = tokens.clone(), prompts.detach().clone()
            ids, slots, _ = place_context(self.given.cpu(), n, where, lengths)
            self.slots = slots.to(prompts.device)
            self.class_specific = isinstance(ctx, Tensor) and ctx.dim() == 3
            self.class_specific = self.class_specific or not self._alike(prompts)
            vocabulary, ids = ids.unique(return_inverse=True)  # sorted: EOT stays the largest
            fixed = torch.arange(ids.shape[1]) <= ids.argmax(dim=-1)[:, None]  # (K, 77)
            self.fixed = fixed.scatter(1, slots, False).to(prompts.device)
            self.words = prompts[self.fixed]  # (T, D)
            self.old_positions = self.positions.detach().clone()
            rows = ids.to(prompts.device)[self.fixed]
            table = prompts.new_zeros(len(vocabulary), prompts.shape[-1])
            table[rows] = self.words
            if not torch.equal(table[rows], self.words):
                raise _StepAside("its prompts have other words than their token ids say")
        parts = _Clip(encoder, table)
        self.encoder = TextEncoder(parts, ClassPrompts(ids, slots, self.class_specific))

    def fits(self, prompts: Tensor, tokens: Tensor) -> bool:
        """Whether these prompts have the same beside their context vectors."""
        if prompts.device != self.words.device or prompts.dtype != self.words.dtype:
            return False
        if tokens.shape != self.given.shape or not torch.equal(tokens, self.given):
            return False
        prompts = prompts.detach()
        return (
            torch.equal(prompts[self.fixed], self.words)
            and torch.equal(self.positions, self.old_positions)
            and (self.class_specific or self._alike(prompts))
        )

    def _alike(self, prompts: Tensor) -> bool:
        """Whether all classes have the same context vectors."""
        ctx = self._context(prompts)
        return torch.equal(ctx, ctx[:1].expand_as(ctx))

    def _context(self, prompts: Tensor) -> Tensor:
        """(K, n, D)"""
        places = self.slots[: len(prompts), :, None].expand(-1, -1, prompts.shape[-1])
        return prompts.gather(1, places)

    def features(self, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """(K, E), with gradients through the context vectors and deep prompts."""
        ctx = self._context(prompts if self.class_specific else prompts[:1])
        deep = [p.half() if self.rounds else p for p in deep]
        return self.encoder(ctx if self.class_specific else ctx[0], deep)

    # ---- the check

    def check(
        self, right: Any, prompts: Tensor, deep: Sequence[Tensor], learned: list[Tensor]
    ) -> Tensor:
        """Our features; _StepAside where they, or gradients of what is learned, differ."""
        if not isinstance(right, Tensor):
            raise _StepAside(f"its text_encoder returns a {type(right).__name__}")
        difference = ""
        for self.rounds in (False, True) if deep and prompts.dtype != torch.half else (False,):
            features = self.features(prompts, deep)
            difference = self._difference(right, features, learned)
            if not difference:
                return features
        raise _StepAside(difference)

    def _difference(self, right: Tensor, features: Tensor, learned: list[Tensor]) -> str:
        """How the host's own results differ from ours; empty where they do not."""
        if right.shape != features.shape or right.dtype != features.dtype:
            return f"its text features are {tuple(right.shape)} of {right.dtype}"
        of_features, of_gradients = TOLERANCE.get(features.dtype, TOLERANCE_IN_HALF)
        if self.rounds:
            of_gradients = TOLERANCE_IN_HALF[1]
        far = _distance([right], [features])
        if not far <= of_features:
            return f"its text features differ by {far:.1e}"
        if not learned:
            return ""
        generator = torch.Generator().manual_seed(0)  # a run's draws are its own
        cotangent = torch.randn(features.shape, generator=generator).to(features)
        far = _distance(*(_gradients(x, learned, cotangent) for x in (right, features)))
        return "" if far <= of_gradients else f"gradients of its prompts differ by {far:.1e}"


def _tried(function: Callable[..., Any], *args: Any) -> Any:
    """What a first attempt gives; whatever goes wrong in it is a reason to step aside."""
    try:
        return function(*args)
    except _StepAside:
        raise
    except Exception as error:
        raise _StepAside(" ".join(str(error).split()) or type(error).__name__) from error


def _hooked(module: nn.Module) -> bool:
    """Whether hooks hang on a module or what is in it."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


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
    if _hooked(encoder.transformer):
        return "somebody listens to the layers of its text_encoder"
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
    given = args[2] if fits and len(args) == 3 else None
    deep = [] if given is None else given
    deep = list(deep) if isinstance(deep, (list, tuple, nn.ParameterList, Tensor)) else [None]
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
