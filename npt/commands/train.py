"""`npt train ROOT --method maple-npt`: train.py with settings that suit the data."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npt.errors import NPTError
from npt.flags import Parser, add_flags, parse_args, setup_cfg

OF_TESTS = ("--eval-only", "--model-dir", "--load-epoch")  # flags for which there is `npt test`
OWN_IMAGES = "configs/datasets/custom_folder.yaml"
# What helps on unequal classes, and changes nothing on equal ones (docs/long-tail.md):
ADJUSTED = ("TRAINER.NPT.LOGIT_ADJUST", 1.0)
BALANCED = ("DATALOADER.TRAIN_X.SAMPLER", "ClassBalancedSampler")
FEWEST_STEPS, MOST_STEPS = 100, 6000  # published trainings have 100 (EuroSAT) to 10,000 (ImageNet)
LARGEST_BATCH = 32
FEWEST_EPOCHS = 2  # the first one is a warm-up, in which hardly anything is learned
IN_MEMORY = 2000  # training images that are loaded without worker processes


class Method(NamedTuple):
    """trainer: its name; config: the folder and file of its published settings, for a ViT-B/16"""

    trainer: str
    config: str
    for_tails: tuple[str, Any] | None = None

    @property
    def tiny(self) -> str:
        """The settings for the small CLIP of the mini suite."""
        return f"{self.config.split('/')[0].removesuffix('NPT')}/tiny"


METHODS = {
    "zero-shot": Method("ZeroshotCLIP", "ZeroshotCLIP/vit_b16"),
    "coop": Method("CoOp", "CoOp/vit_b16_ep50", BALANCED),
    "cocoop": Method("CoCoOp", "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1", BALANCED),
    "maple": Method("MaPLe", "MaPLe/vit_b16_c2_ep5_batch4_2ctx", ADJUSTED),
    "coop-npt": Method("CoOpNPT", "CoOp/vit_b16_ep50", BALANCED),
    "cocoop-npt": Method("CoCoOpNPT", "CoCoOpNPT/vit_b16_c4_ep5_batch4", BALANCED),
    "maple-npt": Method("MaPLeNPT", "MaPLeNPT/vit_b16_c2_ep5_batch4_2ctx", ADJUSTED),
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt train",
        usage="npt train ROOT [--method METHOD] [--name NAME] [flags of train.py] [KEY VALUE ...]",
        description="Train on a folder of your own images, with settings that suit their number. "
        "ROOT has a folder of images for each class, or train/, val/ and test/ with such folders.",
        epilog="Every flag and key of train.py is good here, and comes before the settings that "
        "suit the data; with --config-file, its settings are taken in their place.",
        example="npt train my_images --method maple-npt\n"
        "npt train my_images --method coop-npt --name try2 OPTIM.MAX_EPOCH 20",
    )
    parser.add_argument("root", metavar="ROOT", help="folder of your images")
    parser.add_argument(
        "--method", choices=METHODS, default="maple-npt", help="default: %(default)s"
    )
    parser.add_argument("--name", help="name of the run: output/NAME (default: folder-method)")
    add_flags(parser, but=("--root", *OF_TESTS), pairs="*")
    parser.set_defaults(seed=1)
    return parser


def command(args: argparse.Namespace) -> list[str]:
    """The words of train.py's command line. NPTError if the data cannot be used."""
    method = METHODS[args.method]
    if args.name and (Path(args.name).name != args.name or args.name == ".."):
        raise NPTError(f"--name {args.name} is a path: give a name, or the path as --output-dir")
    root = os.path.abspath(os.path.expanduser(args.root))
    if not os.path.isdir(root):
        raise NPTError(f"ROOT {args.root} is not a folder: name the folder of your images")
    tiny = args.backbone == "tiny"
    name = args.name or f"{os.path.basename(root)}-{args.method}"
    words = {
        "--trainer": args.trainer or method.trainer,
        "--root": root,
        "--config-file": args.config_file
        or f"configs/trainers/{method.tiny if tiny else method.config}.yaml",
        "--dataset-config-file": args.dataset_config_file or OWN_IMAGES,
        "--output-dir": args.output_dir or os.path.join("output", name),
        "--seed": str(args.seed),
        "--backbone": args.backbone,
        "--head": args.head,
        "--resume": args.resume,
    }
    given = []
    for name in ("transforms", "source_domains", "target_domains"):  # first: another flag ends them
        if getattr(args, name):
            given += [f"--{name.replace('_', '-')}", *getattr(args, name)]
    given += [word for flag, value in words.items() if value for word in (flag, value)]
    given += ["--no-train"] * args.no_train + ["--overwrite"] * args.overwrite
    if args.config_file:
        return [*given, *args.opts]
    return [*given, *_suited(method, [*given, *args.opts]), *args.opts]


def _suited(method: Method, words: list[str]) -> list[str]:
    """KEY VALUE pairs that suit the data and the machine, for the command line `words`."""
    import torch

    from npt.session import training_counts

    cfg = setup_cfg(parse_args(words))
    counts = training_counts(cfg)
    batch, epochs = schedule(sum(counts), cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH)
    workers = 0 if sum(counts) <= IN_MEMORY else min(8, os.cpu_count() or 1)
    pairs: dict[str, Any] = {"DATALOADER.NUM_WORKERS": workers}
    if method.for_tails:  # it learns
        pairs |= {
            "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
            "OPTIM.MAX_EPOCH": epochs,
            "DATALOADER.TRAIN_X.DROP_LAST": False,  # every image counts
        }
        pairs |= dict([method.for_tails])
        node = method.trainer.removesuffix("NPT").upper()
        if not (cfg.USE_CUDA and torch.cuda.is_available()):
            pairs[f"TRAINER.{node}.PREC"] = "fp32"
    asked = {str(word).upper() for word in words}
    pairs = {key: value for key, value in pairs.items() if key not in asked}
    print(
        f"{sum(counts):,} training images of {len(counts)} classes, {max(counts, default=0):,} to "
        f"{min(counts, default=0):,} a class. Settings that suit them:"
    )
    print("".join(f"  {key} {value}\n" for key, value in pairs.items()), end="")
    return [str(word) for pair in pairs.items() for word in pair]


def schedule(images: int, batch: int, epochs: int) -> tuple[int, int]:
    """Batch size and epochs for a number of images, near the published ones.

    There are enough steps to learn from few images, and not many more with many; large data get
    larger batches first, then fewer epochs.
    """
    batch = max(1, min(batch, images))
    while batch < LARGEST_BATCH and FEWEST_EPOCHS * images > MOST_STEPS * batch:
        batch *= 2
    steps = max(1, -(-images // batch))  # of an epoch
    epochs = min(max(epochs, -(-FEWEST_STEPS // steps)), max(FEWEST_EPOCHS, MOST_STEPS // steps))
    return batch, epochs


def main(argv: Sequence[str] | None = None) -> int:
    """The exit codes are those of train.py."""
    args = build_parser().parse_intermixed_args(argv)
    from npt import cli

    def work() -> None:
        words = command(args)
        print(f"python train.py {shlex.join(words)}\n")
        cli.run(parse_args(words))
        if not args.no_train:
            print(_next(setup_cfg(parse_args(words)).OUTPUT_DIR))

    return cli.exit_code(work)


def _next(folder: str) -> str:
    where = shlex.quote(folder)
    return f"\nThe run is in {folder}. Now: npt predict {where} IMAGES, npt view {where}"


if __name__ == "__main__":
    sys.exit(main())
