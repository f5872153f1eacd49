"""Which tokens of all class prompts have to be computed, and what each of them attends to.

A class prompt is tokens 0 .. EOT; what follows EOT is never read, for attention is causal. For the
same reason a token is a function of the tokens before it, so classes whose prompts begin alike
share that beginning: the prompts form a tree, and every node of it is computed once. Linear maps
run over the plain list of nodes. Attention runs over groups of neighbours in that list, each with
the keys of its own nodes and of the ancestors it has elsewhere.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32  # nodes that attend together; more: larger products, but wasted on others' keys


class ClassPrompts(NamedTuple):
    """The prompts of K classes.

    tokens: (K, 77) token ids; whatever id stands in a slot is not read
    slots: (K, n) where context vector j sits in the prompt of class k; None: no context
    class_specific: context vectors differ from class to class
    """

    tokens: Tensor
    slots: Tensor | None = None
    class_specific: bool = False

    def split(self, size: int) -> list["ClassPrompts"]:
        """The prompts of `size` classes each, on the CPU."""
        tokens = self.tokens.cpu().split(size)
        slots = [None] * len(tokens) if self.slots is None else self.slots.cpu().split(size)
        pairs = zip(tokens, slots, strict=True)
        return [ClassPrompts(*pair, self.class_specific) for pair in pairs]


@dataclass
class Packing:
    """N = G * Q nodes, the last M of them context vectors, for K classes.

    The other T = N - M are words, with padding at their end; a padded node sees itself alone.
    """

    cls: Tensor  # (T,) a class whose prompt the word is in
    pos: Tensor  # (T,) its position there
    ctx_pos: Tensor  # (M,) position of a context vector
    ctx_row: Tensor  # (M,) its row in ctx: j, or k * n + j for class-specific contexts
    far: Tensor  # (G, E) nodes of other groups that some node of the group sees
    sees: Tensor  # (G, Q, E + Q) True where a node sees a far node, or one of its group
    read: Tensor  # (G, R) which of its Q nodes a group is read at; 0 where it is at fewer
    slot: Tensor  # (K,) where class k is among these G * R


def tree(
    tokens: list[list[int]], vectors: list[list[int]]
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The distinct beginnings of the prompts, as (parent, class, position); and each class's end.

    tokens: ids up to and with EOT; vectors: at the same places the row of a context vector, or -1
    """
    nodes: list[tuple[int, int, int]] = []
    known: dict[tuple[int, int, int], int] = {}  # (parent, vector, token) -> node
    ends = [0] * len(tokens)
    for k in sorted(range(len(tokens)), key=tokens.__getitem__):  # alike classes become neighbours
        node = -1
        for p, (token, vector) in enumerate(zip(tokens[k], vectors[k], strict=True)):
            key = (node, vector, token if vector < 0 else -1)
            if key not in known:
                known[key] = len(nodes)
                nodes.append((node, k, p))
            node = known[key]
        ends[k] = node
    return nodes, ends


def group_size(count: int, most: int) -> int:
    """At most `most`, at least half of it, such that `count` nodes need little padding."""
    if count <= most:
        return count
    return min(range(most, max(most // 2, 1) - 1, -1), key=lambda size: -count % size)


def pack(prompts: ClassPrompts, group: int = GROUP) -> Packing:
    """Pack prompts, whose EOT is the largest id; at most `group` nodes attend together."""
    tokens, slots, class_specific = prompts
    count = tokens.shape[0]
    vectors = torch.full_like(tokens, -1)  # (K, 77)
    if slots is not None:
        n = slots.shape[1]
        rows = torch.arange(n).expand(count, n)
        if class_specific:
            rows = rows + n * torch.arange(count)[:, None]
        vectors.scatter_(1, slots, rows)
    ends = (tokens.argmax(dim=-1) + 1).tolist()
    row_of = [row[:end] for row, end in zip(vectors.tolist(), ends, strict=True)]
    ids = [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]
    nodes, eots = tree(ids, row_of)

    words = [i for i, (_, k, p) in enumerate(nodes) if row_of[k][p] < 0]
    context = [i for i, (_, k, p) in enumerate(nodes) if row_of[k][p] >= 0]
    size = group_size(len(nodes), group)
    padding = -len(nodes) % size
    order = [*words, *[-1] * padding, *context]
    place = {node: i for i, node in enumerate(order) if node >= 0}

    paths: list[list[int]] = []  # of every place: itself and its ancestors, as places
    for i, node in enumerate(order):
        path = [i]
        while node >= 0 and (node := nodes[node][0]) >= 0:
            path.append(place[node])
        paths.append(path)
    groups = range(len(order) // size)
    outside = [
        sorted({j for path in paths[g * size : (g + 1) * size] for j in path if j // size != g})
        for g in groups
    ]
    room = max(map(len, outside))
    sees = torch.zeros(len(groups), size, room + size, dtype=torch.bool)
    for g in groups:
        column = {j: i for i, j in enumerate(outside[g])}
        column |= {g * size + i: room + i for i in range(size)}
        for i, path in enumerate(paths[g * size : (g + 1) * size]):
            sees[g, i, [column[j] for j in path]] = True

    read: list[list[int]] = [[] for _ in groups]  # places within a group
    slot = []  # (group, number) of every class
    for node in eots:
        g, i = divmod(place[node], size)
        if i not in read[g]:
            read[g].append(i)
        slot.append((g, read[g].index(i)))
    most = max(map(len, read))

    def table(rows: list[list[int]], width: int) -> Tensor:
        filled = [row + [0] * (width - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long).view(len(rows), width)

    where = table([list(nodes[max(i, 0)][1:]) for i in order], 2)  # (N, 2) class, position
    word, ctx = where[: len(order) - len(context)], where[len(order) - len(context) :]
    return Packing(
        cls=word[:, 0],
        pos=word[:, 1],
        ctx_pos=ctx[:, 1],
        ctx_row=vectors[ctx[:, 0], ctx[:, 1]],
        far=table(outside, room),
        sees=sees,
        read=table(read, most),
        slot=torch.tensor([g * most + i for g, i in slot]),
    )


def place_context(
    tokens: Tensor,
    n: int,
    where: str = "end",
    name_lengths: list[int] | None = None,
    class_specific: bool = False,
) -> ClassPrompts:
    """CoOp's three layouts of "SOS, n context tokens, class name, rest" (K, 77).

    "end": the class name stays behind the context; "middle": it is moved to stand in its middle;
    "front": before it. name_lengths: number of tokens of each class name, for the latter two.
    """
    before = {"end": n, "middle": n // 2, "front": 0}[where]  # context tokens before the name
    slots = torch.arange(1, n + 1).repeat(len(tokens), 1)
    if before == n:
        return ClassPrompts(tokens, slots, class_specific)
    tokens = tokens.clone()
    for k, length in enumerate(name_lengths or []):
        name = tokens[k, 1 + n : 1 + n + length].clone()
        filler = tokens[k, 1 + before : 1 + n].clone()
        tokens[k, 1 + before : 1 + before + length] = name
        tokens[k, 1 + before + length : 1 + n + length] = filler
        slots[k, before:] += length
    return ClassPrompts(tokens, slots, class_specific)
