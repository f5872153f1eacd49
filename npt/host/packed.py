"""A host's text encoder, computed by `npt.encoders.TextEncoder` from the prompts alone.

`TextEncoder` computes every token that prompts share once, and no token after the end of a prompt.
It needs to know which rows of the prompts (K, 77, D) are fixed words and which are context vectors.
That is found out from the prompts themselves: context vectors are the rows that depend on trained
parameters, or that differ between two calls. No name of a prompt learner or of a buffer matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npt.encoders.linear import version
from npt.host.calls import HOOKED, Call, hooked
from npt.host.verification import TOLERANCE_IN_HALF, Unsuitable

# The parameters of a layer of CLIP's text transformer; a layer with any other is not supported.
LAYER = {
    *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
}
DEEP_PROMPT = "VPT_shallow"  # the name of a layer's own prompt in independent V-L prompting
PARTS = ("transformer", "positional_embedding", "ln_final", "text_projection")
KEPT, MOST = 4, 8  # layouts that are kept, and that are made, for a model


class Packed:
    """The text features of prompts of fixed words and context vectors.

    round_deep: round deep prompts to half precision, as MaPLe's code does in any precision
    """

    def __init__(self, model: nn.Module, round_deep: bool = False):
        self.model, self.round_deep = model, round_deep
        self.of_gradients = TOLERANCE_IN_HALF[1] if round_deep else None
        self.layouts: list[Layout] = []
        self.made = 0

    def plan(self, call: Call) -> Layout:
        """The layout of these prompts, which is made if there is none yet."""
        if hooked(call.encoder):
            raise Unsuitable(HOOKED)
        prompts, tokens, deep = self._inputs(call)
        backward = torch.is_grad_enabled() and prompts.requires_grad
        for layout in self.layouts:
            if layout.fits(prompts, tokens, backward):
                return layout
        if self.round_deep and (not deep or prompts.dtype == torch.half):
            raise Unsuitable("it has no deep prompts to round")
        if self.made == MOST:
            raise Unsuitable("its class names, or the words around them, change too often")
        _check_layers(call.encoder)
        change = None
        if backward:
            trained = [*self.model.parameters(), *call.tensors()]
            change = _change(prompts, [x for x in trained if x.is_leaf and x.requires_grad])
        old = next((x for x in self.layouts if x.is_of(prompts, tokens)), None)
        layout = Layout(call.encoder, prompts, tokens, change, old)
        self.layouts = [layout, *(x for x in self.layouts if x is not old)][:KEPT]
        self.made += 1
        return layout

    def run(self, call: Call, plan: Layout) -> Tensor:
        prompts, _, deep = self._inputs(call)
        return plan.features(prompts, [p.half() for p in deep] if self.round_deep else deep)

    def _inputs(self, call: Call) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Prompts (K, 77, D), token ids (K, 77) and deep prompts (n, D), of the call or layers."""
        prompts, tokens = call.prompts_and_tokens()
        deep = [x for x in call.tensors() if x is not prompts and x is not tokens]
        usual = call.is_plain() and not call.numbers()
        if not usual or not all(x.dim() == 2 and x.is_floating_point() for x in deep):
            raise Unsuitable("it is called with more than prompts, token ids and deep prompts")
        encoder: Any = call.encoder
        layers = encoder.transformer.resblocks
        deep = deep or [getattr(x, DEEP_PROMPT) for x in layers if hasattr(x, DEEP_PROMPT)]
        return prompts, tokens, deep


class Layout:
    """The fixed words of a set of prompts, and an encoder for them; the rest is context vectors.

    The encoder computes text features from the context vectors alone. It serves every later call
    whose prompts have the same fixed words.

    change: (K, 77, D), not zero where a row of the prompts depends on trained parameters; None:
        unknown, for calls without gradient
    old: a layout of prompts with the same token ids that does not fit; rows that are not the same
        in both are context vectors
    """

    def __init__(
        self,
        encoder: Any,
        prompts: Tensor,
        tokens: Tensor,
        change: Tensor | None,
        old: Layout | None,
    ):
        from npt.encoders import ClassPrompts, TextEncoder

        self.positions: Tensor = encoder.positional_embedding
        self.old_positions = self.positions.detach().clone(), version(self.positions)
        self.knows_gradient = change is not None
        with torch.inference_mode(False), torch.no_grad():
            self.given = tokens, version(tokens)
            self.tokens, prompts = tokens.clone(), prompts.detach().clone()
            ends = self.tokens.argmax(dim=-1).cpu()  # (K,)
            used = torch.arange(prompts.shape[1]) <= ends[:, None]  # (K, 77)
            moving = torch.zeros_like(used)
            if change is not None:
                moving |= (change != 0).any(dim=-1).cpu()
            if old is not None:
                moving |= old.moving | old.differs(prompts)
            moving &= used
            self.moving: Tensor = moving  # (K, 77)
            counts = moving.sum(dim=1)
            if not (counts == counts[0]).all() or moving[range(len(ends)), ends].any():
                raise Unsuitable("its prompts do not have the same context vectors in all classes")
            n = int(counts[0])
            slots = moving.nonzero()[:, 1].view(len(ends), n)  # (K, n)
            ids, table = _labels(prompts, used & ~moving, ends)
            device, flat = prompts.device, torch.arange(moving.numel()).view(moving.shape)
            self.fixed = flat[used & ~moving].to(device)  # (T,) rows of prompts (K * 77, D)
            self.slots = flat[moving].view(len(ends), n).to(device)  # (K, n) rows of the same
            self.words = prompts.flatten(0, 1).index_select(0, self.fixed)  # (T, D)
            self.class_specific: bool = old is not None and old.class_specific
            for rows in (prompts, change):
                self.class_specific |= rows is not None and not self._shares_context(rows)
        parts = _Clip(encoder, table)
        places = slots if n else None
        self.encoder = TextEncoder(parts, ClassPrompts(ids, places, self.class_specific))

    def is_of(self, prompts: Tensor, tokens: Tensor) -> bool:
        """Whether these are prompts with the same token ids."""
        words = self.words
        if prompts.device != words.device or prompts.dtype != words.dtype:
            return False
        if tokens is self.given[0] and version(tokens) == self.given[1]:
            return True
        same = tokens.device == self.tokens.device and torch.equal(tokens, self.tokens)
        return same and prompts.shape[-1] == words.shape[-1]

    def fits(self, prompts: Tensor, tokens: Tensor, backward: bool) -> bool:
        """Whether these prompts have the same fixed words."""
        if (backward and not self.knows_gradient) or not self.is_of(prompts, tokens):
            return False
        positions, its_version = self.old_positions
        if version(self.positions) != its_version and not torch.equal(self.positions, positions):
            return False
        prompts = prompts.detach()
        same = torch.equal(prompts.flatten(0, 1).index_select(0, self.fixed), self.words)
        return same and (self.class_specific or self._shares_context(prompts))

    def differs(self, prompts: Tensor) -> Tensor:
        """(K, 77): which fixed rows of these prompts are others."""
        found = torch.zeros(self.moving.numel(), dtype=torch.bool)
        rows = prompts.flatten(0, 1).index_select(0, self.fixed)
        found[self.fixed.cpu()] = (rows != self.words).any(dim=-1).cpu()
        return found.view(self.moving.shape)

    def _shares_context(self, prompts: Tensor) -> bool:
        """Whether all classes have the same context vectors."""
        ctx = prompts.flatten(0, 1)[self.slots]  # (K, n, D)
        return torch.equal(ctx, ctx[:1].expand_as(ctx))

    def features(self, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """(K, E), with gradients for the context vectors and the deep prompts."""
        if not self.slots.shape[1]:
            return self.encoder(None, deep)
        if self.class_specific:
            return self.encoder(prompts.flatten(0, 1)[self.slots], deep)
        return self.encoder(prompts[0].index_select(0, self.slots[0]), deep)


def _change(prompts: Tensor, trained: list[Tensor]) -> Tensor:
    """The derivative (K, 77, D) of the prompts in a random direction of the trained parameters.

    It is the derivative of a gradient: <gradient(cotangent), direction> is linear in the cotangent.
    """
    cotangent = torch.zeros_like(prompts, requires_grad=True)
    gradients = torch.autograd.grad(
        prompts, trained, cotangent, create_graph=True, allow_unused=True
    )
    generator = torch.Generator().manual_seed(0)  # leaves the global random state unchanged
    products = [
        (g * torch.randn(g.shape, generator=generator).to(g)).sum()
        for g in gradients
        if g is not None and g.requires_grad
    ]
    if not products:
        return torch.zeros_like(prompts)
    total = torch.stack([x.float() for x in products]).sum()
    (change,) = torch.autograd.grad(total, cotangent, retain_graph=True)
    return change


def _labels(prompts: Tensor, fixed: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each fixed row (K, 77), and the row of each number.

    Rows with the same values have the same number. As TextEncoder needs it, the largest number of a
    prompt is that of its end-of-text token.
    """
    ids = torch.zeros(fixed.shape, dtype=torch.long)
    at_end = torch.arange(fixed.shape[1]) == ends[:, None]
    tables: list[Tensor] = []
    for mask in (fixed & ~at_end, fixed & at_end):
        rows = prompts.cpu()[mask].contiguous()
        raw = rows.view(torch.uint8).numpy()
        whole = raw.view(np.dtype((np.void, raw.shape[1])))[:, 0] if len(raw) else raw[:, 0]
        _, first, number = np.unique(whole, return_index=True, return_inverse=True)
        ids[mask] = torch.from_numpy(number).view(-1) + sum(map(len, tables))
        tables.append(rows[torch.from_numpy(first)])
    return ids, torch.cat(tables).to(prompts.device)


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


def _check_layers(encoder: Any) -> None:
    """Raises Unsuitable if a text encoder is not CLIP's."""
    lacking = [part for part in PARTS if not hasattr(encoder, part)]
    if lacking or not hasattr(encoder.transformer, "resblocks"):
        raise Unsuitable(f"it has no {', '.join(lacking) or 'transformer.resblocks'}")
    has_prompt = []
    for layer in encoder.transformer.resblocks:
        names = {name for name, _ in layer.named_parameters()}
        has_prompt.append(DEEP_PROMPT in names)
        if names - {DEEP_PROMPT} != LAYER:
            different = ", ".join(sorted((names - {DEEP_PROMPT}) ^ LAYER))
            raise Unsuitable(f"its layers are not CLIP's ({different})")
    if has_prompt[0] or has_prompt[1:] != sorted(has_prompt[1:], reverse=True):
        raise Unsuitable("its deep prompts do not begin at the second layer")
