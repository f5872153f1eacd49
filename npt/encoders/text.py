"""CLIP's text encoder for class prompts with learned context vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.checkpoint import checkpoint

from npt.encoders.blocks import layer_norm, once_or, run_layers, weights_of
from npt.encoders.linear import product_dtype, version
from npt.encoders.memory import activation_bytes, free_bytes, pass_bytes
from npt.encoders.packing import GROUP, ClassPrompts, pack
from npt.errors import NPTError

if TYPE_CHECKING:
    from clip.model import CLIP, ResidualAttentionBlock

TOKENS_PER_PASS = 4096  # without gradients, on a CPU; larger passes are not faster there
MOST_TOKENS = 2**20  # ... on a GPU
ALIGNED = 8  # elements between rows of a mask: CUDA's fused attention copies masks of other widths
MIN_CHUNK = 32  # classes in a chunk whose size depends on the free memory


class TextEncoder(nn.Module):
    """Text features of K class prompts; every token that prompts share is computed once.

    clip_model: an unmodified, frozen CLIP; its token embeddings are copied here
    prompts: the prompts of the K classes, see `place_context`
    class_chunk: in training, compute this many classes of one image at a time, and recompute each
        part in the backward pass (activation checkpointing); 0: do so only if the activations of
        the whole step do not fit in the free memory
    group: see `packing`

    The features equal those of the 77-token computation up to rounding.
    """

    chunks: Sequence[Chunk]  # an nn.ModuleList

    def __init__(
        self,
        clip_model: CLIP,
        prompts: ClassPrompts,
        class_chunk: int = 0,
        group: int = GROUP,
    ):
        super().__init__()
        prompts = prompts.within(
            len(clip_model.positional_embedding), len(clip_model.token_embedding.weight)
        )
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.class_specific = prompts.class_specific
        self.class_chunk = class_chunk
        self.n_classes = len(prompts.tokens)
        self.n_ctx = 0 if prompts.slots is None else prompts.slots.shape[1]
        with torch.inference_mode(False), torch.no_grad():  # inference tensors cannot be trained on
            chunks = nn.ModuleList(self._split(clip_model, prompts, group))
        self.chunks = cast("Sequence[Chunk]", chunks)
        # prompts, weights' state and features of the last call without gradients
        self._cached: tuple[list[_Seen], tuple, Tensor] | None = None
        self._free: dict[torch.device, float] = {}

    def _split(self, clip_model: CLIP, prompts: ClassPrompts, group: int) -> list[Chunk]:
        """Chunks of `class_chunk` classes, or of at most about a quarter of the free memory."""
        size = self.class_chunk or self.n_classes
        chunks = [Chunk(clip_model, part, group, self.dtype) for part in prompts.split(size)]
        if self.class_chunk:
            return chunks
        allowed = free_bytes(clip_model.token_embedding.weight.device) / 4
        parts = sum(map(self._kept_bytes, chunks)) / max(allowed, 1)
        if parts <= 1 or size <= MIN_CHUNK:
            return chunks
        size = max(MIN_CHUNK, math.ceil(size / parts))
        return [Chunk(clip_model, part, group, self.dtype) for part in prompts.split(size)]

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.resblocks[0].attn.in_proj_weight.dtype

    def _kept_bytes(self, chunk: Chunk) -> float:
        layers, width = len(self.transformer.resblocks), self.text_projection.shape[0]
        per_token = activation_bytes(layers, width, self.dtype.itemsize, chunk.keys_per_query)
        return chunk.n_tokens * per_token

    @property
    def kept_bytes(self) -> float:
        """Estimated bytes that a training step keeps for backward, per image with its own ctx."""
        return sum(map(self._kept_bytes, self.chunks))

    def forward(self, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Features (K, E), not normalised; (B, K, E) if ctx has an image dimension.

        ctx: (n, D), (K, n, D) class-specific, or (B, 1 or K, n, D) per image
        deep: (n, D) each, which replace the context vectors at the inputs of layers 1, 2, ...
            (MaPLe); those beyond the number of layers are not used

        With gradients disabled, features (K, E) are cached until the prompts or a weight change.
        Raises NPTError for context vectors that do not fit the prompts.
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
        if not features.is_inference():  # an inference tensor is not usable outside that mode
            self._cached = ([_Seen(p) for p in prompts], state, features.clone())
        return features

    def _state(self) -> tuple:
        """Changes when a weight, the device or the precision of the computation changes."""
        words = self.chunks[0].words
        weights = [version(w) for w in weights_of(self)]
        return weights, self.dtype, words.device, product_dtype(words)

    def _encode(self, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        if ctx is None and self.n_ctx:
            raise NPTError(
                f"these prompts have {self.n_ctx} context positions, but no context was given"
            )
        prompts = [] if ctx is None else [ctx, *deep[: len(self.transformer.resblocks) - 1]]
        prompts = [self._per_class(p) for p in prompts]  # (B or 1, 1 or K, n, D) each
        images = prompts[0].shape[0] if prompts else 1
        training = torch.is_grad_enabled() and any(p.requires_grad for p in prompts)
        recompute = training and self._too_large(images)
        features = []
        first = 0
        for chunk in self.chunks:
            classes = slice(first, first + chunk.n_classes)
            first += chunk.n_classes
            chunk_prompts = [p[:, classes] if p.shape[1] > 1 else p for p in prompts]
            batch = images  # images in one pass
            if recompute:
                batch = 1
            elif not training:
                batch = max(1, self._tokens_per_pass(chunk) // chunk.n_tokens)
            batches = []
            for i in range(0, images, batch):
                part = [p[i : i + batch] if len(p) > 1 else p for p in chunk_prompts]
                if recompute:
                    x = checkpoint(
                        self._encode_part, chunk, *part,
                        use_reentrant=False, preserve_rng_state=False,
                    )  # fmt: skip
                else:
                    x = self._encode_part(chunk, *part)
                batches.append(x)
            features.append(_cat(batches, 0))
        x = _cat(features, 1)  # (B, K, E)
        return x if ctx is not None and ctx.dim() == 4 else x[0]

    def _too_large(self, images: int) -> bool:
        """Whether to compute a step in parts that are recomputed in the backward pass."""
        if self.class_chunk:
            return images * len(self.chunks) > 1
        return images * self.kept_bytes > self._free_bytes() / 2

    def _tokens_per_pass(self, chunk: Chunk) -> int:
        """Tokens in a pass without gradients: on a GPU as many as a quarter of its memory holds."""
        if self.text_projection.device.type == "cpu":
            return TOKENS_PER_PASS
        width = self.text_projection.shape[0]
        per_token = pass_bytes(width, self.dtype.itemsize, chunk.keys_per_query)
        return int(min(self._free_bytes() / 4 / per_token, MOST_TOKENS))

    def _free_bytes(self) -> float:
        """Memory that was free when it was first wanted: asking takes a while on a GPU."""
        device = self.text_projection.device
        if device not in self._free:
            self._free[device] = free_bytes(device)
        return self._free[device]

    def _encode_part(self, chunk: Chunk, *prompts: Tensor) -> Tensor:
        """Features (B, classes of the chunk, E)."""
        x = layer_norm(self.ln_final, chunk(self.transformer.resblocks, prompts))
        return x @ self.text_projection

    def _per_class(self, ctx: Tensor) -> Tensor:
        """ctx as (B or 1, 1 or K, n, D), in the dtype of the encoder; NPTError for other shapes."""
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
    """The transformer on the prompts of some classes, packed as `packing` describes."""

    words: Tensor  # (T, D) embeddings plus positional embeddings
    ctx_positions: Tensor  # (M, D) positional embeddings
    ctx_rows: Tensor  # (M,)
    far: Tensor  # (G * E,)
    mask: Tensor  # (G, 1, Q, E + Q), -inf or 0
    read_mask: Tensor  # (G, 1, R, E + Q)
    read: Tensor  # (G * R,)
    slot: Tensor  # (K,)

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
        first = torch.arange(self.groups)[:, None] * size  # node of each group
        self._buffer("words", words + positions[packing.pos.to(device)])
        self._buffer("ctx_positions", positions[packing.ctx_pos.to(device)])
        self._buffer("ctx_rows", packing.ctx_row.to(device))
        self._buffer("far", packing.far.flatten().to(device))
        self._buffer("mask", mask[:, None].to(device))
        self._buffer("read_mask", read_mask[:, None].to(device))
        self._buffer("read", (first + packing.read).flatten().to(device))
        self._buffer("slot", packing.slot.to(device))
        self._made: tuple[tuple, list[Tensor]] | None = None  # what _masks made, and for what

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, layers: nn.Sequential, prompts: Sequence[Tensor]) -> Tensor:
        """The EOT token of every class after all layers (B, K, D).

        prompts: (B or 1, 1 or K, n, D) each, the context vectors and the deep prompts
        """
        placed = [self._place(p) for p in prompts]
        if placed:
            placed[0] = placed[0] + self.ctx_positions
        layer: ResidualAttentionBlock = layers[0]
        images, dtype = len(placed[0]) if placed else 1, product_dtype(layer.mlp.c_fc.weight)
        mask, read_mask = self._masks(images, dtype)

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = GroupedKeys.apply(qkv, self.far, self.groups)
            return self._attention(q, k, v, mask)

        def attend_read(q: Tensor, kv: Tensor) -> Tensor:
            _, k, v = GroupedKeys.apply(kv, self.far, self.groups)
            return self._attention(q, k, v, read_mask)

        x = run_layers(layers, self.words[None], placed, self.read, attend, attend_read)
        return x.index_select(1, self.slot)

    def _masks(self, images: int, dtype: torch.dtype) -> list[Tensor]:
        """Both masks for the groups of all images, (B * G, 1, Q or R, E + Q); made once."""
        key = (images, dtype, self.mask.device, torch.is_inference_mode_enabled())
        if self._made is None or self._made[0] != key:
            padding = (0, -self.mask.shape[-1] % ALIGNED)
            masks = [F.pad(m.to(dtype), padding) for m in (self.mask, self.read_mask)]
            keys = self.mask.shape[-1]
            self._made = key, [m.repeat(images, 1, 1, 1)[..., :keys] for m in masks]
        return self._made[1]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, G * Q, 1, H, d), k and v (B * G, E + Q, H, d) -> (B, G * Q, H, d)."""
        b, g = q.shape[0], self.groups
        q = q[:, :, 0].unflatten(1, (g, -1)).flatten(0, 1)  # (B * G, Q, H, d)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x.transpose(1, 2).unflatten(0, (b, g)).flatten(1, 2)

    def _place(self, ctx: Tensor) -> Tensor:
        """The context vector (B or 1, M, D) of each context node, from (B or 1, 1 or K, n, D)."""
        if self.class_specific:
            ctx = ctx.expand(-1, self.n_classes, -1, -1)
        return ctx.flatten(1, 2).index_select(1, self.ctx_rows)


def _grouped_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of `GroupedKeys`, with operations that autograd knows."""
    (far,) = ctx.saved_tensors
    qkv = grads[1].new_zeros(ctx.shape, requires_grad=True)  # a linear map: any value will do
    groups = len(grads[1]) // len(qkv)
    kv = qkv[:, :, -2:].flatten(0, 1)  # (B * N, 2, H, d)
    rows = torch.arange(len(kv), device=far.device).view(len(qkv), groups, -1)
    of_far = far.view(groups, -1) + ctx.shape[1] * torch.arange(len(qkv), device=far.device).view(
        -1, 1, 1
    )
    keys, values = kv[torch.cat([of_far, rows], dim=2)].flatten(0, 1).unbind(2)
    outputs = (qkv[:, :, :-2], keys, values)
    return *torch.autograd.grad(outputs, qkv, grads, create_graph=True), None, None


class GroupedKeys(torch.autograd.Function):
    """Queries, if there are any, and for every group the keys and values it attends to.

    qkv (B, N, 3 or 2, H, d) and the far nodes (G * E,) -> queries (B, N, 1 or 0, H, d), keys and
    values (B * G, E + Q, H, d), first of the group's far nodes, then of its own nodes. One autograd
    function, so that the backward pass writes the gradient of qkv only once.
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
        return qkv[:, :, :-2].clone(), keys, values  # a view would keep all of qkv for backward

    @staticmethod
    @once_or(_grouped_again)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (far,) = ctx.saved_tensors
        b, n = ctx.shape[:2]
        out = grads[1].new_empty(ctx.shape)
        out[:, :, :-2] = grads[0]
        for i, grad in ((-2, grads[1]), (-1, grads[2])):
            q = n * b // len(grad)
            grad = grad.unflatten(0, (b, -1))  # (B, G, E + Q, H, d)
            e = grad.shape[2] - q
            exact = torch.promote_types(grad.dtype, torch.float32)  # the sum may have many terms
            own = grad[:, :, e:].flatten(1, 2).to(exact, copy=True)
            out[:, :, i] = own.index_add_(1, far, grad[:, :, :e].flatten(1, 2).to(exact))
        return out, None, None


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


_optimizer_steps = 0  # in this process


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class _Seen:
    """A prompt as it was when its features were computed."""

    def __init__(self, prompt: Tensor):
        self.prompt, self.value, self.mark = prompt, prompt.detach().clone(), self._mark(prompt)

    @staticmethod
    def _mark(prompt: Tensor) -> tuple:
        """Changes when the prompt does; some optimizers change it through `.data`."""
        return version(prompt), _optimizer_steps

    def equals(self, x: Tensor) -> bool:
        """Whether x has the same values. To compare these would wait for a device."""
        if x is self.prompt and x.device.type != "cpu" and self._mark(x) == self.mark:
            return True
        like = self.value
        same = x.shape == like.shape and x.dtype == like.dtype and x.device == like.device
        return same and torch.equal(x, like)


def _all_equal(new: list[Tensor], old: list[_Seen]) -> bool:
    return len(new) == len(old) and all(o.equals(x) for x, o in zip(new, old, strict=True))
