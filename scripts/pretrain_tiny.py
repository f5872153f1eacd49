"""Pre-trains the small CLIP of the mini suite on pictures of six worlds and their captions.

    python scripts/pretrain_tiny.py --out output/tiny            # 40 min on 2 cores
    python scripts/pretrain_tiny.py --out output/tiny --install  # also installs the weights

The model is a very small `clip.model.CLIP` of OpenAI, trained from random weights with the
symmetric contrastive loss of Radford et al. (2021). The logit scale increases to 100, its final
value in OpenAI's models, and stays there. The pictures have other seeds, and milder and differently
mixed conditions, than the pictures of the downstream data sets (datasets/mini.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import time
from pathlib import Path

import _checkout  # noqa: F401  first: npt of this checkout
import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP

from npt.backbones.tiny import base_embedding, pack_tiny
from npt.datasets.conditions import CONDITIONS, render
from npt.datasets.worlds import WORLDS

SEED = 20_000  # not used by any downstream data set
ARCHITECTURE = dict(
    embed_dim=64,
    image_resolution=32,
    vision_layers=4,
    vision_width=128,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=128,
    transformer_heads=2,
    transformer_layers=4,
)
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a {}.",
    "{}",
)
STYLED = (
    "a {style} photo of a {}.",
    "a {style} picture of a {}.",
    "a {style} image of a {}.",
    "a {}, {style}.",
)
PLAIN_SHARE = 0.4  # share of captions that do not mention the picture's conditions
PHRASE_CUTS = (0.55, 0.75, 0.90)  # the phrases of a world have shares of 55, 20, 15 and 10%


def draw_example(index: int) -> tuple[np.ndarray, str, str, dict, tuple[str, ...]]:
    """Draw picture number `index`. Returns picture, world, class, attributes and conditions."""
    rng = np.random.default_rng([SEED, index])
    world = list(WORLDS)[int(rng.integers(len(WORLDS)))]
    classes = list(WORLDS[world].classes)
    name = classes[int(rng.integers(len(classes)))]
    how_many = int(np.searchsorted([0.4, 0.85], rng.random(), side="right"))
    words = tuple(sorted(CONDITIONS)[k] for k in rng.permutation(len(CONDITIONS))[:how_many])
    amounts = {w: (0.8, 1.0) if w in ("negative", "sketched") else (0.2, 0.7) for w in words}
    picture, attributes = render(rng, world, name, amounts)
    return picture, world, name, dict(attributes), words


def caption(rng: np.random.Generator, world: str, name: str, attributes: dict, words) -> str:
    """A random caption of a picture; words: its conditions."""
    phrases = WORLDS[world].phrases
    phrase = phrases[int(np.searchsorted(PHRASE_CUTS, rng.random(), side="right"))]
    thing = phrase.format(name=name, **attributes)
    if words and rng.random() > PLAIN_SHARE:
        template = STYLED[int(rng.integers(len(STYLED)))]
        return template.format(thing, style=" ".join(words))
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(thing)


@functools.cache
def tokens_of(text: str) -> tuple[int, ...]:
    """CLIP's tokens of a text up to the end token, without padding."""
    row = clip.tokenize(text)[0]
    return tuple(row[: int(row.argmax()) + 1].tolist())


class Vocabulary:
    """Consecutive numbers of the tokens that occur; other rows of the embedding are not trained."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        ids: set[int] = set()
        for world, spec in WORLDS.items():
            for name in spec.classes:
                for _ in range(60 if world != "flags" else 8):
                    index = int(rng.integers(2**31))
                    _, attributes = clean(index, world, name)
                    words = tuple(
                        sorted(CONDITIONS)[k]
                        for k in rng.permutation(len(CONDITIONS))[: int(rng.integers(3))]
                    )
                    ids.update(tokens_of(caption(rng, world, name, attributes, words)))
        for words in ("a photo of a", "this is a photo", *CONDITIONS):
            ids.update(tokens_of(words))
        self.ids = sorted(ids)
        self.number = {token: k for k, token in enumerate(self.ids)}

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers (N, L), padded with zeros, and the positions of the end tokens (N,)."""
        rows = [[self.number[t] for t in tokens_of(text)] for text in texts]
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, numbers in zip(out, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return out, torch.tensor([len(r) - 1 for r in rows])


def clean(index: int, world: str, name: str) -> tuple[np.ndarray, dict]:
    """A held-out picture of a class without conditions, and its attributes."""
    picture, attributes = render(np.random.default_rng([SEED + 1, index]), world, name, {})
    return picture, dict(attributes)


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) with CLIP's mean and standard deviation."""
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std


def encode_text(model: CLIP, numbers: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """(N, L) token numbers -> (N, E). Only positions up to the longest text are computed."""
    length = numbers.shape[1]
    x = model.token_embedding(numbers) + model.positional_embedding[:length]  # (N, L, W)
    causal = torch.full((length, length), -math.inf).triu(1)
    x = x.transpose(0, 1)  # CLIP's layers take (L, N, W)
    for layer in model.transformer.resblocks:
        layer.attn_mask = causal
        x = layer(x)
    x = x.transpose(0, 1)
    return model.ln_final(x[torch.arange(len(x)), ends]) @ model.text_projection


def contrastive_loss(image, text, scale: float, texts: list[str]) -> torch.Tensor:
    """Symmetric cross-entropy. Pictures with the same caption share the target probability."""
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    logits = scale * image @ text.T
    numbers = {t: k for k, t in enumerate(dict.fromkeys(texts))}
    keys = torch.tensor([numbers[t] for t in texts])
    target = (keys[:, None] == keys[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def held_out_accuracy(model: CLIP, vocabulary: Vocabulary, per_class: int = 4) -> dict[str, float]:
    """Zero-shot accuracy in percent on held-out pictures of each world, and the mean text cosine.

    The pictures have no conditions. Large worlds are reduced to 40 to 79 classes.
    """
    model.eval()
    out = {}
    for world, spec in WORLDS.items():
        names = list(spec.classes)[:: max(1, len(spec.classes) // 40)]
        drawn = [clean(10**6 + k, world, n)[0] for n in names for k in range(per_class)]
        labels = torch.arange(len(names)).repeat_interleave(per_class)
        image = F.normalize(model.visual(normalise(np.stack(drawn))), dim=-1)
        text = encode_text(model, *vocabulary.encode([f"a photo of a {n}." for n in names]))
        text = F.normalize(text, dim=-1)
        out[world] = float(((image @ text.T).argmax(1) == labels).float().mean() * 100)
        cosines = text @ text.T
        out[f"{world} text cosine"] = float(
            (cosines.sum() - len(names)) / (len(names) ** 2 - len(names))
        )
    model.train()
    return out


def save(model: CLIP, vocabulary: Vocabulary, out: Path) -> None:
    """Save the weights in out/tiny_clip.npz, with the original numbering of the tokens."""
    state = model.state_dict()
    embedding = torch.from_numpy(base_embedding(ARCHITECTURE["transformer_width"]))
    embedding[vocabulary.ids] = state["token_embedding.weight"]
    state["token_embedding.weight"] = embedding
    pack_tiny(state, np.asarray(vocabulary.ids, np.int32), out / "tiny_clip.npz")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and log")
    parser.add_argument("--pictures", type=int, default=240_000, help="number of pictures")
    parser.add_argument("--steps", type=int, default=4_000, help="number of training steps")
    parser.add_argument("--batch", type=int, default=256, help="pictures in a batch")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument(
        "--install", action="store_true", help="also save the weights in npt/encoders"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "log.jsonl"
    log.write_text("")

    start = time.time()
    with multiprocessing.Pool() as pool:
        examples = pool.map(draw_example, range(args.pictures), chunksize=512)
    pictures = np.stack([e[0] for e in examples])
    print(f"{len(examples):,} pictures in {time.time() - start:.0f} s", flush=True)

    torch.manual_seed(SEED)
    vocabulary = Vocabulary()
    print(f"{len(vocabulary.ids)} tokens", flush=True)
    model = CLIP(**{**ARCHITECTURE, "vocab_size": len(vocabulary.ids)})
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for n, p in model.named_parameters() if p.ndim <= 1 and n != "logit_scale"]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    rng = np.random.default_rng(SEED + 2)
    order = np.empty(0, np.int64)
    start = time.time()
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / 200)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * warm * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        scale = min(100.0, 14.3 * 7 ** (step / (0.4 * args.steps)))
        if len(order) < args.batch:
            order = rng.permutation(len(examples))
        batch, order = order[: args.batch], order[args.batch :]
        texts = [caption(rng, *examples[i][1:]) for i in batch]
        image = model.visual(normalise(pictures[batch]))
        loss = contrastive_loss(image, encode_text(model, *vocabulary.encode(texts)), scale, texts)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            model.logit_scale.data.fill_(math.log(scale))
            row = {
                "step": step + 1,
                "loss": loss.item(),
                "scale": scale,
                "seconds": time.time() - start,
            }
            row.update(held_out_accuracy(model, vocabulary))
            with log.open("a") as file:
                print(json.dumps({k: round(v, 3) for k, v in row.items()}), file=file)
            print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            save(model, vocabulary, args.out)
    if args.install:
        target = Path(__file__).resolve().parents[1] / "npt" / "backbones"
        save(model, vocabulary, target)


if __name__ == "__main__":
    main()
