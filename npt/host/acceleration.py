"""Faster text encoders for the models of a host repository, with the same results.

Hosts of the CoOp family run all 77 tokens of every class through CLIP's text transformer.
`accelerate` replaces this computation by that of `npt.encoders`, which computes only the tokens
that matter and, in a test, caches what does not depend on the image. It supports a text encoder

- beside a prompt learner with CoOp's buffers `token_prefix` and `token_suffix`,
- called with (prompts (K, 77, D), token ids (K, 77)), and optionally deep prompts (MaPLe); or with
  deep prompts inside its layers (independent V-L prompting, PromptSRC).

The results are verified: every call compares the fixed tokens, and the first results and their
gradients are compared with those of the host's own computation.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npt.host.features import unwrap

if TYPE_CHECKING:
    HostTextEncoder = nn.Module
else:
    HostTextEncoder = object  # `Accelerated` is mixed into the text encoder's own class

# The parameters of a layer of CLIP's text transformer; a layer with any other is not supported.
LAYER = {
    *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
}
DEEP_PROMPT = "VPT_shallow"  # the name of a layer's own prompt in independent V-L prompting
PARTS = ("transformer", "positional_embedding", "ln_final", "text_projection")
# The largest relative deviations allowed for features and gradients.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-9, 1e-8)}
TOLERANCE_IN_HALF = (2e-2, 5e-2)
LAYOUTS = 4  # the number of prompt layouts kept per model
HOOKED = "forward hooks are registered inside its text_encoder"


def accelerate(model: nn.Module) -> bool:
    """Make `model.text_encoder` compute its features faster; returns whether it is supported.

    Names of weights, checkpoints and results do not change. If the model is not supported, or its
    results differ in the first batch, it falls back to its own computation with one warning.
    Replicas of DataParallel always use their own computation.
    """
    from npt.encoders import TextEncoder

    inner = unwrap(model)
    encoder: Any = getattr(inner, "text_encoder", None)
    if isinstance(encoder, (TextEncoder, Accelerated)):
        return True
    reason = _why_unsupported(inner, encoder)
    if reason:
        warnings.warn(f"{type(inner).__name__} is not accelerated: {reason}.", stacklevel=2)
        return False
    kind = type(encoder)
    encoder._npt_accelerator = _Accelerator(inner)
    encoder.__class__ = type(kind.__name__, (Accelerated, kind), {})
    return True


class Accelerated(HostTextEncoder):
    """Mixin that is put in front of the class of a host's text encoder."""

    _npt_accelerator: _Accelerator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        host_forward = super().forward
        if kwargs:
            bound = inspect.signature(host_forward).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        if kwargs or getattr(self, "_is_replica", False):
            return host_forward(*args, **kwargs)
        return self._npt_accelerator(host_forward, *args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle it as an instance of the host's class, which can be accelerated again."""
        kind = type(self).__mro__[2]
        state = {key: x for key, x in self.__dict__.items() if key != "_npt_accelerator"}
        return _new, (kind,), state


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


class _FallBack(Exception):
    """The reason why a call must use the host's own computation."""


class _Accelerator:
    """The faster computation for a host's text encoder, and its verification."""

    def __init__(self, model: Any):
        self.model = model
        self.layouts: list[_Layout] = []
        self.active = True  # False after a fallback

    def __call__(self, host_forward: Callable[..., Any], *args: Any) -> Any:
        if not self.active:
            return host_forward(*args)
        try:
            return self._features(host_forward, *args)
        except _FallBack as reason:
            self.active, self.layouts = False, []
            warnings.warn(
                f"{type(self.model).__name__} is no longer accelerated, and its text_encoder falls "
                f"back to its own computation: {reason}.",
                stacklevel=2,
            )
            return host_forward(*args)

    def _features(self, host_forward: Callable[..., Any], *args: Any) -> Any:
        from npt.encoders.linear import product_dtype

        prompts, tokens, deep = _parse_arguments(args)
        encoder = self.model.text_encoder
        if _has_forward_hooks(encoder.transformer):
            raise _FallBack(HOOKED)
        layers = encoder.transformer.resblocks
        deep = deep or [getattr(x, DEEP_PROMPT) for x in layers if hasattr(x, DEEP_PROMPT)]
        layout = next((x for x in self.layouts if x.fits(prompts, tokens)), None)
        if layout is None:
            if len(self.layouts) == LAYOUTS:
                raise _FallBack("its class names, or the words around them, change too often")
            layout = _first_attempt(_Layout, self.model, prompts, tokens)
            self.layouts.append(layout)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        backward = torch.is_grad_enabled() and any(x.requires_grad for x in (prompts, *deep))
        ids = [id(p) for p in trained] if backward else []
        state = (encoder.training, product_dtype(prompts), *ids)
        if state in layout.verified:
            return layout.features(prompts, deep)
        expected = host_forward(*args)
        features = _first_attempt(
            layout.verify, expected, prompts, deep, trained if backward else []
        )
        layout.verified.add(state)
        return features


class _Layout:
    """The fixed tokens of a set of prompts, and an encoder for them; the rest is context vectors.

    The encoder computes text features from the context vectors alone. It serves every later call
    whose prompts have the same fixed tokens.
    """

    def __init__(self, model: Any, prompts: Tensor, tokens: Tensor):
        from npt.encoders import ClassPrompts, TextEncoder
        from npt.encoders.packing import place_context

        encoder, learner = model.text_encoder, model.prompt_learner
        n = prompts.shape[1] - learner.token_prefix.shape[1] - learner.token_suffix.shape[1]
        where = getattr(learner, "class_token_position", "end")
        lengths = getattr(learner, "name_lens", None)
        if learner.token_prefix.shape[1] != 1 or n < 1 or (where != "end" and not lengths):
            raise _FallBack(
                "its prompts do not consist of a start token, context vectors and further tokens"
            )
        self.verified: set[tuple] = set()  # the states in which the results were verified
        self.round_deep = False  # round deep prompts to half precision, as MaPLe's code does
        self.positions: Tensor = encoder.positional_embedding
        ctx = getattr(learner, "ctx", None)
        with torch.inference_mode(False), torch.no_grad():
            self.tokens, prompts = tokens.clone(), prompts.detach().clone()
            ids, slots, _ = place_context(self.tokens.cpu(), n, where, lengths)
            assert slots is not None
            self.slots = slots.to(prompts.device)  # (K, n)
            self.class_specific = isinstance(ctx, Tensor) and ctx.dim() == 3
            self.class_specific = self.class_specific or not self._shares_context(prompts)
            vocabulary, ids = ids.unique(return_inverse=True)  # sorted: EOT stays the largest
            fixed = torch.arange(ids.shape[1]) <= ids.argmax(dim=-1)[:, None]  # (K, 77)
            self.fixed = fixed.scatter(1, slots, False).to(prompts.device)
            self.fixed_embeddings = prompts[self.fixed]  # (T, D)
            self.old_positions = self.positions.detach().clone()
            rows = ids.to(prompts.device)[self.fixed]
            table = prompts.new_zeros(len(vocabulary), prompts.shape[-1])
            table[rows] = self.fixed_embeddings
            if not torch.equal(table[rows], self.fixed_embeddings):
                raise _FallBack("the embeddings in its prompts do not match its token ids")
        parts = _Clip(encoder, table)
        self.encoder = TextEncoder(parts, ClassPrompts(ids, slots, self.class_specific))

    def fits(self, prompts: Tensor, tokens: Tensor) -> bool:
        """Whether these prompts have the same fixed tokens."""
        embeddings = self.fixed_embeddings
        if prompts.device != embeddings.device or prompts.dtype != embeddings.dtype:
            return False
        if tokens.shape != self.tokens.shape or not torch.equal(tokens, self.tokens):
            return False
        prompts = prompts.detach()
        return (
            torch.equal(prompts[self.fixed], embeddings)
            and torch.equal(self.positions, self.old_positions)
            and (self.class_specific or self._shares_context(prompts))
        )

    def _shares_context(self, prompts: Tensor) -> bool:
        """Whether all classes have the same context vectors."""
        ctx = self._context(prompts)
        return torch.equal(ctx, ctx[:1].expand_as(ctx))

    def _context(self, prompts: Tensor) -> Tensor:
        """(K, n, D)"""
        places = self.slots[: len(prompts), :, None].expand(-1, -1, prompts.shape[-1])
        return prompts.gather(1, places)

    def features(self, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """(K, E), with gradients for the context vectors and the deep prompts."""
        ctx = self._context(prompts if self.class_specific else prompts[:1])
        deep = [p.half() if self.round_deep else p for p in deep]
        return self.encoder(ctx if self.class_specific else ctx[0], deep)

    # ---- verification

    def verify(
        self, expected: Any, prompts: Tensor, deep: Sequence[Tensor], trained: list[Tensor]
    ) -> Tensor:
        """The features; raises _FallBack if they or the gradients of `trained` are not the host's.

        expected: what the host's own computation returned
        """
        if not isinstance(expected, Tensor):
            raise _FallBack(f"its text_encoder returns a {type(expected).__name__}")
        difference = ""
        choices = (False, True) if deep and prompts.dtype != torch.half else (False,)
        for self.round_deep in choices:
            features = self.features(prompts, deep)
            difference = self._difference(expected, features, trained)
            if not difference:
                return features
        raise _FallBack(difference)

    def _difference(self, expected: Tensor, features: Tensor, trained: list[Tensor]) -> str:
        """How the features or gradients differ from the host's; empty if they agree."""
        if expected.shape != features.shape or expected.dtype != features.dtype:
            return (
                f"its text features have shape {tuple(expected.shape)} and dtype {expected.dtype}, "
                f"not {tuple(features.shape)} and {features.dtype}"
            )
        of_features, of_gradients = TOLERANCE.get(features.dtype, TOLERANCE_IN_HALF)
        if self.round_deep:
            of_gradients = TOLERANCE_IN_HALF[1]
        deviation = _deviation([expected], [features])
        if not deviation <= of_features:
            return f"its text features differ by {deviation:.1e}"
        if not trained:
            return ""
        generator = torch.Generator().manual_seed(0)  # leaves the global random state unchanged
        cotangent = torch.randn(features.shape, generator=generator).to(features)
        deviation = _deviation(*(_gradients(x, trained, cotangent) for x in (expected, features)))
        if deviation <= of_gradients:
            return ""
        return f"gradients of its prompts differ by {deviation:.1e}"


def _first_attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and raise _FallBack instead of any error in it."""
    try:
        return function(*args)
    except _FallBack:
        raise
    except Exception as error:
        raise _FallBack(" ".join(str(error).split()) or type(error).__name__) from error


def _has_forward_hooks(module: nn.Module) -> bool:
    """Whether the module or a module inside it has forward hooks or forward pre-hooks."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


class _Clip:
    """A host's text encoder with the attributes of a CLIP that TextEncoder reads."""

    def __init__(self, encoder: Any, token_embeddings: Tensor):
        self.ln_final = encoder.ln_final
        self.text_projection = encoder.text_projection
        self.positional_embedding = encoder.positional_embedding
        self.token_embedding = nn.Embedding.from_pretrained(token_embeddings)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(_without_prompt(layer) for layer in encoder.transformer.resblocks)
        )


def _without_prompt(layer: nn.Module) -> nn.Module:
    """A layer with the same submodules, but without its deep prompt."""
    plain = nn.Module()
    for name in ("ln_1", "attn", "mlp", "ln_2"):
        setattr(plain, name, getattr(layer, name))
    return plain


def _why_unsupported(model: nn.Module, encoder: Any) -> str:
    """Why `accelerate` does not support a model; empty if it may be supported."""
    if not isinstance(encoder, nn.Module):
        return "it has no module `text_encoder`"
    lacking = [part for part in PARTS if not hasattr(encoder, part)]
    transformer: Any = getattr(encoder, "transformer", None)
    if lacking or not hasattr(transformer, "resblocks"):
        return f"its text_encoder has no {', '.join(lacking) or 'transformer.resblocks'}"
    learner = getattr(model, "prompt_learner", None)
    if not (hasattr(learner, "token_prefix") and hasattr(learner, "token_suffix")):
        return "it has no prompt_learner with token_prefix and token_suffix"
    if any(p.requires_grad for n, p in encoder.named_parameters() if DEEP_PROMPT not in n):
        return "weights of its text_encoder are trained"
    if _has_forward_hooks(transformer):
        return HOOKED
    has_prompt = []
    for layer in transformer.resblocks:
        names = {name for name, _ in layer.named_parameters()}
        has_prompt.append(DEEP_PROMPT in names)
        if names - {DEEP_PROMPT} != LAYER:
            different = ", ".join(sorted((names - {DEEP_PROMPT}) ^ LAYER))
            return f"layers of its text_encoder are not CLIP's ({different})"
    if has_prompt[0] or has_prompt[1:] != sorted(has_prompt[1:], reverse=True):
        return "its deep prompts do not begin at the second layer"
    return ""


def _parse_arguments(args: tuple) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The prompts, token ids and deep prompts in the arguments of a text encoder's call."""
    fits = len(args) in (2, 3) and all(isinstance(x, Tensor) for x in args[:2])
    if fits:
        prompts, tokens = args[:2]
        fits = prompts.dim() == 3 and tokens.shape == prompts.shape[:2]
    given = args[2] if fits and len(args) == 3 else None
    deep = [] if given is None else given
    deep = list(deep) if isinstance(deep, (list, tuple, nn.ParameterList, Tensor)) else [None]
    if not fits or not all(isinstance(p, Tensor) and p.dim() == 2 for p in deep):
        raise _FallBack("its text_encoder is not called with (prompts, token ids[, deep prompts])")
    return prompts, tokens, deep


def _gradients(features: Tensor, trained: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(features, trained, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]


def _deviation(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest absolute difference between two lists of tensors, relative to `expected`.

    The difference in each tensor is divided by the tensor's largest absolute value, but at least
    by a thousandth of the largest absolute value of all tensors. NaN counts as infinite.
    """
    largest = [float(x.detach().abs().max()) for x in expected]
    floor = max(max(largest, default=0.0) / 1000, 1e-30)
    deviations = [
        float((a.detach().double() - b.detach().double()).abs().max()) / max(scale, floor)
        for a, b, scale in zip(expected, found, largest, strict=True)
    ]
    return max((math.inf if math.isnan(d) else d for d in deviations), default=0.0)
