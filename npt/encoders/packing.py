"""Which tokens of the class prompts are computed, and which tokens each of them attends to.

Example: K = 3 classes, with n = 4 context vectors in place of the words "a photo of a".

    position    0    1    2    3    4    5     6      7      8    9
    class 0    SOS  ctx  ctx  ctx  ctx  dark  red   rose     .   EOT
    class 1    SOS  ctx  ctx  ctx  ctx  dark  red   tulip    .   EOT
    class 2    SOS  ctx  ctx  ctx  ctx  cat    .    EOT

CLIP computes 3 x 77 = 231 tokens. Attention is causal: a token depends on itself and the tokens
before it. So the tokens after EOT are not needed, which leaves 10 + 10 + 8 = 28. And prompts with
the same beginning have the same values there, so a common beginning is computed once. The prompts
form a tree of 16 nodes, 12 words and 4 context vectors:

    SOS 0 - ctx 12 - ctx 13 - ctx 14 - ctx 15
        ctx 15 - cat 1 - . 2 - EOT 3
        ctx 15 - dark 4 - red 5
            red 5 - rose 6 - . 7 - EOT 8
            red 5 - tulip 9 - . 10 - EOT 11

The number of a node is its place in the list of nodes. The words come first and the context
vectors last, because deep prompts replace these in several layers.

Linear layers and LayerNorm run on the list of 16 nodes. Attention runs in groups of consecutive
nodes. With at most 8 nodes a group, the groups are nodes 0 to 7 and nodes 8 to 15. A node attends
to itself and its ancestors in the tree. Ancestors in another group are far nodes of its group:
12, 13, 14, 15 for the first group, and 0, 4, 5, 6, 7 for the second. A group computes attention
of its own nodes to its far nodes and its own nodes, with a mask. For example, node 8 (EOT of class
0) attends to the far nodes 0, 4, 5, 6, 7 and, in its own group, to nodes 8, 12, 13, 14, 15.

The text features are read at the EOT nodes: 8 for class 0, 11 for class 1, 3 for class 2.

If every class has context vectors of its own, only SOS is shared. The tree then has 26 nodes, in 4
groups of 7, with 2 nodes of padding after the words.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from npt.errors import NPTError

GROUP = 32  # most nodes in a group; larger groups: larger products, but more masked keys


class ClassPrompts(NamedTuple):
    """The prompts of K classes.

    tokens: (K, 77) token ids; the ids at the positions `slots` are ignored
    slots: (K, n) the position of context vector j in the prompt of class k; None: no context
    class_specific: whether every class has context vectors of its own
    """

    tokens: Tensor
    slots: Tensor | None = None
    class_specific: bool = False

    def within(self, context: int, vocabulary: int) -> "ClassPrompts":
        """The prompts as a CLIP takes them whose texts have `context` tokens, 77 or fewer.

        NPTError if a prompt is longer, or has tokens that are not in its vocabulary.
        """
        if int(self.tokens.max()) >= vocabulary:
            raise NPTError(
                f"this CLIP (MODEL.BACKBONE.NAME) knows {vocabulary} tokens, and CLIP's tokenizer "
                "has more: choose one with that tokenizer"
            )
        longest = int(self.tokens.argmax(dim=-1).max()) + 1
        if longest > context:
            raise NPTError(
                f"a prompt has {longest} tokens, and this CLIP (MODEL.BACKBONE.NAME) takes "
                f"{context}: shorten the class names, or lower N_CTX or CTX_INIT of the trainer"
            )
        return self._replace(tokens=self.tokens[:, :context])

    def split(self, size: int) -> list["ClassPrompts"]:
        """Parts of `size` classes each, on the CPU."""
        tokens = self.tokens.cpu().split(size)
        slots = [None] * len(tokens) if self.slots is None else self.slots.cpu().split(size)
        pairs = zip(tokens, slots, strict=True)
        return [ClassPrompts(*pair, self.class_specific) for pair in pairs]


@dataclass
class Packing:
    """The nodes of K class prompts, in G groups of Q nodes: N = G * Q = T + M.

    The first T nodes are words and, after them, padding; the last M are context vectors. A padding
    node attends to itself only. Shorter rows of `far` and `read` are padded with 0.
    """

    cls: Tensor  # (T,) a class whose prompt contains the word
    pos: Tensor  # (T,) position of the word in that prompt
    ctx_pos: Tensor  # (M,) position of the context vector
    ctx_row: Tensor  # (M,) its row in ctx: j, or k * n + j for class-specific contexts
    far: Tensor  # (G, E) nodes of other groups that nodes of this group attend to
    sees: Tensor  # (G, Q, E + Q) whether a node attends to a far node, or a node of its group
    read: Tensor  # (G, R) the nodes, numbered within the group, at which the group is read
    slot: Tensor  # (K,) index of class k's EOT in `read`, flattened to (G * R,)


def tree(
    tokens: list[list[int]], vectors: list[list[int]]
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The nodes of the tree as (parent, class, position), and the EOT node of each class.

    The nodes are numbered in depth-first order; the parent of a root is -1.
    tokens: for each class the ids up to and including EOT
    vectors: for each of these tokens the row of its context vector, or -1 for a word
    """
    nodes: list[tuple[int, int, int]] = []
    known: dict[tuple[int, int, int], int] = {}  # (parent, vector, token) -> node
    ends = [0] * len(tokens)
    for k in sorted(range(len(tokens)), key=tokens.__getitem__):  # similar prompts are neighbours
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
    """Nodes in a group: all `count` if possible, else most / 2 to `most` for the least padding."""
    if count <= most:
        return count
    return min(range(most, max(most // 2, 1) - 1, -1), key=lambda size: -count % size)


def pack(prompts: ClassPrompts, group: int = GROUP) -> Packing:
    """The packing of these prompts in groups of at most `group` nodes.

    EOT must be the largest token id, as in CLIP.
    """
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
    row_of = [row[:end] for row, end in zip(vectors.tolist(), ends, strict=True)]  # of ctx, or -1
    ids = [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]
    nodes, eots = tree(ids, row_of)

    words = [i for i, (_, k, p) in enumerate(nodes) if row_of[k][p] < 0]
    context = [i for i, (_, k, p) in enumerate(nodes) if row_of[k][p] >= 0]
    size = group_size(len(nodes), group)
    padding = -len(nodes) % size
    order = [*words, *[-1] * padding, *context]  # nodes of the tree; -1: padding
    place = {node: i for i, node in enumerate(order) if node >= 0}  # the inverse

    paths: list[list[int]] = []  # for every place: itself and the places of its ancestors
    for i, node in enumerate(order):
        path = [i]
        while node >= 0 and (node := nodes[node][0]) >= 0:
            path.append(place[node])
        paths.append(path)
    groups = range(len(order) // size)
    far = [
        sorted({j for path in paths[g * size : (g + 1) * size] for j in path if j // size != g})
        for g in groups
    ]
    most_far = max(map(len, far))
    sees = torch.zeros(len(groups), size, most_far + size, dtype=torch.bool)
    for g in groups:
        column = {j: i for i, j in enumerate(far[g])}
        column |= {g * size + i: most_far + i for i in range(size)}
        for i, path in enumerate(paths[g * size : (g + 1) * size]):
            sees[g, i, [column[j] for j in path]] = True

    read: list[list[int]] = [[] for _ in groups]  # numbers within the group
    slot = []  # for every class: its group, and its index in read[group]
    for node in eots:
        g, i = divmod(place[node], size)
        if i not in read[g]:
            read[g].append(i)
        slot.append((g, read[g].index(i)))
    most_read = max(map(len, read))

    def table(rows: list[list[int]], width: int) -> Tensor:
        """The rows, filled with zeros to the same length."""
        filled = [row + [0] * (width - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long).view(len(rows), width)

    where = table([list(nodes[max(i, 0)][1:]) for i in order], 2)  # (N, 2) class, position
    word, ctx = where[: len(order) - len(context)], where[len(order) - len(context) :]
    return Packing(
        cls=word[:, 0],
        pos=word[:, 1],
        ctx_pos=ctx[:, 1],
        ctx_row=vectors[ctx[:, 0], ctx[:, 1]],
        far=table(far, most_far),
        sees=sees,
        read=table(read, most_read),
        slot=torch.tensor([g * most_read + i for g, i in slot]),
    )


def place_context(
    tokens: Tensor,
    n: int,
    where: str = "end",
    name_lengths: list[int] | None = None,
    class_specific: bool = False,
) -> ClassPrompts:
    """CoOp's three positions of the class name in prompts (K, 77).

    tokens: prompts "SOS, n tokens in place of the context, class name, rest"
    where: "end" leaves the class name after the context vectors, "middle" moves it between their
        first and second half, "front" before them
    name_lengths: the number of tokens of each class name; needed for "middle" and "front"
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
