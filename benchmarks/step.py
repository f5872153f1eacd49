"""Time and memory of a training or test step with the plain and with the fast encoders.

    python benchmarks/step.py --method cocoop --classes 100 --batch 1
    python benchmarks/step.py --method maple --classes 100 --batch 20 --phase test --json
    python benchmarks/step.py --method maple --precision amp    # both kinds in bfloat16 autocast
    python benchmarks/step.py --all benchmarks/results/speed.jsonl      # all missing cases
    python benchmarks/step.py --table benchmarks/results/speed.jsonl    # the results as a table

The model has ViT-B/16's shapes and random weights; images have 224 pixels, class names one to four
words. Both kinds of encoders run alternately in one process with the same weights; the result is
the ratio of their median times. The peak memory is measured above the memory of the model, and in
a process that runs only one kind. It does not include the laid-out weights of the fast kind, which
are reported separately.

The floor is a lower bound of the time of any exact method: the time of the multiply-adds that none
can avoid, at the speed of large matrix products on this machine, which is measured between the
steps. It counts no normalisation, activation, softmax or padding, no repeated computation, and only
gradients that the prompts need.
"""

import argparse
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

import _checkout  # noqa: F401  first: npt of this checkout
import torch
from clip.model import CLIP
from tabulate import tabulate

import npt  # noqa: F401  makes `dassl` importable
from npt.encoders import ClassPrompts, build_encoders
from npt.encoders.linear import affine, laid_out, laid_out_bytes
from npt.encoders.memory import free_bytes
from npt.encoders.packing import place_context, tree
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
CASES = [
    *((m, phase, k, b) for m in METHODS for phase in PHASES for k in SIZES for b in (1, 4)),
    ("maple", "test", 100, 20),
]
SLOW = 20  # seconds; slower plain steps are timed once, not three times
LONGEST = 45  # seconds; the peak memory of slower plain steps is not measured
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


def stepper(
    built: tuple[CLIP, PromptLearner, ClassPrompts], batch: int, phase: str, precision: str
) -> Callable[[str], Callable[[], float]]:
    """A function of "plain" or "fast" that returns a function for one step.

    A training step returns its loss, a test step the sum of its logits.
    """
    clip_model, learner, prompts = built
    classes = len(prompts.tokens)
    image = torch.randn(batch, 3, IMAGE, IMAGE)
    label = torch.randint(classes, (batch,))

    def of(kind: str) -> Callable[[], float]:
        encoders = build_encoders(clip_model, prompts, plain=kind == "plain")
        model = PromptedCLIP(learner, *encoders, clip_model.logit_scale).train(phase == "train")
        optimiser = torch.optim.SGD(learner.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)

        def logits() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp"):
                return model(image)

        def train() -> float:
            loss = torch.nn.functional.cross_entropy(logits(), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.item()

        def test() -> float:
            with torch.no_grad():
                return float(logits().sum())

        return train if phase == "train" else test

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
    for product, weight in ((torch.mm, x), (affine, laid_out(x, x.dtype))):
        times = [timed(lambda: product(x, weight)) for _ in range(6)]  # noqa: B023  called at once
        rates.append((2 * 2048**3 / min(times), 2 * 2048**3 / statistics.median(times)))
    return max(rates)


# ---- measurements


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(
    method: str, phase: str, classes: int, batch: int, precision: str, seconds: float, limit: float
) -> dict:
    """Median times of both kinds, which run alternately for about `seconds`, at least three rounds.

    The plain kind is not run if it does not fit in memory, or if it would take more than `limit`
    seconds.
    """
    built = build(method, classes)
    of = stepper(built, batch, phase, precision)
    before = status("VmRSS")
    fast = of("fast")
    first = timed(fast)  # lays out the weights, and fills the caches of test steps
    laid_out_gib = laid_out_bytes(built[0].parameters()) / GIB
    peak = peak_memory(fast) - before / GIB - laid_out_gib
    needed = plain_bytes(method, phase, classes, batch)
    fits = needed < 0.85 * free_bytes(torch.device("cpu"))
    plain = of("plain") if fits and plain_seconds(method, phase, classes, batch) < limit else None
    warm = timed(fast)
    once = timed(plain) if plain else 4.0  # a first step is slower, as it allocates its memory
    times: dict[str, list[float]] = {"plain": [], "fast": []}
    rates = [product_rates(precision)]
    rounds = max(1 if max(once, 4 * warm) > SLOW else 3, int(seconds / 2 / (once + warm)))
    for _ in range(rounds):
        if plain:
            times["plain"].append(timed(plain))
        for _ in range(max(1, min(10, int(once / 2 / warm)))):
            times["fast"].append(timed(fast))
        rates.append(product_rates(precision))
    rate, usual_rate = map(statistics.median, zip(*rates, strict=True))
    fast_time = statistics.median(times["fast"])
    floor = flops(method, phase, built[2], batch) / rate
    result = {
        "method": method,
        "phase": phase,
        "classes": classes,
        "batch": batch,
        "precision": precision,
        "fast_s": fast_time,
        "first_fast_s": first,
        "plain_s": statistics.median(times["plain"]) if plain else None,
        "plain_needs_gib": needed / GIB,
        "seconds": {k: [len(v), min(v), max(v)] for k, v in times.items() if v},
        "gflops": rate / 1e9,
        "usual_gflops": usual_rate / 1e9,
        "floor_s": floor,
        "share_of_floor": floor / fast_time,
        "fast_gib": peak,
        "laid_out_gib": laid_out_gib,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
    }
    if plain:
        result["ratio"] = result["plain_s"] / fast_time
    return result


def plain_bytes(method: str, phase: str, classes: int, batch: int) -> float:
    """An estimate of the memory of a plain step: 18 x width for each stored token and layer."""
    images = batch if method == "cocoop" else 1
    kept = LAYERS * images if phase == "train" else 1
    return 18 * WIDTH * 4 * TEXT * classes * kept


def plain_seconds(method: str, phase: str, classes: int, batch: int) -> float:
    """An estimate of the time of a plain step, at a measured speed of 75 GFLOP/s."""
    images, passes = batch if method == "cocoop" else 1, 2 if phase == "train" else 1
    return 2 * 12 * LAYERS * WIDTH**2 * TEXT * classes * images * passes / 75e9


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


def peak_memory(step: Callable[[], float]) -> float:
    """The peak memory of the process during a step, in GiB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step()
    return status("VmHWM") / GIB


def plain_peak(case: tuple[str, str, int, int], precision: str) -> float:
    """The peak memory of a plain step above the memory of the model, in GiB."""
    method, phase, classes, batch = case
    step = stepper(build(method, classes), batch, phase, precision)("plain")
    before = status("VmRSS")
    return peak_memory(step) - before / GIB


def one_case(case: tuple[str, str, int, int], precision: str, seconds: float, limit: float) -> dict:
    """Times and peak memory of both kinds; each peak is measured in a separate process."""
    run = subprocess.run(
        command(case, precision, "--times", "--seconds", str(seconds), "--limit", str(limit)),
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(run.stdout)
    if result["plain_s"] and result["plain_s"] < LONGEST:
        run = subprocess.run(command(case, precision, "--plain-peak"), stdout=subprocess.PIPE)
        if run.returncode == 0:  # otherwise, usually, the system killed it for lack of memory
            result["plain_gib"] = float(run.stdout)
    return result


def command(case: tuple[str, str, int, int], precision: str, *more: str) -> list[str]:
    """The command that runs this script for one case."""
    method, phase, classes, batch = case
    return [
        *(sys.executable, __file__, "--method", method, "--phase", phase, "--precision", precision),
        *("--classes", str(classes), "--batch", str(batch), *more),
    ]


def all_cases(path: Path, precision: str, seconds: float, limit: float) -> None:
    """Run every case that is not in the file yet, each in a new process, and append its line."""
    path.touch()
    done = {key(json.loads(line)) for line in path.read_text().splitlines()}
    for case in sorted(CASES, key=lambda case: (case[1] == "test", case[2] * case[3])):
        if case not in done:
            options = ("--seconds", str(seconds), "--limit", str(limit))
            run = command(case, precision, "--json", *options)
            line = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
            with path.open("a") as file:
                file.write(line)
            print(line, end="", flush=True)


def key(result: dict) -> tuple[str, str, int, int]:
    return result["method"], result["phase"], result["classes"], result["batch"]


def table(results: list[dict]) -> str:
    order = {case: i for i, case in enumerate(CASES)}
    rows = []
    for r in sorted(results, key=lambda r: order.get(key(r), len(order))):
        plain = f"not timed ({r['plain_needs_gib']:.0f} GiB)"
        if r["plain_s"] is not None:
            plain = f"{r['plain_s']:.2f}"
        memory = f"{r['fast_gib']:.2f}"
        if "plain_gib" in r:
            memory = f"{r['plain_gib']:.2f} -> {memory}"
        ratio = f"{r['ratio']:.1f}x" if r["plain_s"] is not None else ""
        laid_out, share = f"{r['laid_out_gib']:.2f}", f"{100 * r['share_of_floor']:.0f}%"
        rows.append([*key(r), plain, f"{r['fast_s']:.3f}", ratio, memory, laid_out, share])
    head = ["method", "phase", "K", "B", "plain s", "fast s", "ratio"]
    head += ["peak GiB", "laid out", "floor / time"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=METHODS, default="cocoop")
    parser.add_argument("--classes", type=int, default=100, help="number of classes")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch")
    parser.add_argument("--phase", choices=PHASES, default="train")
    parser.add_argument("--precision", choices=("fp32", "amp"), default="fp32")
    parser.add_argument("--seconds", type=float, default=30, help="time to spend on a case")
    parser.add_argument("--limit", type=float, default=600, help="longest plain step, in seconds")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--times", action="store_true", help="print only the times, as JSON")
    parser.add_argument("--plain-peak", action="store_true", help="print only that peak, in GiB")
    parser.add_argument("--all", type=Path, metavar="FILE", help="append all missing cases to FILE")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print FILE as a table")
    args = parser.parse_args()
    case = (args.method, args.phase, args.classes, args.batch)
    if args.all:
        all_cases(args.all, args.precision, args.seconds, args.limit)
    elif args.table:
        print(table([json.loads(line) for line in args.table.read_text().splitlines()]))
    elif args.times:
        print(json.dumps(measure(*case, args.precision, args.seconds, args.limit)))
    elif args.plain_peak:
        print(plain_peak(case, args.precision))
    else:
        result = one_case(case, args.precision, args.seconds, args.limit)
        print(json.dumps(result) if args.json else table([result]))


if __name__ == "__main__":
    main()
