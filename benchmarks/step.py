"""Time and memory of a training or test step with plain, cut and fast encoders.

    python benchmarks/step.py --method cocoop --classes 100 --batch 1
    python benchmarks/step.py --method maple --classes 100 --batch 20 --phase test --json
    python benchmarks/step.py --method maple --precision amp    # all kinds in bfloat16 autocast
    python benchmarks/step.py --readme FILE    # the cases of README's table that FILE lacks
    python benchmarks/step.py --all FILE       # all cases that FILE lacks
    python benchmarks/step.py --table benchmarks/results/speed.jsonl    # the results as a table

The model has ViT-B/16's shapes and random weights; images have 224 pixels, class names one to four
words. The kinds of encoders are

    plain   all 77 tokens of every text, as in the original code (npt/encoders/plain.py)
    cut     the same, with every text cut at the end of the longest one
    fast    those of npt/encoders

In a test step, plain and cut encode the texts for every batch, as the original code does, and fast
keeps texts that do not depend on the image. `kept` is cut with texts that are kept likewise.

All kinds run alternately in one process with the same weights, and their logits must agree; the
result is the ratio of their median times. The peak memory of each kind is that of its first step,
above the memory of the model, in a process that runs only this kind: copies of weights count.

The floor is a lower bound of the time of any exact method: the time of the multiply-adds that none
can avoid, at the speed of large matrix products on this machine, which is measured between the
steps. It counts no normalisation, activation, softmax or padding, no repeated computation, and only
gradients that the prompts need.
"""

import argparse
import copy
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  first: npt of this checkout
import torch
from clip.model import CLIP
from tabulate import tabulate
from torch import nn

import npt  # noqa: F401  makes `dassl` importable
from npt.encoders import ClassPrompts, build_encoders
from npt.encoders.linear import WAYS, affine, choose, laid_out, laid_out_bytes, onednn_works
from npt.encoders.memory import free_bytes
from npt.encoders.packing import place_context, tree
from npt.encoders.plain import PlainImageEncoder, PlainTextEncoder
from npt.trainers.cocoop import ConditionalContext
from npt.trainers.coop import Context
from npt.trainers.maple import MultiModalContext
from npt.trainers.prompts import (
    PromptedCLIP,
    PromptLearner,
    class_prompts,
    random_context,
    written_context,
)

GIB = 2**30
LAYERS, WIDTH, VISUAL_WIDTH, EMBED, PATCH, IMAGE, TEXT = 12, 512, 768, 512, 16, 224, 77
DEPTH = 9  # of MaPLe's prompts
METHODS, PHASES = ("coop", "cocoop", "maple"), ("train", "test")
SIZES = (10, 50, 100, 500, 1000)  # numbers of classes
Case = tuple[str, str, int, int]  # method, phase, classes, images in a batch
CASES: list[Case] = [
    *((m, phase, k, b) for m in METHODS for phase in PHASES for k in SIZES for b in (1, 4)),
    ("maple", "test", 100, 20),
    ("coop", "train", 50, 32),
]
README: list[Case] = [
    ("cocoop", "train", 100, 1),
    ("cocoop", "train", 50, 4),
    ("maple", "train", 50, 4),
    ("maple", "train", 100, 4),
    ("coop", "train", 50, 32),
    ("cocoop", "test", 100, 4),
    ("maple", "test", 100, 20),
]
AGREE = 1e-4  # largest difference of logits of two kinds, in float32
SLOW = 20  # seconds; slower steps are timed once, not three times
LONGEST = 90  # seconds; the peak memory of slower plain steps is not measured
ADJECTIVES = (
    "red great northern striped small electric wild grey common spotted golden wooden american "
    "tibetan old yellow folding garden royal black"
)
NOUNS = (
    "owl car dog flower bridge lake piano beetle shark bottle church truck kitchen apple snake "
    "fern mushroom tower butterfly train guitar desert camera violin chair temple fish harbour "
    "jacket bus goose lamp stove orchid tractor balloon castle cup forest hammer"
)


def class_names(count: int) -> list[str]:
    """Random names of one to four words, like the names of ImageNet's classes."""
    rng = random.Random(0)
    names: dict[str, None] = {}
    while len(names) < count:
        words = rng.choices((1, 2, 3, 4), (40, 42, 14, 4))[0]  # frequencies as in ImageNet
        nouns = rng.sample(NOUNS.split(), min(words, 1 + (words > 3)))
        names[" ".join(rng.sample(ADJECTIVES.split(), words - len(nouns)) + nouns)] = None
    return list(names)


def build(method: str, classes: int) -> tuple[CLIP, PromptLearner, ClassPrompts]:
    """A CLIP of ViT-B/16's shape, the prompt learner of the method, and the class prompts."""
    torch.manual_seed(0)
    model = CLIP(EMBED, IMAGE, LAYERS, VISUAL_WIDTH, PATCH, TEXT, 49408, WIDTH, 8, LAYERS)
    model.eval().requires_grad_(False)
    learner: PromptLearner
    if method == "coop":
        ctx, prefix = random_context(16, WIDTH)
        learner = Context(ctx)
    elif method == "cocoop":
        ctx, prefix = written_context(model, "a photo of a", 4, "TRAINER.COCOOP")
        learner = ConditionalContext(ctx, EMBED)
    else:
        ctx, prefix = written_context(model, "a photo of a", 2, "TRAINER.MAPLE")
        learner = MultiModalContext(ctx, VISUAL_WIDTH, DEPTH, LAYERS)
    return model, learner, place_context(class_prompts(prefix, class_names(classes)), len(ctx))


def longest(prompts: ClassPrompts) -> int:
    """Tokens of the longest text, the end-of-text token included."""
    return int(prompts.tokens.argmax(dim=-1).max()) + 1


def cut_encoders(clip_model: CLIP, prompts: ClassPrompts) -> tuple[nn.Module, nn.Module]:
    """The plain encoders on texts that are cut at the end of the longest one."""
    n = longest(prompts)
    text = PlainTextEncoder(clip_model, prompts._replace(tokens=prompts.tokens[:, :n]))
    text.positional_embedding = nn.Parameter(clip_model.positional_embedding[:n], False)
    shared = {id(p): p for p in clip_model.parameters()}  # copy the modules, not the weights
    text.transformer = copy.deepcopy(clip_model.transformer, shared)
    for layer in text.transformer.resblocks:
        layer.attn_mask = layer.attn_mask[:n, :n]
    return text, PlainImageEncoder(clip_model.visual)


class Kept(nn.Module):
    """A text encoder whose features are computed once."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.features: torch.Tensor | None = None

    def forward(self, *prompts: object) -> torch.Tensor:
        if self.features is None:
            self.features = self.encoder(*prompts)
        return self.features


def kinds(method: str, phase: str) -> tuple[str, ...]:
    kept = phase == "test" and method != "cocoop"
    return ("plain", "cut", "kept", "fast") if kept else ("plain", "cut", "fast")


def encoders(kind: str, clip_model: CLIP, prompts: ClassPrompts) -> tuple[nn.Module, nn.Module]:
    if kind in ("plain", "fast"):
        return build_encoders(clip_model, prompts, plain=kind == "plain")
    text, image = cut_encoders(clip_model, prompts)
    return (Kept(text) if kind == "kept" else text), image


Step = Callable[[], torch.Tensor]


def stepper(
    built: tuple[CLIP, PromptLearner, ClassPrompts], batch: int, phase: str, precision: str
) -> Callable[[str], Step]:
    """A function of a kind that returns a function for one step, which returns its logits."""
    clip_model, learner, prompts = built
    classes = len(prompts.tokens)
    image = torch.randn(batch, 3, IMAGE, IMAGE)
    label = torch.randint(classes, (batch,))

    def of(kind: str) -> Step:
        both = encoders(kind, clip_model, prompts)
        model = PromptedCLIP(learner, *both, clip_model.logit_scale).train(phase == "train")
        optimiser = torch.optim.SGD(learner.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)

        def logits() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp"):
                return model(image)

        def train() -> torch.Tensor:
            result = logits()
            loss = torch.nn.functional.cross_entropy(result, label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return result.detach()

        return train if phase == "train" else torch.no_grad()(logits)

    return of


# ---- the floor


def flops(method: str, phase: str, prompts: ClassPrompts, batch: int) -> float:
    """The floating-point operations that a step cannot avoid, two for each multiply-add.

    In a test step, text features that do not depend on the image are already computed.
    """
    tokens, slots, _ = prompts
    ends = (tokens.argmax(dim=-1) + 1).tolist()
    n = slots.shape[1]
    vectors = torch.full_like(tokens, -1).scatter_(1, slots, torch.arange(n).expand(len(tokens), n))
    nodes, _ = tree(
        [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)],
        [row[:end] for row, end in zip(vectors.tolist(), ends, strict=True)],
    )
    # Positions before the context vectors do not change between steps.
    moving = [position + 1 for _, _, position in nodes if position >= 1]
    texts = Work(len(moving), n, sum(moving), len(tokens), sum(ends), WIDTH)
    depth = DEPTH if method == "maple" else 1
    patches = (IMAGE // PATCH) ** 2 + 1
    visual = n if method == "maple" else 0
    row = patches + visual
    image = Work(row, visual, row * row, 1, row, VISUAL_WIDTH)

    train = phase == "train"
    total = batch * (image.forward(depth, row) + (patches - 1) * 3 * PATCH**2 * VISUAL_WIDTH)
    if method == "cocoop":
        total += batch * (texts.forward(depth, n) + train * texts.backward(depth))
    elif train:
        total += texts.forward(depth, n) + texts.backward(depth)
    if train and method == "maple":
        total += batch * image.backward(depth)
    return 2 * total


class Work:
    """The multiply-adds of all layers for one sequence.

    rows: length of the sequence; prompts: the number of learned rows
    pairs: the number of (row, row it attends to)
    read: the number of rows whose output is used; read_pairs: their part of `pairs`
    """

    def __init__(
        self, rows: int, prompts: int, pairs: int, read: int, read_pairs: int, width: int
    ) -> None:
        self.rows, self.prompts, self.pairs = rows, prompts, pairs
        self.read, self.read_pairs, self.width = read, read_pairs, width

    def forward(self, depth: int, first: int) -> int:
        """first: rows whose queries, keys and values in the first layer change in every step."""
        return self._layers(depth, first, 2)

    def backward(self, depth: int) -> int:
        """Only gradients of inputs; in the first layer only those of the prompts."""
        return self._layers(depth, self.prompts, 4)

    def _layers(self, depth: int, first: int, products: int) -> int:
        square, d = self.width**2, self.width
        replaced = self.prompts * (depth - 1)  # rows that are replaced by deep prompts
        inner = LAYERS - 1
        total = 3 * square * (first + (inner - 1) * self.rows) + 2 * square * self.rows
        total += 9 * square * (inner * self.rows - replaced) + 10 * square * self.read
        total += products * d * (inner * self.pairs + self.read_pairs)
        return total + self.read * d * EMBED


def product_rates(precision: str = "fp32") -> tuple[float, float]:
    """Operations per second of large matrix products: the best and the median of a few products.

    Of two ways to compute them, the faster one.
    """
    x = torch.randn(2048, 2048, dtype=torch.bfloat16 if precision == "amp" else torch.float32)
    rates = []
    ways = ("torch", "onednn") if onednn_works(x.dtype) else ("torch",)
    for way in ways:
        choose([x], way)
        weight = laid_out(x, x.dtype)
        times = [timed(lambda: affine(x, weight)) for _ in range(6)]  # noqa: B023  called at once
        rates.append((2 * 2048**3 / min(times), 2 * 2048**3 / statistics.median(times)))
    return max(rates)


# ---- measurements


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(case: Case, precision: str, linear: str, seconds: float, limit: float) -> dict:
    """Median times of all kinds, which run alternately for about `seconds`.

    Plain or cut are not run if they do not fit in memory, or would take more than `limit` seconds.
    Stops with an error if the logits of two kinds differ in float32.
    """
    method, phase, classes, batch = case
    built = build(method, classes)
    choose(built[0].parameters(), linear)
    of = stepper(built, batch, phase, precision)
    cut = longest(built[2])
    free = 0.85 * free_bytes(torch.device("cpu"))
    tokens = {"plain": TEXT, "cut": cut, "kept": cut, "fast": 0}
    steps = {
        kind: of(kind)
        for kind in kinds(method, phase)
        if bytes_needed(case, tokens[kind]) < free and seconds_needed(case, tokens[kind]) < limit
    }
    first, logits = {}, {}
    for kind, step in steps.items():  # fills caches and memory, too
        torch.manual_seed(1)
        start = time.perf_counter()
        logits[kind] = step().float()
        first[kind] = time.perf_counter() - start
    difference = max(float((logits[k] - logits["fast"]).abs().max()) for k in logits)
    if precision == "fp32" and difference > AGREE:
        sys.exit(f"the logits of {' and '.join(logits)} differ by {difference:.1e}")
    once = {kind: timed(step) for kind, step in steps.items()}
    times = {kind: [first_time] for kind, first_time in once.items()}
    rates = [product_rates(precision)]
    slowest = max(once.values())
    rounds = max(0 if slowest > SLOW else 2, int(seconds / 2 / sum(once.values())))
    for _ in range(rounds):
        for kind, step in steps.items():
            repeats = max(1, min(10, int(slowest / 2 / once[kind])))
            times[kind] += [timed(step) for _ in range(repeats)]
        rates.append(product_rates(precision))
    rate, usual_rate = map(statistics.median, zip(*rates, strict=True))
    middle = {kind: statistics.median(times[kind]) for kind in steps}
    floor = flops(method, phase, built[2], batch) / rate
    return {
        "method": method,
        "phase": phase,
        "classes": classes,
        "batch": batch,
        "precision": precision,
        "linear": linear,
        **{f"{kind}_s": middle.get(kind) for kind in kinds(method, phase)},
        "first_fast_s": first["fast"],
        "plain_needs_gib": bytes_needed(case, TEXT) / GIB,
        "cut_tokens": cut,
        "difference": difference,
        "seconds": {kind: [len(v), min(v), max(v)] for kind, v in times.items()},
        "gflops": rate / 1e9,
        "usual_gflops": usual_rate / 1e9,
        "floor_s": floor,
        "share_of_floor": floor / middle["fast"],
        "copies_gib": laid_out_bytes(built[0].parameters()) / GIB,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
    }


def bytes_needed(case: Case, tokens: int) -> float:
    """An estimate of the memory of a plain step: 18 x width for each stored token and layer."""
    method, phase, classes, batch = case
    images = batch if method == "cocoop" else 1
    kept = LAYERS * images if phase == "train" else 1
    return 18 * WIDTH * 4 * tokens * classes * kept


def seconds_needed(case: Case, tokens: int) -> float:
    """An estimate of the time of a plain step, at a measured speed of 75 GFLOP/s."""
    method, phase, classes, batch = case
    images, passes = batch if method == "cocoop" else 1, 2 if phase == "train" else 1
    return 2 * 12 * LAYERS * WIDTH**2 * tokens * classes * images * passes / 75e9


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def status(key: str) -> int:
    """A value of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def peak_gib(case: Case, precision: str, linear: str, kind: str) -> float:
    """The peak memory of a first step of this kind above the memory of the model, in GiB."""
    method, phase, classes, batch = case
    built = build(method, classes)
    choose(built[0].parameters(), linear)
    of = stepper(built, batch, phase, precision)
    before = status("VmRSS")
    step = of(kind)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step()
    return (status("VmHWM") - before) / GIB


def one_case(case: Case, precision: str, linear: str, seconds: float, limit: float) -> dict:
    """Times and peak memory of all kinds; each peak is measured in a separate process."""

    def run(*more: str) -> Any:
        method, phase, classes, batch = case
        options = ("--classes", str(classes), "--batch", str(batch), "--precision", precision)
        options = ("--method", method, "--phase", phase, "--linear", linear, *options, *more)
        done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE)
        return json.loads(done.stdout) if done.returncode == 0 else None

    result = run("--times", "--seconds", str(seconds), "--limit", str(limit))
    if result is None:
        sys.exit("the times were not measured")
    for kind in result["seconds"]:
        if kind != "kept" and result[f"{kind}_s"] < LONGEST:
            result[f"{kind}_gib"] = run("--peak", kind)  # None: killed, usually for lack of memory
    return result


def missing_cases(
    path: Path, cases: list[Case], precision: str, linear: str, seconds: float, limit: float
) -> None:
    """Run every case that is not in the file yet and append its line."""
    path.touch()
    done = {key(json.loads(line)) for line in path.read_text().splitlines()}
    for case in sorted(cases, key=lambda case: (case[1] == "test", case[2] * case[3])):
        if case not in done:
            line = json.dumps(one_case(case, precision, linear, seconds, limit)) + "\n"
            with path.open("a") as file:
                file.write(line)
            print(line, end="", flush=True)


def key(result: dict) -> Case:
    return result["method"], result["phase"], result["classes"], result["batch"]


def table(results: list[dict]) -> str:
    """The results as Markdown, without the columns that none of them has."""
    order = {case: i for i, case in enumerate(CASES)}
    rows = [row(r) for r in sorted(results, key=lambda r: order.get(key(r), len(order)))]
    heads = [head for head in rows[0] if any(row[head] for row in rows)] if rows else []
    cells = [[row[head] for head in heads] for row in rows]
    return tabulate(cells, heads, tablefmt="github", disable_numparse=True)


def row(r: dict) -> dict[str, str]:
    """The columns of one result; those without a value are empty."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    def ratio(kind: str) -> float | None:
        return r[f"{kind}_s"] / r["fast_s"] if r.get(f"{kind}_s") else None

    unknown = f"not timed ({r['plain_needs_gib']:.0f} GiB)"
    copies = r.get("laid_out_gib", 0)  # in old files, `fast_gib` is without them
    return {
        **dict(zip(("method", "phase", "K", "B"), map(str, key(r)), strict=True)),
        "plain s": shown(r["plain_s"], "{:.2f}") or unknown,
        "cut s": shown(r.get("cut_s"), "{:.2f}"),
        "kept s": shown(r.get("kept_s"), "{:.2f}"),
        "fast s": f"{r['fast_s']:.3f}",
        "to plain": shown(ratio("plain"), "{:.1f}x"),
        "to cut": shown(ratio("cut"), "{:.1f}x"),
        "to kept": shown(ratio("kept"), "{:.2f}x"),
        "plain GiB": shown(r.get("plain_gib"), "{:.2f}"),
        "cut GiB": shown(r.get("cut_gib"), "{:.2f}"),
        "fast GiB": f"{r['fast_gib'] + copies:.2f}",
        "floor / time": f"{100 * r['share_of_floor']:.0f}%",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=METHODS, default="cocoop")
    parser.add_argument("--classes", type=int, default=100, help="number of classes")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch")
    parser.add_argument("--phase", choices=PHASES, default="train")
    parser.add_argument("--precision", choices=("fp32", "amp"), default="fp32")
    parser.add_argument("--linear", choices=WAYS, default="auto", help="as MODEL.LINEAR")
    parser.add_argument("--seconds", type=float, default=30, help="time to spend on a case")
    parser.add_argument("--limit", type=float, default=600, help="longest plain step, in seconds")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--times", action="store_true", help="print only the times, as JSON")
    parser.add_argument("--peak", metavar="KIND", help="print only the peak of a kind, in GiB")
    parser.add_argument("--all", type=Path, metavar="FILE", help="append all missing cases to FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="only those of README's table")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print FILE as a table")
    args = parser.parse_args()
    case = (args.method, args.phase, args.classes, args.batch)
    how = (args.precision, args.linear)
    if args.all or args.readme:
        cases = CASES if args.all else README
        missing_cases(args.all or args.readme, cases, *how, args.seconds, args.limit)
    elif args.table:
        print(table([json.loads(line) for line in args.table.read_text().splitlines()]))
    elif args.times:
        print(json.dumps(measure(case, *how, args.seconds, args.limit)))
    elif args.peak:
        print(peak_gib(case, *how, args.peak))
    else:
        result = one_case(case, *how, args.seconds, args.limit)
        print(json.dumps(result) if args.json else table([result]))


if __name__ == "__main__":
    main()
