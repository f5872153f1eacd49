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
from collections.abc import Sequence
from typing import Any

from npt.errors import report
from npt.flags import parse_args, setup_cfg
from npt.session import build, load, session


def run(args: argparse.Namespace) -> Any:
    """One run as the flags ask for; returns its trainer."""
    cfg = setup_cfg(args)
    with session(args, cfg):
        trainer = build(cfg)
        if args.eval_only:
            load(trainer, args.model_dir, args.load_epoch)
            trainer.test()
        elif not args.no_train:
            trainer.train()
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        run(args)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
