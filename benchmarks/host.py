"""Times a host model's training and test step, without and with npt.accelerate.

    python benchmarks/host.py --classes 100 --batch 1

The models are those of the test host (tests/host/repo), with ViT-B/16's shapes and random weights.
Both models run alternately in one process; the result is the ratio of the median times. The first
accelerated step is not timed, because it also runs the host's own computation to compare.
"""

import argparse
import inspect
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import _checkout  # noqa: F401  first: npt of this checkout
import torch
from step import LAYERS, class_names
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import npt
from npt.encoders.openai import CLIP

HOST = Path(__file__).resolve().parent.parent / "tests" / "host" / "repo" / "trainers"
KINDS = {"logits": "CustomCLIP", "texts of each image": "Conditional", "deep prompts": "Deep"}


def build(models: ModuleType, kind: str, classes: int) -> nn.Module:
    """A model of the host, with gradients only for its prompts."""
    torch.manual_seed(0)
    node = SimpleNamespace(N_CTX=4, CSC=False)
    cfg = SimpleNamespace(TRAINER=SimpleNamespace(HOST=node, MAPLE=SimpleNamespace(DEPTH=9)))
    model = getattr(models, kind)(cfg, class_names(classes), models.load_clip_to_cpu())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
    return model


def stepper(model: nn.Module, batch: int, train: bool) -> Callable[[], None]:
    label = torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        # New images in each step, because features of the same image might be cached.
        image = torch.randn(batch, 3, 224, 224)
        model.train(train)
        if not train:
            with torch.no_grad():
                model(image)
            return
        model.zero_grad()
        takes_label = "label" in inspect.signature(model.forward).parameters
        loss = model(image, label) if takes_label else F.cross_entropy(model(image), label)
        loss.backward()

    return step


def timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=100, help="number of classes")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each model")
    args = parser.parse_args()
    sys.path.insert(0, str(HOST))
    import models

    rows = []
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.manual_seed(0)
        model = CLIP(512, 224, LAYERS, 768, 16, 77, 49408, 512, 8, LAYERS)
        torch.save(model.state_dict(), file.name)
        os.environ["HOST_CLIP"] = file.name
        for what, kind in KINDS.items():
            for train in (True, False):
                plain, fast = (build(models, kind, args.classes) for _ in range(2))
                npt.accelerate(fast)
                steps = [stepper(m, args.batch, train) for m in (plain, fast)]
                for step in steps:
                    step()
                times = [[timed(step) for step in steps] for _ in range(args.rounds)]
                host, ours = (statistics.median(column) for column in zip(*times, strict=True))
                phase = "train" if train else "test"
                ratio = f"{host / ours:.1f}x"
                rows.append([what, phase, f"{host:.2f}", f"{ours:.3f}", ratio])
                print(*rows[-1], file=sys.stderr)
    head = ["host model", "phase", "host s", "accelerated s", "ratio"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
