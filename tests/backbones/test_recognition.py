"""Which packages `clip` are taken for OpenAI's."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
import warnings
from pathlib import Path

import clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from npt.backbones import recognition
from npt.backbones.recognition import CONTEXT, TOKENS, images, numbers, resnet_shapes, vit_shapes
from npt.randomness import random_state_kept

_numbers = itertools.count()


@pytest.fixture
def changed(tmp_path):
    """Import a copy of the package in which texts of a file are replaced."""
    imported = []

    def load(file: str, *replaced: tuple[str, str]):
        name = f"changed_clip_{next(_numbers)}"
        folder = tmp_path / name
        shutil.copytree(Path(clip.__file__).parent, folder)
        source = (folder / file).read_text()
        for old, new in replaced:
            assert old in source
            source = source.replace(old, new)
        (folder / file).write_text(source)
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        imported.append(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(package)
        return package

    yield load
    for module in [m for m in sys.modules if m.partition(".")[0] in imported]:
        del sys.modules[module]


def check(package) -> None:
    with random_state_kept():
        recognition.check(package)


BUILD = "def build_model(state_dict: dict):"
POOLED = "        x = self.attnpool(x)\n"
ATTENDED = "attn_mask = self.attn_mask[..., -n_ctx:, -n_ctx:]"
VIT_END = "            x = x @ self.proj\n\n        return x"
LAYER = "    def forward(self, x: torch.Tensor):\n        x = x + self.attention(self.ln_1(x))"
ALL_LAYERS = "        return self.resblocks(x)"

OTHERS = {
    "design of prompts": ("model.py", (BUILD, "def build_model(state_dict: dict, design):")),
    "pooling of all tokens": (
        "model.py",
        ("query=x[:1]", "query=x"),
        ("return x.squeeze(0)", "return x"),
    ),
    "mean of all tokens": (
        "model.py",
        ("query=x[:1]", "query=x"),
        ("return x.squeeze(0)", "return x.mean(dim=0)"),
    ),
    "features of each layer of a ResNet": (
        "model.py",
        (POOLED, f"{POOLED}        return [x, x]\n"),
    ),
    "features of all patches": ("model.py", ("self.ln_post(x[:, 0, :])", "self.ln_post(x)")),
    "features and tokens": ("model.py", (VIT_END, VIT_END + ", x")),
    "an argument of the image encoder": (
        "model.py",
        (
            "    def forward(self, x: torch.Tensor):\n        x = self.conv1",
            "    def forward(self, x: torch.Tensor, prompts):\n        x = self.conv1",
        ),
    ),
    "layers with a mask": (
        "model.py",
        (LAYER, LAYER.replace("x: torch.Tensor", "x: torch.Tensor, mask")),
        (
            ALL_LAYERS,
            "        for layer in self.resblocks:\n"
            "            x = layer(x, None)\n        return x",
        ),
    ),
    "layers that return lists": (
        "model.py",
        (
            "        x = x + self.mlp(self.ln_2(x))\n        return x",
            "        return [x + self.mlp(self.ln_2(x))]",
        ),
        (
            ALL_LAYERS,
            "        for layer in self.resblocks:\n            x = layer(x)[0]\n        return x",
        ),
    ),
    "no causal mask": ("model.py", (ATTENDED, "attn_mask = 0 * torch.empty(n_ctx, n_ctx)")),
    "another activation": (
        "model.py",
        ("return x * torch.sigmoid(1.702 * x)", "return F.gelu(x)"),
    ),
    "another LayerNorm": (
        "model.py",
        (
            "class LayerNorm(nn.LayerNorm):",
            "class LayerNorm(nn.LayerNorm):\n    def __init__(self, n):\n"
            "        super().__init__(n, eps=1e-2)\n",
        ),
    ),
    "additional weights": (
        "model.py",
        (
            "        self.initialize_parameters()",
            "        self.prompt = nn.Parameter(torch.zeros(2))\n"
            "        self.initialize_parameters()",
        ),
        ("load_state_dict(state_dict)", "load_state_dict(state_dict, strict=False)"),
    ),
    "the mean of a text's tokens": (
        "model.py",
        ("x[torch.arange(x.shape[0]), text.argmax(dim=-1)]", "x.mean(dim=1)"),
    ),
    "no half precision": ("model.py", ("    model.apply(_convert_weights_to_fp16)", "    pass")),
    "all in half precision": (
        "model.py",
        ("    model.apply(_convert_weights_to_fp16)", "    model.half()"),
    ),
    "other names of functions": (
        "model.py",
        ("def convert_weights(", "def convert("),
        ("    convert_weights(", "    convert("),
    ),
    "texts that are cut": ("clip.py", ("truncate: bool = False", "truncate: bool = True")),
    "other tokens": ("clip.py", ("_tokenizer.encode(text)", "_tokenizer.encode(text + '.')")),
    "texts as written": ("simple_tokenizer.py", (")).lower()", "))")),
    "no tokenizer": ("clip.py", ("def tokenize(", "def tokenise("), ('"tokenize"', '"tokenise"')),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_package_that_differs_is_not_openais(changed, what):
    file, *replaced = OTHERS[what]
    package = changed(file, *replaced)
    with pytest.raises(Exception):  # noqa: B017  of any type
        check(package)


SAME = {
    "nothing": ("model.py",),
    "a design that need not be given": (
        "model.py",
        (BUILD, "def build_model(state_dict: dict, design=None):"),
    ),
    "other names of classes": (
        "model.py",
        ("ResidualAttentionBlock", "Layer"),
        ("VisionTransformer", "ImageTransformer"),
    ),
    "results that may be asked for": (
        "model.py",
        (VIT_END, f"{VIT_END} if not tokens else (x, x)"),
        (
            "    def forward(self, x: torch.Tensor):\n        x = self.conv1",
            "    def forward(self, x: torch.Tensor, tokens=False):\n        x = self.conv1",
        ),
    ),
    "LayerNorm in the precision of its input": (
        "model.py",
        ("super().forward(x.type(torch.float32))", "super().forward(x)"),
    ),
    "a mask that is kept": (
        "model.py",
        (f"            {ATTENDED}", "            attn_mask = self.attn_mask"),
    ),
    "attention of all pooled tokens, of which one is used": (
        "model.py",
        ("query=x[:1]", "query=x"),
        ("return x.squeeze(0)", "return x[0]"),
    ),
    "ids of 32 bits": ("clip.py", ("dtype=torch.long", "dtype=torch.int")),
    "fewer files": ("clip.py", ("_MODELS = {", "_MODELS = {} if True else {")),
}


@pytest.mark.parametrize("what", SAME)
def test_a_package_that_computes_the_same_is_openais(changed, what):
    file, *replaced = SAME[what]
    check(changed(file, *replaced))


def test_the_check_is_independent_of_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        check(clip)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- the features in `recognition`, computed in float64 from the definition of CLIP


def norm(x: Tensor, w: dict, name: str) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer(x: Tensor, w: dict, prefix: str, causal: bool) -> Tensor:
    """x (B, N, D); one head, as D is 64"""
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool() & torch.tensor(causal)
    for i in range(2):
        layer = f"{prefix}transformer.resblocks.{i}"
        y = norm(x, w, f"{layer}.ln_1")
        y = y @ w[f"{layer}.attn.in_proj_weight"].T + w[f"{layer}.attn.in_proj_bias"]
        q, k, v = y.chunk(3, dim=-1)
        scores = (q @ k.mT / 8).masked_fill(hidden, -torch.inf)
        x = x + linear(scores.softmax(-1) @ v, w, f"{layer}.attn.out_proj")
        y = linear(norm(x, w, f"{layer}.ln_2"), w, f"{layer}.mlp.c_fc")
        x = x + linear(y / (1 + torch.exp(-1.702 * y)), w, f"{layer}.mlp.c_proj")
    return x


def texts(w: dict) -> Tensor:
    tokens = torch.tensor(TOKENS)
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    x = norm(transformer(x, w, "", causal=True), w, "ln_final")
    return torch.stack([x[0, 3], x[1, CONTEXT - 1]]) @ w["text_projection"]


def vit(w: dict) -> Tensor:
    patches = images(16).double().unfold(2, 8, 8).unfold(3, 8, 8)  # (2, 3, 2, 2, 8, 8)
    x = torch.einsum("bcijyx,dcyx->bijd", patches, w["visual.conv1.weight"]).flatten(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(2, 1, -1), x], dim=1)
    x = norm(x + w["visual.positional_embedding"], w, "visual.ln_pre")
    x = transformer(x, w, "visual.", causal=False)
    return norm(x[:, 0], w, "visual.ln_post") @ w["visual.proj"]


def resnet(w: dict) -> Tensor:
    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            w[f"visual.{name}.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x: Tensor, block: str, number: int, stride: int = 1) -> Tensor:
        weight = w[f"visual.{block}conv{number}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return batch_norm(x, f"{block}bn{number}")

    x = images(64).double()
    for i in (1, 2, 3):
        x = conv(x, "", i, stride=2 if i == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    for i in range(4):
        block = f"layer{i + 1}.0."
        pool = 2 if i else 1
        y = conv(conv(x, block, 1).relu(), block, 2).relu()
        y = conv(F.avg_pool2d(y, pool), block, 3)
        shorter = F.conv2d(F.avg_pool2d(x, pool), w[f"visual.{block}downsample.0.weight"])
        x = (y + batch_norm(shorter, f"{block}downsample.1")).relu()
    x = x.flatten(2).mT  # (2, 4, 128)
    pool = "visual.attnpool"
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + w[f"{pool}.positional_embedding"]
    q, k, v = (
        linear(x, w, f"{pool}.{name}_proj").unflatten(-1, (2, 64)).transpose(1, 2) for name in "qkv"
    )
    y = (q[:, :, :1] @ k.mT / 8).softmax(-1) @ v  # (2, 2 heads, 1, 64)
    return linear(y.transpose(1, 2).flatten(1), w, f"{pool}.c_proj")


@pytest.mark.parametrize(
    ("shapes", "encode", "expected"),
    [
        (vit_shapes, vit, recognition.VIT_IMAGES),
        (resnet_shapes, resnet, recognition.RESNET_IMAGES),
        (vit_shapes, texts, recognition.TEXTS),
        (resnet_shapes, texts, recognition.TEXTS),
    ],
)
def test_the_expected_features_follow_from_the_definition(shapes, encode, expected):
    weights = {name: x.double() for name, x in numbers(shapes()).items()}
    assert torch.allclose(encode(weights), torch.tensor(expected).double(), rtol=0, atol=1e-5)
