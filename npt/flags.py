"""The flags of the CoOp family's train.py, and the config that they describe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from yacs.config import CfgNode

from npt.backbones.following import follow
from npt.checks import TEXT, is_text, shown
from npt.config import merge_file, merge_pairs
from npt.errors import EXIT_BAD_INPUT, HINT, NPTError
from npt.version import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors as one sentence; its help names NPT_TRACEBACK.

    example: command lines, shown at the end of the help
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.example = example

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, which all its parsing goes through; arguments must be text."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            if not is_text(word):
                self.error(f"the argument {shown(word)} is not {TEXT.allowed}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {message} (--help lists the flags)\n")

    def format_help(self) -> str:
        lines = "".join(f"  {line}\n" for line in self.example.splitlines())
        shown = f"\nexample:\n{lines}" if lines else ""
        return f"{super().format_help()}{shown}\nErrors are one sentence, exit code 2; {HINT}.\n"


# The flags of the family's train.py: what argparse is told of each.
FLAGS: dict[str, dict[str, Any]] = {
    "--root": {"default": "", "help": "folder of the data sets (DATASET.ROOT)"},
    "--output-dir": {
        "default": "",
        "help": "folder of log, checkpoints and result.json (OUTPUT_DIR)",
    },
    "--resume": {"default": "", "help": "folder of checkpoints to continue from (RESUME)"},
    "--seed": {
        "type": int,
        "default": -1,
        "help": "seed of data draw and training; negative: none",
    },
    "--source-domains": {
        "nargs": "+",
        "help": "source domains of a domain-generalisation data set",
    },
    "--target-domains": {
        "nargs": "+",
        "help": "target domains of a domain-generalisation data set",
    },
    "--transforms": {
        "nargs": "+",
        "help": "training transforms by name (INPUT.TRANSFORMS)",
    },
    "--config-file": {"default": "", "help": "yaml of the trainer"},
    "--dataset-config-file": {"default": "", "help": "yaml of the data set"},
    "--trainer": {"default": "", "help": "name of the trainer (TRAINER.NAME)"},
    "--backbone": {"default": "", "help": "name of the backbone (MODEL.BACKBONE.NAME)"},
    "--head": {"default": "", "help": "name of the head (MODEL.HEAD.NAME)"},
    "--eval-only": {
        "action": "store_true",
        "help": "test only, with the checkpoint in --model-dir",
    },
    "--model-dir": {"default": "", "help": "folder of the run whose checkpoint is tested"},
    "--load-epoch": {
        "type": int,
        "help": "epoch of that checkpoint; without it the best or the last",
    },
    "--no-train": {"action": "store_true", "help": "build everything and stop"},
    "--overwrite": {
        "action": "store_true",
        "help": "delete what an earlier run has written to the output folder, and start anew",
    },
}


def add_flags(
    parser: argparse.ArgumentParser, but: Collection[str] = (), pairs: str = argparse.REMAINDER
) -> None:
    """The flags of the family's train.py but some of them, and its KEY VALUE pairs.

    pairs: the `nargs` of the pairs; "*" where flags may follow another positional argument, with
        `parse_intermixed_args`
    """
    for flag, how in FLAGS.items():
        if flag not in but:
            parser.add_argument(flag, **how)
    parser.add_argument(
        "opts", nargs=pairs, metavar="KEY VALUE", help="config keys and values, last"
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Train or test one prompt learner.",
        epilog="Later wins: defaults, data set file, trainer file, flags, KEY VALUE pairs.",
    )
    add_flags(parser)
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run: defaults, data set file, trainer file, flags, pairs."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    in_files: set[str] = set()
    for file in (args.dataset_config_file, args.config_file):
        if file:
            in_files |= merge_file(cfg, file)
    in_file = cfg.MODEL.BACKBONE.NAME
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    merge_pairs(cfg, [x for key, value in flags.items() if value for x in (key, value)])
    if args.seed >= 0:
        cfg.SEED = args.seed
    merge_pairs(cfg, args.opts or [])
    follow(cfg, in_files, {str(word) for word in (args.opts or [])[::2]}, in_file)
    for key, flag in (("TRAINER", "--trainer"), ("DATASET", "--dataset-config-file")):
        if not cfg[key].NAME:
            raise NPTError(f"no {key.lower()} is named: give {flag}, or {key}.NAME as a pair")
    cfg.freeze()
    if cfg.RESUME:
        _check_checkpoints(Path(cfg.RESUME))
    return cfg


def recorded_cfg(record: Mapping[str, Any], pairs: Sequence[Any] = ()) -> CfgNode:
    """The frozen config in the record of a run (result.json), with KEY VALUE pairs on top.

    NPTError if it has a key that this version does not have.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    try:
        cfg.merge_from_other_cfg(CfgNode(record["config"]))
    except (KeyError, ValueError) as error:
        version = record.get("versions", {}).get("npt", "another version")
        raise NPTError(
            f"the config of this run, made by npt {version}, does not fit npt {__version__} "
            f"({' '.join(str(error.args[0]).split())}): use that version"
        ) from error
    merge_pairs(cfg, list(pairs))
    cfg.freeze()
    return cfg


def _check_checkpoints(folder: Path) -> None:
    """Raise NPTError where there is nothing to continue from."""
    if not folder.is_dir():
        raise NPTError(f"there is no folder '{folder}' to continue from: correct --resume (RESUME)")
    if not any(folder.glob("*/checkpoint")) and not any(folder.glob("resume/*")):
        raise NPTError(
            f"the folder '{folder}' has no checkpoint to continue from: correct --resume (RESUME)"
        )
