"""Where every token of every class prompt is computed: once, and side by side in long rows.

A class prompt is tokens 0 .. EOT; what follows EOT is never read, for attention is causal. The
beginning that all classes have in common is kept once a row; then come the endings of as many
classes as fit. Rows hold no padding but at their ends. A token sees the tokens of its own prompt
at its own or earlier positions, and nothing else, so the result is that of separate sequences.

A packed row is [EOT of its classes | other tokens | context vectors]: see blocks.py for why.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COMMON, PADDING = -1, -2  # owners that are no class
LAYOUTS = ("end", "middle", "front")  # where the class name may stand in a prompt


@dataclass
class Packing:
    """Index tensors of G packed rows of T tokens and M context vectors, for K classes."""

    cls: Tensor  # (G, T) class whose prompt a token is read from
    pos: Tensor  # (G, T) its position there
    ctx_pos: Tensor  # (G, M) position of a context vector
    ctx_row: Tensor  # (G, M) its row in ctx: j, or k * n + j for class-specific contexts
    sees: Tensor  # (G, T + M, T + M) True where a row may attend a column
    eots: int  # the first `eots` tokens of a row are EOTs (or padding)
    order: Tensor  # (K,) where the EOT of class k is among the G * eots


def common_beginning(tokens: Tensor, vectors: Tensor, eot: Tensor, class_specific: bool) -> int:
    """Number of first positions that are the same in all classes; at least SOS, never an EOT."""
    end = int(eot.min())
    same = (tokens[:, :end] == tokens[:1, :end]) | (vectors[:, :end] >= 0)
    same &= vectors[:, :end] == vectors[:1, :end]
    if class_specific:
        same &= vectors[:, :end] < 0
    different = (~same.all(dim=0)).nonzero()
    return int(different[0]) if len(different) else end


def rows_of_classes(lengths: list[int], room: int) -> list[list[int]]:
    """Classes in their order, cut into rows of at most `room` tokens (at least one class each)."""
    rows: list[list[int]] = [[]]
    used = 0
    for k, length in enumerate(lengths):
        if rows[-1] and used + length > room:
            rows.append([])
            used = 0
        rows[-1].append(k)
        used += length
    return rows


def pack(
    tokens: Tensor, slots: Tensor | None = None, class_specific: bool = False, room: int = 128
) -> Packing:
    """Pack prompts.

    tokens: (K, 77) token ids, zeros after EOT, which is the largest id
    slots: (K, n) position of context vector j in the prompt of class k; None: no context
    room: about how many tokens a row may have
    """
    count = tokens.shape[0]
    eot = tokens.argmax(dim=-1)
    vectors = torch.full_like(tokens, -1)  # (K, 77) which context vector sits here
    n = 0
    if slots is not None:
        n = slots.shape[1]
        vectors.scatter_(1, slots, torch.arange(n).expand(count, n))
    start = common_beginning(tokens, vectors, eot, class_specific)
    kinds, ends = vectors.tolist(), eot.tolist()
    base = n if class_specific else 0

    packed = []
    for classes in rows_of_classes([e + 1 - start for e in ends], room - start):
        places = [(COMMON, classes[0], p) for p in range(start)]
        places += [(k, k, p) for k in classes for p in range(start, ends[k])]
        words = [place for place in places if kinds[place[1]][place[2]] < 0]
        context = [place for place in places if kinds[place[1]][place[2]] >= 0]
        packed.append(([(k, k, ends[k]) for k in classes], words, context))

    def padded(part: int) -> Tensor:
        """One part of all rows as (G, length, 3): owner, class, position."""
        longest = max(len(row[part]) for row in packed)
        rows = [row[part] + [(PADDING, 0, 0)] * (longest - len(row[part])) for row in packed]
        return torch.tensor(rows, dtype=torch.long).view(len(rows), longest, 3)

    eots, words, context = padded(0), padded(1), padded(2)
    owner, cls, pos = torch.cat([eots, words, context], dim=1).unbind(-1)  # (G, T + M)
    sees = (owner[:, None] == COMMON) | (owner[:, None] == owner[:, :, None])
    sees &= pos[:, None] <= pos[:, :, None]
    t = eots.shape[1] + words.shape[1]
    of_context = cls[:, t:], pos[:, t:]
    home = eots[..., 0].flatten()  # (G * eots,)
    return Packing(
        cls=cls[:, :t],
        pos=pos[:, :t],
        ctx_pos=of_context[1],
        ctx_row=(of_context[0] * base + vectors[of_context]).clamp_(min=0),
        sees=sees,
        eots=eots.shape[1],
        order=(home >= 0).nonzero().flatten(),
    )


def place_context(
    tokens: Tensor, n: int, where: str = "end", name_lengths: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """CoOp's three layouts of "SOS, n context tokens, class name, rest".

    Returns the tokens (K, 77), moved, and the slots (K, n) of the context vectors. "end": the class
    name stays behind the context; "middle": it stands in its middle; "front": before it.
    name_lengths: number of tokens of each class name, for "middle" and "front".
    """
    before = {"end": n, "middle": n // 2, "front": 0}[where]  # context tokens before the name
    slots = torch.arange(1, n + 1).repeat(len(tokens), 1)
    if before == n:
        return tokens, slots
    tokens = tokens.clone()
    for k, length in enumerate(name_lengths or []):
        name = tokens[k, 1 + n : 1 + n + length].clone()
        filler = tokens[k, 1 + before : 1 + n].clone()
        tokens[k, 1 + before : 1 + before + length] = name
        tokens[k, 1 + before + length : 1 + n + length] = filler
        slots[k, before:] += length
    return tokens, slots
