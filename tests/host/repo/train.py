"""The host's own program, which does not mention npt."""

import argparse

import datasets.dots  # noqa: F401
import trainers.features
import trainers.methods
import trainers.named
from yacs.config import CfgNode as CN

from dassl.config import clean_cfg, get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger


def extend_cfg(cfg):
    cfg.TRAINER.HOST = CN()
    cfg.TRAINER.HOST.N_CTX = 4
    cfg.TRAINER.HOST.PREC = "fp32"
    cfg.TRAINER.HOST.CSC = False
    cfg.TRAINER.MAPLE = CN()  # npt has a node with the same name
    cfg.TRAINER.MAPLE.DEPTH = 3
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def main():
    parser = argparse.ArgumentParser()
    for flag in ("root", "output-dir", "trainer", "dataset-config-file", "config-file"):
        parser.add_argument(f"--{flag}", default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--model-dir", default="")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    cfg = get_cfg_default()
    clean_cfg(cfg, args.trainer)
    extend_cfg(cfg)
    cfg.merge_from_file(args.dataset_config_file)
    cfg.merge_from_file(args.config_file)
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = args.root, args.output_dir
    cfg.TRAINER.NAME, cfg.SEED = args.trainer, args.seed
    cfg.merge_from_list(trainers.named.SETTINGS.get(cfg.TRAINER.NAME, []))
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    print(cfg)
    print(collect_env_info())

    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    else:
        trainer.train()


if __name__ == "__main__":
    main()
