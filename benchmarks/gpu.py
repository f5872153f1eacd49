"""Everything that is to be known on a GPU: exactness, fp16 training, times, memory, launches.

    python benchmarks/gpu.py                        # the first GPU; gpu.json and gpu.md, here
    python benchmarks/gpu.py --device cpu --small   # in miniature, without a GPU

Results are written after every row, and the same command goes on where it was stopped. A case that
fails is a row with its reason. The parts:

    exactness  largest differences from float64 on the CPU, of features of length 1 and of logits,
               with the plain encoders' own beside them
    training   accuracy and last loss of methods on the mini suite, by precision; `scaled` is
               autocast to fp16 with a GradScaler, which Ampere and later replace by bfloat16
    times      milliseconds of a step, all kinds of encoders in turns in one process
    memory     what a training step keeps for backward, and the peak of the GPU, against the formula
               of npt/encoders/memory.py, which is about the fast text encoder
    launches   operations of a training step (benchmarks/launches.py)
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import _checkout  # noqa: F401  first: npt of this checkout
import launches
import step
import torch
from tabulate import tabulate
from torch import Tensor

from npt.backbones.openai import openai_clip
from npt.cli import main as train
from npt.errors import NPTError, report
from npt.files import atomic_write, read_record, write_record
from npt.flags import Parser
from npt.trainers import METHODS
from npt.trainers.steps import PromptSteps

MIB = 2**20
ROUNDS = 5  # in which the kinds take turns
TRAINED = ("CoOp", "CoCoOp", "MaPLe")
Row = dict[str, Any]


# ---- the parts: each yields cases, and a function makes the figures of one


def exactness(device: torch.device, case: Row) -> Row:
    """Of both kinds, in one precision."""
    method, precision, classes = case["method"], case["precision"], case["classes"]
    exact = outputs(torch.device("cpu"), method, classes, "plain", "float64")
    found: Row = {}
    for kind in ("plain", "fast"):
        mine = outputs(device, method, classes, kind, precision)
        for name, value in exact.items():
            found[f"{kind} {name}"] = float((mine[name] - value).abs().max())
    return found


@torch.no_grad()
def outputs(
    device: torch.device, method: str, classes: int, kind: str, precision: str
) -> dict[str, Tensor]:
    """Features of length 1 and logits of four images, on the CPU in float64."""
    model = launches.model_on(device, method, classes, kind, precision).eval()
    image, _ = launches.batch_on(device, classes, 4)
    # CLIP's own LayerNorm computes in float32.
    norm = patch.object(openai_clip().model.LayerNorm, "forward", torch.nn.LayerNorm.forward)
    exact = precision == "float64"
    with launches.computed_in(precision, device), norm if exact else nullcontext():
        images = model.encode_images(image)
        texts = model.encode_texts(images)
        found = {"image": images, "text": texts, "logits": model.classify(images, texts)}
    return {name: x.to("cpu", torch.float64) for name, x in found.items()}


def training(device: torch.device, case: Row) -> Row:
    """A training of the mini suite."""
    method, precision = case["method"], case["precision"]
    wanted = {"scaled": "amp"}.get(precision, precision)
    half = patch.object(PromptSteps, "amp_dtype", torch.float16)
    with tempfile.TemporaryDirectory() as folder, half if precision == "scaled" else nullcontext():
        with redirect_stdout(StringIO()):
            failed = train(
                [
                    *("--trainer", method, "--config-file", f"configs/trainers/{method}/tiny.yaml"),
                    *("--dataset-config-file", "configs/datasets/mini_flowers.yaml"),
                    *("--output-dir", folder, "--seed", "1", "DATASET.NUM_SHOTS", "4"),
                    *("DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", str(case["epochs"])),
                    *(f"TRAINER.{METHODS[method].node}.PREC", wanted),
                    *("USE_CUDA", str(device.type == "cuda")),
                ]
            )
        if failed:
            raise NPTError(f"the training ended with exit code {failed}")
        record = read_record(Path(folder, "result.json"))
    return {
        "accuracy": record["results"]["test"]["accuracy"],
        "loss": record["course"][-1]["loss"],
    }


def times(device: torch.device, case: Row) -> Row:
    """Median milliseconds of a step of each kind, and how much longer than fast they take."""
    shape = (case["method"], case["phase"], case["classes"], case["batch"])
    precision, kinds = case["precision"], step.kinds(*shape[:2])
    runs = {kind: launches.step_on(device, shape, kind, precision) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for kind, run in runs.items():
        for _ in range(3):
            run()
        seconds[kind].append(elapsed(device, run, 1))
    for _ in range(ROUNDS):
        for kind, run in runs.items():
            steps = max(1, min(50, int(0.2 / seconds[kind][0])))
            seconds[kind].append(elapsed(device, run, steps) / steps)
    found = {f"{kind} ms": 1000 * statistics.median(x[1:]) for kind, x in seconds.items()}
    others = [kind for kind in runs if kind != "fast"]
    return {**found, **{f"to {x}": found[f"{x} ms"] / found["fast ms"] for x in others}}


def elapsed(device: torch.device, run: Callable[[], None], steps: int) -> float:
    """Seconds of some steps, until the device has done them."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    wait()
    return time.perf_counter() - start


def memory(device: torch.device, case: Row) -> Row:
    """MiB that the text features of a training step keep, by the formula, and the step's peak."""
    method, classes, batch = case["method"], case["classes"], case["batch"]
    model = launches.model_on(device, method, classes, "fast", "fp32").train()
    image, label = launches.batch_on(device, classes, batch)
    model(image, label).backward()  # lays weights out
    with torch.no_grad():
        prompts = model.prompt_learner(model.encode_images(image))
    leaves = [prompts[0].requires_grad_(), *(x.detach().requires_grad_() for x in prompts[1])]
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        texts = model.text_encoder(leaves[0], leaves[1:])
    estimate = model.text_encoder.kept_bytes * (len(texts) if texts.dim() == 3 else 1)
    found = {"kept": sum(kept.values()) / MIB, "formula": estimate / MIB}
    del texts
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(image, label).backward()
        found["peak"] = (torch.cuda.max_memory_allocated(device) - before) / MIB
    return found


def launched(device: torch.device, case: Row) -> Row:
    shape = (case["method"], "train", case["classes"], case["batch"])
    return {kind: launches.count(shape, kind, "fp32") for kind in step.kinds(*shape[:2])}


PARTS = {
    "exactness": exactness,
    "training": training,
    "times": times,
    "memory": memory,
    "launches": launched,
}


def cases(part: str, gpu: bool, small: bool) -> Iterator[Row]:
    """The cases of a part."""
    methods = step.METHODS[1:2] if small else step.METHODS
    counts = (3,) if small else (10, 100)
    if part == "exactness":
        for method in methods:
            for precision in launches.PRECISIONS if gpu else ("fp32", "bf16"):
                yield {"method": method, "precision": precision, "classes": counts[-1]}
    elif part == "training":
        for method in TRAINED[:1] if small else TRAINED:
            for precision in ("fp32", "fp16", "scaled", "amp") if gpu else ("fp32", "amp"):
                yield {"method": method, "precision": precision, "epochs": 1 if small else 20}
    elif part == "times":
        shapes = [(m, "train", 3, 1) for m in methods] if small else step.CASES
        for method, phase, classes, batch in shapes:
            for precision in ("fp32", "tf32", "fp16", "bf16") if gpu else ("fp32",):
                where = {"method": method, "phase": phase, "classes": classes, "batch": batch}
                yield {**where, "precision": precision}
    else:
        for method in methods:
            yield from ({"method": method, "classes": k, "batch": 4} for k in counts)


# ---- the results


@contextmanager
def reason(row: Row) -> Iterator[None]:
    """What goes wrong inside a `with` block is written into the row."""
    try:
        yield
    except Exception as error:  # whatever it is, the other cases go on
        row["failed"] = (str(error) or type(error).__name__).splitlines()[0][:200]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[name], row["failed"] = str(value), "not finite"


def measure(device: torch.device, small: bool, out: Path, parts: list[str]) -> None:
    """Fill `out`.json and `out`.md. NPTError if they are of another machine or size."""
    file, machine = out.with_suffix(".json"), described(device, small)
    record = read_record(file) if file.exists() else {"machine": machine, "rows": {}}
    if record["machine"] != machine:
        raise NPTError(f"{file} was measured with {record['machine']}, this is {machine}: --out")
    for part in parts:
        rows = record["rows"].setdefault(part, [])
        for case in cases(part, device.type == "cuda", small):
            if any(case.items() <= row.items() for row in rows):
                continue
            row = dict(case)
            with reason(row):
                row |= PARTS[part](device, case)
            rows.append(row)
            print(part, json.dumps(row), flush=True)
            write_record(file, record)
            with atomic_write(out.with_suffix(".md")) as page:
                page.write(markdown(record))


def described(device: torch.device, small: bool) -> Row:
    """What figures depend on: the card, its driver, versions, the command."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else step.processor()
    command = f"python benchmarks/gpu.py --device {device.type}{' --small' if small else ''}"
    return {
        "card": card,
        "driver": driver() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "command": command,
    }


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return None


def markdown(record: Row) -> str:
    machine = ", ".join(f"{name}: {value}" for name, value in record["machine"].items() if value)
    tables = [
        f"## {part}\n\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.3g')}\n"
        for part, rows in record["rows"].items()
    ]
    return "\n".join([f"# Measured\n\n{machine}\n", *tables])


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=usual)
    parser.add_argument("--small", action="store_true", help="small models and few cases")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu"), help="of the files, without ending"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    small = args.small or args.device == "cpu"
    if small:
        launches.shrink(LAYERS=2)
    try:
        measure(torch.device(args.device), small, args.out, args.parts)
    except NPTError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
