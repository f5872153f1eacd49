"""The command line of the CoOp family: one run, trained or only tested.

    python train.py --trainer MaPLeNPT --config-file configs/trainers/MaPLe/tiny.yaml \\
        --dataset-config-file configs/datasets/mini_shapes.yaml --output-dir output/first \\
        --seed 1 DATASET.NUM_SHOTS 16 DATASET.IMBALANCE_RATIO 0.01

What goes wrong because of what was asked for is said in one sentence on stderr, exit code 2;
`NPT_TRACEBACK=1` shows where it was raised. A bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import dis
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import yaml
from yacs.config import CfgNode

import npt  # noqa: F401  (makes `dassl` importable, registers our config nodes)
from npt.errors import NPTError

EXIT_BAD_INPUT = 2
# Packages whose own `raise` statements carry a sentence for the user.
SPEAKING_PACKAGES = {"npt", "dassl", "yacs", "clip"}


# --------------------------------------------------------------------------- arguments
class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {message} (--help lists the flags)\n")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the family's train.py."""
    add = parser.add_argument
    add("--root", default="", help="folder of the data sets (DATASET.ROOT)")
    add("--output-dir", default="", help="folder of log, checkpoints and result.json (OUTPUT_DIR)")
    add("--resume", default="", help="folder of checkpoints to continue from (RESUME)")
    add("--seed", type=int, default=-1, help="seed of data draw and training; negative: none")
    add("--source-domains", nargs="+", help="source domains of a domain-generalisation data set")
    add("--target-domains", nargs="+", help="target domains of a domain-generalisation data set")
    add("--transforms", nargs="+", help="training transforms by name (INPUT.TRANSFORMS)")
    add("--config-file", default="", help="yaml of the trainer")
    add("--dataset-config-file", default="", help="yaml of the data set")
    add("--trainer", default="", help="name of the trainer (TRAINER.NAME)")
    add("--backbone", default="", help="name of the backbone (MODEL.BACKBONE.NAME)")
    add("--head", default="", help="name of the head (MODEL.HEAD.NAME)")
    add("--eval-only", action="store_true", help="test only, with the checkpoint in --model-dir")
    add("--model-dir", default="", help="folder of the run whose checkpoint is tested")
    add("--load-epoch", type=int, help="epoch of that checkpoint; without it the best or the last")
    add("--no-train", action="store_true", help="build everything and stop")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values, last")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Train or test one prompt learner.",
        epilog="Later wins: defaults, data set file, trainer file, flags, KEY VALUE pairs.",
    )
    add_flags(parser)
    return parser.parse_args(argv)


# --------------------------------------------------------------------------- configuration
def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of that name from here, else among the installed configs (`configs/` optional)."""
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_absolute():
        register()
        import npt.configs

        parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
        for home in npt.configs.__path__:
            installed = Path(home, *parts)
            if installed.is_file():
                return installed
    raise NPTError(f"there is no config file '{name}', neither from {Path.cwd()} nor among npt's")


def config_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Every full key of a config, leaves and nodes."""
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from config_keys(value, f"{prefix}{name}.")


def unknown_key(cfg: CfgNode, key: str, where: str) -> NPTError:
    known = list(config_keys(cfg))
    close = difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.6)
    if not close:  # the same last word under another node
        last = key.upper().rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:1]
    hint = f"; did you mean {close[0]}?" if close else ""
    return NPTError(f"unknown config key {key} in {where}{hint}")


def _typed(old: Any, new: Any, key: str, where: str) -> Any:
    """`new` as it may stand in the place of `old`: text is read as a Python literal where it is
    one, a whole number may stand for a float, a list for a tuple."""
    if isinstance(old, CfgNode):
        raise NPTError(f"config key {key} in {where} is a section, give its keys, not {new!r}")
    if isinstance(new, str):
        try:
            literal = ast.literal_eval(new)
        except (ValueError, SyntaxError):
            literal = new  # a bare word
        if isinstance(literal, str) or not isinstance(old, str):
            new = literal
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return type(old)(new)
    if type(new) is not type(old) and old is not None and new is not None:
        kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        kind = kinds.get(type(old), "a list")
        raise NPTError(f"config key {key} in {where} takes {kind} such as {old!r}, not {new!r}")
    return new


def _merge(root: CfgNode, node: CfgNode, values: dict, where: str, prefix: str) -> None:
    """Merge a nested mapping into `node`, which is at `prefix` in `root`; `where` is its source."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in node:
            raise unknown_key(root, key, where)
        if isinstance(node[name], CfgNode) and isinstance(value, dict):
            _merge(root, node[name], value, where, f"{key}.")
        else:
            node[name] = _typed(node[name], value, key, where)


def merge_file(cfg: CfgNode, name: str | os.PathLike[str]) -> None:
    """Merge a yaml file (see `find_config` for where it is looked for)."""
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NPTError(f"the config file {path} is not valid yaml: {error}") from error
    if values is None:
        return
    if not isinstance(values, dict):
        raise NPTError(f"the config file {path} holds no config keys at its top level")
    _merge(cfg, cfg, values, str(path), "")


def merge_pairs(cfg: CfgNode, pairs: Sequence[Any], where: str = "the command line") -> None:
    """Merge KEY VALUE KEY VALUE ..."""
    for word in pairs[::2]:
        if str(word).startswith("-"):
            raise NPTError(f"flags come before the KEY VALUE pairs: {word} is too late in {where}")
    if len(pairs) % 2:
        raise NPTError(f"the config key {pairs[-1]} at the end of {where} has no value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        node, names = cfg, str(key).split(".")
        for name in names[:-1]:
            node = node.get(name) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or names[-1] not in node:
            raise unknown_key(cfg, str(key), where)
        _merge(cfg, node, {names[-1]: value}, where, str(key)[: -len(names[-1])])


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run: defaults, data set file, trainer file, flags, pairs."""
    from dassl.config import get_cfg_default

    register()
    cfg = get_cfg_default()
    if args.dataset_config_file:
        merge_file(cfg, args.dataset_config_file)
    if args.config_file:
        merge_file(cfg, args.config_file)
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
    for key, flag in (("TRAINER", "--trainer"), ("DATASET", "--dataset-config-file")):
        if not cfg[key].NAME:
            raise NPTError(f"no {key.lower()} is named: give {flag}, or {key}.NAME as a pair")
    cfg.freeze()
    return cfg


@cache
def register() -> None:
    """Make our own trainers and data sets known; names that a host registered stay the host's."""
    try:
        import npt.configs
        import npt.datasets
        import npt.trainers  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name in ("npt.trainers", "npt.datasets", "npt.configs"):
            raise NPTError(
                f"{error.name} is not importable: install the package with `pip install -e .`"
            ) from error
        raise


# --------------------------------------------------------------------------- a run
@cache
def system_info() -> str:
    from dassl.utils import collect_env_info

    return collect_env_info()  # asks several programs, so once a process


@contextmanager
def session(args: argparse.Namespace, cfg: CfgNode) -> Iterator[None]:
    """Seed, log file and the lines that open a run; the console is given back at the end."""
    import torch

    from dassl.utils import set_random_seed, setup_logger

    console = sys.stdout
    try:
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
        setup_logger(cfg.OUTPUT_DIR)
        if torch.cuda.is_available() and cfg.USE_CUDA:
            torch.backends.cudnn.benchmark = True
        _banner("Arguments")
        for name, value in sorted(vars(args).items()):
            print(f"{name}: {value}")
        _banner("Config")
        print(cfg)
        print("Collecting env info ...")
        print(f"** System info **\n{system_info()}\n")
        with _warnings_logged():
            yield
    finally:
        logger, sys.stdout = sys.stdout, console
        if logger is not console and getattr(logger, "file", None) is not None:
            logger.file.close()


@contextmanager
def _warnings_logged() -> Iterator[None]:
    """Warnings stand in the log file, too, and again in that of the next run of a process."""
    log = getattr(sys.stdout, "file", None)
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_and_log(message: Any, category: type[Warning], *where: Any) -> None:
            show(message, category, *where)
            if log is not None:
                log.write(f"{category.__name__}: {message}\n")

        warnings.showwarning = show_and_log
        yield


def _banner(title: str) -> None:
    line = f"** {title} **"
    print("\n".join(["*" * len(line), line, "*" * len(line)]))


def build(cfg: CfgNode) -> Any:
    """The trainer that the config names, with its data and model."""
    from dassl.engine import build_trainer

    register()
    return build_trainer(cfg)


def load(trainer: Any, directory: str, epoch: int | None = None) -> None:
    """Load a run's checkpoint into a built trainer, with a sentence where it does not fit."""
    try:
        trainer.load_model(directory, epoch=epoch)
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        cfg = trainer.cfg
        raise NPTError(
            f"the checkpoint in {directory} is not one of {cfg.TRAINER.NAME} with backbone "
            f"{cfg.MODEL.BACKBONE.NAME} on these classes: {' '.join(str(error).split()[3:])}"
        ) from error


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


# --------------------------------------------------------------------------- errors
def sentence(error: BaseException) -> str | None:
    """What to tell the user, or None where the error is a bug and its traceback the message.

    A sentence is: an NPTError; a failed file operation that names its file; and any error that
    the code of npt, the engine, yacs or clip raised on purpose, that is with a `raise` or
    `assert` statement, and not by indexing or calling something wrongly.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    worker = re.match(r"Caught (\w+) in DataLoader worker process", text)
    if worker:
        return _worker_sentence(text)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _one_line(f"{error.strerror}: '{error.filename}'")
    unreadable = type(error).__name__ in ("UnidentifiedImageError", "URLError")
    if isinstance(error, NPTError) or unreadable or raised_on_purpose(error.__traceback__):
        return _one_line(text) or None
    return None


def raised_on_purpose(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame is a raise statement of a package that speaks to the user."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if frame.f_globals.get("__name__", "").partition(".")[0] not in SPEAKING_PACKAGES:
        return False
    return frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _worker_sentence(text: str) -> str | None:
    """The same judgement on the printed traceback that a data-loading process sends."""
    head, _, last = text.rpartition("\n  File ")
    name, _, message = re.split(r"\n(?=[\w.]+(?:: |$))", last, maxsplit=1)[-1].partition(": ")
    source = last.split("\n")[1].strip() if "\n" in last else ""
    speaks = any(f"{os.sep}{package}{os.sep}" in last for package in SPEAKING_PACKAGES)
    meant = name.endswith("NPTError") or (speaks and source.startswith(("raise ", "assert ")))
    file_error = re.match(r"\[Errno \d+\] ", message)
    if head and message and (meant or file_error or name.endswith("UnidentifiedImageError")):
        return _one_line(message[file_error.end() :] if file_error else message)
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def report(error: BaseException) -> int:
    """Print the sentence of an error and return the exit code, or raise what is no sentence."""
    words = None if os.environ.get("NPT_TRACEBACK") == "1" else sentence(error)
    if words is None:
        raise error
    sys.stdout.flush()
    print(f"error: {words}", file=sys.stderr)
    return EXIT_BAD_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        run(args)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
