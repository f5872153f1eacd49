"""CLIP's text encoder for class prompts with learned context vectors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from npt.encoders.blocks import layer_norm, run_layers
from npt.encoders.linear import product_dtype, version
from npt.encoders.memory import activation_bytes, free_bytes
from npt.encoders.openai import CLIP
from npt.encoders.packing import GROUP, ClassPrompts, pack
from npt.errors import NPTError

AT_ONCE = 4096  # tokens in one pass without backward: larger passes are no faster
LEAST = 32  # classes in a chunk, where the memory decides


class TextEncoder(nn.Module):
    """Features of K class prompts, computed without waste and to the same values.

    clip_model: an unmodified, frozen CLIP, whose token embeddings are read once, here
    prompts: the prompts of the K classes, as `place_context` gives
    class_chunk: train with so many classes at a time, of one image at a time, and compute each
        such piece again for its backward; 0: only where the memory there is would not hold all
    group: how many tokens attend together, at most
    """

    def __init__(
        self,
        clip_model: CLIP,
        prompts: ClassPrompts,
        class_chunk: int = 0,
        group: int = GROUP,
    ):
        super().__init__()
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.class_specific = prompts.class_specific
        self.class_chunk = class_chunk
        self.n_classes = len(prompts.tokens)
        self.n_ctx = 0 if prompts.slots is None else prompts.slots.shape[1]
        with torch.inference_mode(False), torch.no_grad():  # buffers must be fit for training
            self.chunks = nn.ModuleList(self._chunks(clip_model, prompts, group))
        self._cached: tuple | None = None

    def _chunks(self, clip_model: CLIP, prompts: ClassPrompts, group: int) -> list["Chunk"]:
        """All classes, cut by `class_chunk`, or so that an image needs a quarter of the memory."""
        size = self.class_chunk or self.n_classes
        chunks = [Chunk(clip_model, part, group, self.dtype) for part in prompts.split(size)]
        if self.class_chunk:
            return chunks
        allowed = free_bytes(clip_model.token_embedding.weight.device) / 4
        pieces = sum(map(self._kept_bytes, chunks)) / max(allowed, 1)
        if pieces <= 1 or size <= LEAST:
            return chunks
        size = max(LEAST, math.ceil(size / pieces))
        return [Chunk(clip_model, part, group, self.dtype) for part in prompts.split(size)]

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.resblocks[0].attn.in_proj_weight.dtype

    def _kept_bytes(self, chunk: "Chunk") -> float:
        layers, width = len(self.transformer.resblocks), self.text_projection.shape[0]
        a_token = activation_bytes(layers, width, self.dtype.itemsize, chunk.keys_per_query)
        return chunk.n_tokens * a_token

    @property
    def kept_bytes(self) -> float:
        """About what a training step keeps for backward, for each image."""
        return sum(map(self._kept_bytes, self.chunks))

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
                return features.clone()
        features = self._encode(ctx, deep)
        if not features.is_inference():  # such a tensor is of no use outside inference mode
            self._cached = ([p.detach().clone() for p in prompts], state, features.clone())
        return features

    def _state(self) -> tuple:
        """Changes whenever a weight does, or the precision it is used in."""
        words = self.chunks[0].words
        weights = [version(w) for w in self.parameters()]
        return weights, self.dtype, words.device, product_dtype(words)

    def _encode(self, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        if ctx is None and self.n_ctx:
            raise NPTError(f"these prompts have {self.n_ctx} context positions and got no context")
        prompts = [] if ctx is None else [ctx, *deep[: len(self.transformer.resblocks) - 1]]
        prompts = [self._per_class(p) for p in prompts]  # (B or 1, 1 or K, n, D) each
        images = prompts[0].shape[0] if prompts else 1
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in prompts)
        recompute = learning and self._too_large(images)
        features = []
        first = 0
        for chunk in self.chunks:
            classes = slice(first, first + chunk.n_classes)
            first += chunk.n_classes
            mine = [p[:, classes] if p.shape[1] > 1 else p for p in prompts]
            together = images
            if recompute:
                together = 1
            elif not learning:
                together = max(1, AT_ONCE // chunk.n_tokens)
            of_images = []
            for i in range(0, images, together):
                piece = [p[i : i + together] if len(p) > 1 else p for p in mine]
                if recompute:
                    options = {"use_reentrant": False, "preserve_rng_state": False}
                    of_images.append(checkpoint(self._piece, chunk, *piece, **options))
                else:
                    of_images.append(self._piece(chunk, *piece))
            features.append(_cat(of_images, 0))
        x = _cat(features, 1)  # (B, K, E)
        return x if ctx is not None and ctx.dim() == 4 else x[0]

    def _too_large(self, images: int) -> bool:
        """Whether a step must be cut in pieces that are computed again for their backward."""
        if self.class_chunk:
            return images * len(self.chunks) > 1
        return images * self.kept_bytes > free_bytes(self.text_projection.device) / 2

    def _piece(self, chunk: "Chunk", *prompts: Tensor) -> Tensor:
        """Features (B, classes of the chunk, E)."""
        x = layer_norm(self.ln_final, chunk(self.transformer.resblocks, prompts))
        return x @ self.text_projection

    def _per_class(self, ctx: Tensor) -> Tensor:
        """ctx as (B or 1, 1 or K, n, D), in the dtype of the encoder."""
        x = ctx.to(self.dtype)
        x = x.view((1,) * (4 - x.dim()) + x.shape)
        classes = self.n_classes if self.class_specific else 1
        width = self.text_projection.shape[0]
        if x.shape[1] not in (1, classes) or x.shape[2:] != (self.n_ctx, width):
            raise NPTError(
                f"context vectors of shape {tuple(ctx.shape)} do not fit prompts of "
                f"{self.n_ctx} context positions of width {width}"
                + (f" for {self.n_classes} classes" if self.class_specific else "")
            )
        return x


class Chunk(nn.Module):
    """The tokens of some classes' prompts, in the layout of `packing`."""

    def __init__(
        self,
        clip_model: CLIP,
        prompts: ClassPrompts,
        group: int,
        dtype: torch.dtype,
    ):
        super().__init__()
        packing = pack(prompts, group)
        self.n_classes = len(prompts.tokens)
        self.class_specific = prompts.class_specific
        self.n_tokens = len(packing.pos) + len(packing.ctx_pos)
        self.groups, size, keys = packing.sees.shape
        self.keys_per_query = keys / size
        embedding = clip_model.token_embedding.weight.detach()
        device = embedding.device
        positions = clip_model.positional_embedding.detach().to(dtype)
        words = embedding[prompts.tokens[packing.cls, packing.pos].to(device)].to(dtype)
        mask = torch.zeros(packing.sees.shape, dtype=dtype)
        mask.masked_fill_(~packing.sees, float("-inf"))
        read_mask = mask.gather(1, packing.read[..., None].expand(-1, -1, keys))
        first = torch.arange(self.groups)[:, None] * size  # of each group
        self._buffer("words", words + positions[packing.pos.to(device)])  # (T, D)
        self._buffer("ctx_positions", positions[packing.ctx_pos.to(device)])  # (M, D)
        self._buffer("ctx_rows", packing.ctx_row.to(device))  # (M,)
        self._buffer("far", packing.far.flatten().to(device))  # (G * E,)
        self._buffer("mask", mask[:, None].to(device))  # (G, 1, Q, E + Q), -inf or 0
        self._buffer("read_mask", read_mask[:, None].to(device))  # (G, 1, R, E + Q)
        self._buffer("read", (first + packing.read).flatten().to(device))  # (G * R,)
        self._buffer("slot", packing.slot.to(device))  # (K,)

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, layers: nn.Sequential, prompts: Sequence[Tensor]) -> Tensor:
        """The EOT of every class after all layers: (B, K, D); prompts (B or 1, 1 or K, n, D)."""
        placed = [self._place(p) for p in prompts]
        if placed:
            placed[0] = placed[0] + self.ctx_positions
        images, dtype = len(placed[0]) if placed else 1, product_dtype(layers[0].mlp.c_fc.weight)
        mask, read_mask = (m.to(dtype).repeat(images, 1, 1, 1) for m in (self.mask, self.read_mask))

        def attend(qkv: Tensor) -> Tensor:
            return self._attention(*KeysOfGroups.apply(qkv, self.far, self.groups), mask)

        def attend_read(q: Tensor, kv: Tensor) -> Tensor:
            _, k, v = KeysOfGroups.apply(kv, self.far, self.groups)
            return self._attention(q, k, v, read_mask)

        x = run_layers(layers, self.words[None], placed, self.read, attend, attend_read)
        return x.index_select(1, self.slot)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, G * Q, 1, H, d), k and v (B * G, E + Q, H, d) -> (B, G * Q, H, d)."""
        b, g = q.shape[0], self.groups
        q = q[:, :, 0].unflatten(1, (g, -1)).flatten(0, 1)  # (B * G, Q, H, d)
        heads_first = (z.transpose(1, 2) for z in (q, k, v))
        x = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        return x.transpose(1, 2).unflatten(0, (b, g)).flatten(1, 2)

    def _place(self, ctx: Tensor) -> Tensor:
        """Context vectors (B or 1, 1 or K, n, D) at their nodes: (B or 1, M, D)."""
        if self.class_specific:
            ctx = ctx.expand(-1, self.n_classes, -1, -1)
        return ctx.flatten(1, 2).index_select(1, self.ctx_rows)


class KeysOfGroups(torch.autograd.Function):
    """Queries, if any, and the keys and values that every group of nodes attends to.

    qkv (B, N, 3 or 2, H, d) and far (G * E,) nodes -> queries (B, N, 1 or 0, H, d), keys and values
    (B * G, E + Q, H, d): first those of the far nodes, then of the group's own. One function, so
    that backward writes the gradient of qkv once.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, far: Tensor, groups: int) -> tuple[Tensor, ...]:
        kv = qkv[:, :, -2:]
        b, n, _, h, d = kv.shape
        e, q = far.numel() // groups, n // groups
        out = qkv.new_empty(b, groups, e + q, 2, h, d)
        out[:, :, :e] = kv.index_select(1, far).view(b, groups, e, 2, h, d)
        out[:, :, e:] = kv.unflatten(1, (groups, q))
        ctx.save_for_backward(far)
        ctx.shape = qkv.shape
        keys, values = out.flatten(0, 1).unbind(2)
        return qkv[:, :, :-2].clone(), keys, values  # so that backward does not keep all of qkv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (far,) = ctx.saved_tensors
        b, n = ctx.shape[:2]
        out = grads[1].new_empty(ctx.shape)
        out[:, :, :-2] = grads[0]
        for i, grad in ((-2, grads[1]), (-1, grads[2])):
            q = n * b // len(grad)
            grad = grad.unflatten(0, (b, -1))  # (B, G, E + Q, H, d)
            e = grad.shape[2] - q
            exact = torch.promote_types(grad.dtype, torch.float32)  # sums over many groups
            own = grad[:, :, e:].flatten(1, 2).to(exact, copy=True)
            out[:, :, i] = own.index_add_(1, far, grad[:, :, :e].flatten(1, 2).to(exact))
        return out, None, None


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _all_equal(new: list[Tensor], old: list[Tensor]) -> bool:
    if len(new) != len(old):
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(new, old, strict=True)
    )
