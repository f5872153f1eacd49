"""The packing of class prompts: the worked example in the docstring is what the code computes."""

import re
from itertools import pairwise

import clip
import pytest
import torch

from npt.encoders import packing
from npt.encoders.packing import group_size, pack, place_context

TEXTS = ["a photo of a dark red rose.", "a photo of a dark red tulip.", "a photo of a cat."]
N_CTX = 4
TOKENS = clip.tokenize(TEXTS)
LENGTHS = [int(row.argmax()) + 1 for row in TOKENS]  # up to and including EOT
DOCUMENTED = " ".join(packing.__doc__.split())


def packed(class_specific=False):
    return pack(place_context(TOKENS, N_CTX, class_specific=class_specific), group=8)


def word(token):
    special = {"<|startoftext|>": "SOS", "<|endoftext|>": "EOT"}
    text = clip.clip._tokenizer.decoder[int(token)].removesuffix("</w>")
    return special.get(text, text)


def words_of_nodes(example):
    """The word of every node, "ctx" for a context vector."""
    words = [word(TOKENS[k, p]) for k, p in zip(example.cls, example.pos, strict=True)]
    return words + ["ctx"] * len(example.ctx_pos)


def attended(example):
    """For every group and node in it: the far nodes and the nodes of the group it attends to."""
    groups, size, keys = example.sees.shape
    out = []
    for g in range(groups):
        nodes = torch.cat([example.far[g], torch.arange(g * size, (g + 1) * size)])
        split = keys - size
        for row in example.sees[g]:
            far, own = nodes[:split][row[:split]], nodes[split:][row[split:]]
            out.append((far.tolist(), own.tolist()))
    return out


def listed(numbers):
    return ", ".join(map(str, numbers))


def test_the_documented_prompts():
    rows = re.findall(r"class \d +(.*)", packing.__doc__)[: len(TEXTS)]
    for row, tokens, length in zip(rows, TOKENS, LENGTHS, strict=True):
        words = [word(token) for token in tokens[:length]]
        words[1 : 1 + N_CTX] = ["ctx"] * N_CTX
        assert row.split() == words
    assert f"K = {len(TEXTS)} classes, with n = {N_CTX} context vectors" in DOCUMENTED
    assert f"{len(TEXTS)} x 77 = {len(TEXTS) * 77} tokens" in DOCUMENTED
    assert f"leaves {' + '.join(map(str, LENGTHS))} = {sum(LENGTHS)}." in DOCUMENTED


def test_the_documented_tree():
    """Every node attends to itself and to the nodes before it in the drawing of the tree."""
    example = packed()
    nodes, vectors = len(example.cls) + len(example.ctx_pos), len(example.ctx_pos)
    counts = f"{nodes} nodes, {nodes - vectors} words and {vectors} context vectors"
    assert f"a tree of {counts}" in DOCUMENTED
    parents, names = {0: None}, {}
    for line in packing.__doc__.splitlines():
        if " - " in line:
            chain = [(name, int(node)) for name, node in re.findall(r"(\S+) (\d+)", line)]
            names |= {node: name for name, node in chain}
            parents |= {node: parent for (_, parent), (_, node) in pairwise(chain)}
    assert [names[node] for node in range(nodes)] == words_of_nodes(example)
    for node, (far, own) in enumerate(attended(example)):
        path = [node]
        while parents[path[-1]] is not None:
            path.append(parents[path[-1]])
        assert sorted(far + own) == sorted(path)


def test_the_documented_groups():
    example = packed()
    groups, size, _ = example.sees.shape
    seen = attended(example)
    ranges = [f"nodes {g * size} to {(g + 1) * size - 1}" for g in range(groups)]
    assert f"With at most 8 nodes a group, the groups are {' and '.join(ranges)}." in DOCUMENTED
    far = [sorted({i for f, _ in seen[g * size : (g + 1) * size] for i in f}) for g in (0, 1)]
    assert (
        f"{listed(far[0])} for the first group, and {listed(far[1])} for the second" in DOCUMENTED
    )
    far_nodes, own = seen[8]
    assert (
        f"attends to the far nodes {listed(far_nodes)} and, in its own group, to nodes "
        f"{listed(own)}." in DOCUMENTED
    )


def test_the_documented_eot_nodes():
    example = packed()
    groups, size, _ = example.sees.shape
    nodes = (torch.arange(groups)[:, None] * size + example.read).flatten()[example.slot]
    read = [f"{node} for class {k}" for k, node in enumerate(nodes.tolist())]
    assert f"EOT nodes: {listed(read)}." in DOCUMENTED
    assert [words_of_nodes(example)[node] for node in nodes] == ["EOT"] * len(TEXTS)


def test_the_documented_class_specific_tree():
    example = packed(class_specific=True)
    groups, size, _ = example.sees.shape
    alone = [node for node, (far, own) in enumerate(attended(example)) if far + own == [node]]
    words = len(example.cls)
    padding = [node for node in alone if node > 0]  # node 0 is SOS
    assert padding == list(range(words - len(padding), words))
    assert (
        f"then has {groups * size - len(padding)} nodes, in {groups} groups of {size}, with "
        f"{len(padding)} nodes of padding after the words." in DOCUMENTED
    )


@pytest.mark.parametrize("count", [1, 7, 32, 33, 100, 1001])
def test_group_size(count):
    size = group_size(count, 32)
    assert size == count if count <= 32 else 16 <= size <= 32
    if count > 32:
        assert -count % size == min(-count % other for other in range(16, 33))
