"""Times a step of a host model without and with npt.accelerate, and of NPT's own model.

    python benchmarks/host.py --classes 100 --batch 1
    python benchmarks/host.py --only accelerated own    # without the slow computation

The models are those of the test host (tests/host/repo) and of npt.trainers, with ViT-B/16's shapes,
random weights, four context vectors and MaPLe's deep prompts in nine layers. All run alternately in
one process; the results are median times. The first accelerated step is not timed, because it also
runs the host's own computation to compare.
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
from clip.model import CLIP
from step import DEPTH, EMBED, LAYERS, VISUAL_WIDTH, class_names
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import npt
from npt.backbones.loading import load_clip
from npt.encoders import build_encoders
from npt.encoders.packing import place_context
from npt.trainers.cocoop import ConditionalContext
from npt.trainers.coop import Context
from npt.trainers.maple import MultiModalContext
from npt.trainers.prompts import PromptedCLIP, class_prompts, written_context

HOST = Path(__file__).resolve().parent.parent / "tests" / "host" / "repo" / "trainers"
KINDS = {"logits": "CustomCLIP", "texts of each image": "Conditional", "deep prompts": "Deep"}
METHODS = {"logits": "CoOp", "texts of each image": "CoCoOp", "deep prompts": "MaPLe"}
WHICH = ("host", "accelerated", "own")


def host_model(models: ModuleType, what: str, classes: int) -> nn.Module:
    """A model of the host, with gradients only for its prompts."""
    torch.manual_seed(0)
    node = SimpleNamespace(N_CTX=4, CSC=False)
    cfg = SimpleNamespace(TRAINER=SimpleNamespace(HOST=node, MAPLE=SimpleNamespace(DEPTH=DEPTH)))
    model = getattr(models, KINDS[what])(cfg, class_names(classes), models.load_clip_to_cpu())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
    return model


def own_model(what: str, classes: int) -> nn.Module:
    """NPT's own model of the same method."""
    torch.manual_seed(0)
    clip_model = load_clip(os.environ["HOST_CLIP"])
    ctx, prefix = written_context(clip_model, "a photo of a", 4, "TRAINER")
    learner = {
        "logits": lambda: Context(ctx),
        "texts of each image": lambda: ConditionalContext(ctx, EMBED),
        "deep prompts": lambda: MultiModalContext(ctx, VISUAL_WIDTH, DEPTH, LAYERS),
    }[what]()
    prompts = place_context(class_prompts(prefix, class_names(classes)), len(ctx))
    return PromptedCLIP(learner, *build_encoders(clip_model, prompts), clip_model.logit_scale)


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
    parser.add_argument("--methods", nargs="+", choices=METHODS.values(), help="default: all")
    parser.add_argument("--only", nargs="+", choices=WHICH, default=WHICH, help="models to time")
    args = parser.parse_args()
    sys.path.insert(0, str(HOST))
    import models

    rows = []
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.manual_seed(0)
        model = CLIP(512, 224, LAYERS, 768, 16, 77, 49408, 512, 8, LAYERS)
        torch.save(model.state_dict(), file.name)
        os.environ["HOST_CLIP"] = file.name
        for what, method in METHODS.items():
            if args.methods and method not in args.methods:
                continue
            made = {
                "host": lambda what=what: host_model(models, what, args.classes),
                "accelerated": lambda what=what: host_model(models, what, args.classes),
                "own": lambda what=what: own_model(what, args.classes),
            }
            built = {which: made[which]() for which in args.only}
            if "accelerated" in built:
                npt.accelerate(built["accelerated"])
            for train in (True, False):
                steps = [stepper(m, args.batch, train) for m in built.values()]
                for step in steps:
                    step(), step()
                times = [[timed(step) for step in steps] for _ in range(args.rounds)]
                medians = map(statistics.median, zip(*times, strict=True))
                seconds = dict(zip(built, medians, strict=True))
                row = [method, "train" if train else "test"]
                row += [f"{seconds[x]:.3f}" if x in seconds else "" for x in WHICH]
                for other, one in (("host", "accelerated"), ("accelerated", "own")):
                    both = other in seconds and one in seconds
                    row.append(f"{seconds[other] / seconds[one]:.2f}x" if both else "")
                rows.append(row)
                print(*row, file=sys.stderr)
    head = ["model", "phase", "host s", "accelerated s", "own s", "host / acc.", "acc. / own"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
