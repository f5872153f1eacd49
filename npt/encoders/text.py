"""CLIP's text encoder for class prompts with learned context vectors."""

from collections.abc import Sequence

import torch
from clip.model import CLIP
from torch import Tensor, nn

from npt.encoders.blocks import layer_norm, run_layers
from npt.encoders.packing import pack
from npt.errors import NPTError


class TextEncoder(nn.Module):
    """Features of K class prompts, computed without waste and to the same values.

    clip_model: an unmodified CLIP, whose token embeddings are read once, here
    tokenized: (K, 77) token ids of the prompts; whatever id stands in a slot is not read
    slots: (K, n) where context vector j sits in the prompt of class k, as `place_context` gives
    class_specific: the contexts given to `forward` differ from class to class
    room: how many tokens to pack in a row; by default what keeps attention within its linear maps
    """

    def __init__(
        self,
        clip_model: CLIP,
        tokenized: Tensor,
        slots: Tensor | None = None,
        class_specific: bool = False,
        room: int | None = None,
    ):
        super().__init__()
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.class_specific = class_specific
        weight = clip_model.token_embedding.weight
        device, dtype = weight.device, self.dtype
        packing = pack(
            tokenized.cpu(),
            None if slots is None else slots.cpu(),
            class_specific,
            room or max(128, weight.shape[1] // 2),
        )
        self.n_classes, self.n_eots = len(tokenized), packing.eots
        self.n_ctx = 0 if slots is None else slots.shape[1]
        positions = clip_model.positional_embedding.detach().to(dtype)
        ids = tokenized.cpu()[packing.cls, packing.pos].to(device)
        embeddings = weight.detach()[ids].to(dtype) + positions[packing.pos.to(device)]
        mask = torch.zeros(packing.sees.shape, dtype=dtype)
        mask.masked_fill_(~packing.sees, float("-inf"))
        self._buffer("tokens", embeddings)  # (G, T, D)
        self._buffer("ctx_positions", positions[packing.ctx_pos.to(device)])  # (G, M, D)
        self._buffer("mask", mask.unsqueeze(1).to(device))  # (G, 1, T + M, T + M)
        groups, rows = packing.ctx_row.shape[0], packing.ctx_row.flatten()
        given = torch.arange(self.n_ctx * (self.n_classes if class_specific else 1))
        as_given = torch.equal(rows, given)
        self._buffer("ctx_rows", None if as_given else rows.to(device))  # (G * M,)
        in_order = len(packing.order) == groups * packing.eots
        self._buffer("order", None if in_order else packing.order.to(device))  # (K,)
        self._cached: tuple | None = None

    def _buffer(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.resblocks[0].attn.in_proj_weight.dtype

    def forward(self, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Features (K, E), not normalised; (B, K, E) where ctx has an image dimension.

        ctx: (n, D), (K, n, D) class-specific, or (B, 1 or K, n, D) per image
        deep: (n, D) each, in place of the context at the inputs of layers 1, 2, ... (MaPLe); more
        than there are layers are left unused.
        With grad off, a result that depends on no image is kept until the context or a weight
        changes.
        """
        if torch.is_grad_enabled() or (ctx is not None and ctx.dim() == 4):
            return self._encode(ctx, deep)
        prompts = [p for p in (ctx, *deep) if p is not None]
        state = self._state()
        if self._cached is not None:
            old_prompts, old_state, features = self._cached
            if state == old_state and _all_equal(prompts, old_prompts):
                return features
        features = self._encode(ctx, deep)
        self._cached = ([p.detach().clone() for p in prompts], state, features)
        return features

    def _state(self) -> tuple:
        """Changes whenever a weight does, or the precision it is used in."""
        weights = [(w.data_ptr(), w._version) for w in self.parameters()]
        one = self.ctx_positions.new_ones(1, 1)
        return (weights, self.dtype, one.device, torch.mm(one, one).dtype)  # seen through autocast

    def _encode(self, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        tokens, mask = self.tokens, self.mask
        prompts = []
        images = 1
        if ctx is not None:
            images = ctx.shape[0] if ctx.dim() == 4 else 1
            prompts = [self._place(ctx) + self._per_row(self.ctx_positions, images)]
            used = deep[: len(self.transformer.resblocks) - 1]
            prompts += [self._per_row(self._place(p), images) for p in used]
        elif self.n_ctx:
            raise NPTError(f"these prompts have {self.n_ctx} context positions and got no context")
        if images > 1:
            tokens, mask = self._per_row(tokens, images), self._per_row(mask, images)
        x = run_layers(self.transformer.resblocks, tokens, prompts, self.n_eots, mask)
        x = layer_norm(self.ln_final, x)  # (B * G, eots, D)
        x = (x @ self.text_projection).view(images, -1, self.text_projection.shape[1])
        if self.order is not None:
            x = x.index_select(1, self.order)
        return x if ctx is not None and ctx.dim() == 4 else x[0]

    def _place(self, ctx: Tensor) -> Tensor:
        """Context vectors at their places: (G or B * G, M, D)."""
        m, d = self.ctx_positions.shape[1:]
        x = ctx.to(self.dtype)
        x = x.view((1,) * (4 - x.dim()) + x.shape)  # (1 or B, 1 or K, n, D)
        classes = self.n_classes if self.class_specific else 1
        if x.shape[1] not in (1, classes) or x.shape[2:] != (self.n_ctx, d):
            raise NPTError(
                f"context vectors of shape {tuple(ctx.shape)} do not fit prompts of "
                f"{self.n_ctx} context positions of width {d}"
                + (f" for {self.n_classes} classes" if self.class_specific else "")
            )
        x = x.expand(-1, classes, -1, -1).flatten(1, 2)  # (1 or B, rows, D)
        if self.ctx_rows is not None:
            x = x.index_select(1, self.ctx_rows)
        return x.view(-1, m, d)  # (G or B * G, M, D)

    @staticmethod
    def _per_row(x: Tensor, images: int) -> Tensor:
        """Repeat something held for G packed rows for every image: (B * G, ...)."""
        rest = x.shape[1:]
        return x.expand(images, *x.shape).reshape(-1, *rest) if images > 1 else x


def _all_equal(new: list[Tensor], old: list[Tensor]) -> bool:
    if len(new) != len(old):
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(new, old, strict=True)
    )
