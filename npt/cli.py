"""The program train.py: one run, trained or only tested.

    python train.py --trainer MaPLeNPT --config-file configs/trainers/MaPLe/tiny.yaml \\
        --dataset-config-file configs/datasets/mini_shapes.yaml --output-dir output/first \\
        --seed 1 DATASET.NUM_SHOTS 16 DATASET.IMBALANCE_RATIO 0.01

User errors are printed as one sentence on stderr, exit code 2; NPT_TRACEBACK=1 shows their
traceback. Any other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from npt.errors import NPTError, report
from npt.flags import parse_args, setup_cfg
from npt.names import trainer_name
from npt.session import build, check_names, claimed, load, session
from npt.stopping import EXIT_INTERRUPTED, exiting


def run(args: argparse.Namespace, cfg: CfgNode | None = None) -> Any:
    """One run as the flags ask for; returns its trainer.

    cfg: its frozen config; without one it is made of the flags
    """
    cfg = setup_cfg(args) if cfg is None else cfg
    trains = not (args.eval_only or args.no_train)
    if args.overwrite and not trains:
        raise NPTError("--overwrite is for a training: an evaluation keeps a record of its own")
    check_names(cfg)  # before --overwrite deletes anything
    with claimed(Path(cfg.OUTPUT_DIR), cfg, trains, args.overwrite), session(args, cfg):
        trainer = build(cfg)
        if args.eval_only:
            learned = args.model_dir or cfg.MODEL.INIT_WEIGHTS or not trainer.get_model_names()
            if not learned:
                raise NPTError(
                    f"--eval-only of {trainer_name(cfg)} needs --model-dir, its training"
                )
            load(trainer, args.model_dir, args.load_epoch)
            trainer.test()
        elif not args.no_train:
            trainer.train()
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code is 0, 2 (an error), 75 (stopped by a signal: run it again) or 130 (Ctrl-C)."""
    args = parse_args(argv)
    return exit_code(lambda: run(args))


def exit_code(work: Callable[[], Any]) -> int:
    """Do the work of a program that can be stopped and go on; returns the exit code of `main`."""
    try:
        with exiting():
            work()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last save", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
