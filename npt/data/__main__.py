"""`python -m npt.data check|prepare|show`: see the `--help` of each command."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npt import config
from npt.errors import NPTError, report
from npt.flags import Parser
from npt.imbalance import ORDERS

if TYPE_CHECKING:
    from npt.datasets.catalog import Row

EXIT_INCOMPLETE = 1
OWN_IMAGES = "configs/datasets/custom_folder.yaml"
EXIT_INTERRUPTED = 130
RATIOS = [0.05, 0.01]  # which `show` shows if none is asked for
NAMES_HELP = "data sets (default: all), or, without --root, one folder of your own images"
DEEP_HELP = "decode every image, and find copies of an image in two parts or two classes"
RATIOS_HELP = "imbalance ratios (default: that of the config, else 0.05 and 0.01)"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m npt.data", description="Check, download and show data sets.")
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser(
        "check",
        help="what is there, what is missing, where it comes from",
        example="npt data check --root DATA\nnpt data check my_images --deep",
    )
    check.add_argument("names", nargs="*", metavar="NAME", help=NAMES_HELP)
    check.add_argument("--root", help="folder of the data sets; of CustomFolder: its own folder")
    check.add_argument("--deep", action="store_true", help=DEEP_HELP)
    check.set_defaults(do=check_command)

    prepare = commands.add_parser(
        "prepare",
        help="download, verify and unpack data sets",
        example="npt data prepare EuroSAT --root DATA\nnpt data prepare ViT-B/16",
    )
    prepare.add_argument("names", nargs="+", metavar="NAME", help="data sets, or CLIP models")
    prepare.add_argument("--root", help="folder of the data sets")
    prepare.set_defaults(do=prepare_command)

    show = commands.add_parser(
        "show",
        help="class names as CLIP reads them, and class counts before and after imbalance",
        example="npt data show my_images\nnpt data show EuroSAT --root DATA --ratios 0.05",
    )
    show.add_argument(
        "name", metavar="NAME", help="a data set, its yaml file, or a folder of your own images"
    )
    show.add_argument("--backbone", default="", help="the CLIP that finds the nearest classes")
    show.add_argument("--root", help="folder of the data sets")
    show.add_argument("--ratios", type=float, nargs="+", metavar="RATIO", help=RATIOS_HELP)
    show.add_argument("--shots", type=int, help="images of the largest class; -1: all (default 16)")
    show.add_argument("--classes", choices=["all", "base", "new"])
    show.add_argument("--order", choices=ORDERS, help="which classes are the rare ones")
    show.add_argument("--seed", type=int, help="seed of the random order (default 1)")
    show.add_argument("--all", action="store_true", help="list every class of a large data set")
    show.add_argument("--output", type=Path, help="picture file (default: <data set>_classes.png)")
    show.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="set config keys")
    show.set_defaults(do=show_command)
    return parser


def find_row(name: str) -> Row:
    """The row of a data set, by its name or the name of its config, ignoring case."""
    from npt.datasets.catalog import CATALOG

    for row in CATALOG.values():
        if name.casefold() in (row.name.casefold(), row.config):
            return row
    raise NPTError(f"there is no data set {name}; the data sets are {', '.join(CATALOG)}")


def check_command(args: argparse.Namespace) -> int:
    from npt.data import check
    from npt.datasets.base import data_root
    from npt.datasets.catalog import CATALOG

    names, folder = args.names, args.root
    if folder is None and len(names) == 1:
        names, folder = [check.OWN.name], names[0]
    if folder is None:
        raise NPTError(
            "check needs --root: the folder of the data sets; or one folder of your own images"
        )
    root = data_root(folder)
    if not root.is_dir():
        raise NPTError(
            f"{folder} is not a folder: give --root and the folder of the data sets, or the folder "
            "of your own images"
        )
    rows = [_row_to_check(name) for name in names] or list(CATALOG.values())
    reports = [check.survey(row, root, args.deep) for row in rows]
    print(check.table(reports, args.deep))
    for found in reports:
        lines = check.explain(found, Path(folder))
        if lines:
            print("\n" + "\n".join(lines))
    return 0 if all(found.complete for found in reports) else EXIT_INCOMPLETE


def _row_to_check(name: str) -> Row:
    from npt.data.check import OWN

    own = name.casefold() in (OWN.name.casefold(), OWN.config)
    return OWN if own else find_row(name)


def prepare_command(args: argparse.Namespace) -> int:
    from npt.backbones import sources

    for name in args.names:
        if name in sources.MODELS:
            print(f"{name}: {sources.fetch_openai(name)}")
        else:
            _prepare_data(find_row(name), args.root)
    return 0


def _prepare_data(row: Row, folder: str | None) -> None:
    from npt.data import check
    from npt.data.prepare import prepare
    from npt.datasets.base import data_root

    if folder is None:
        raise NPTError(f"{row.name} needs --root: the folder in which to put the data sets")
    root = data_root(folder)
    problems = prepare(row, root)
    report = check.survey(row, root)
    if not report.usable:
        raise problems[0] if problems else NPTError(check.explain(report, root)[1].strip())
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(check.table([report]))
    if problems:
        print("\n".join(check.explain(report, root)))


def show_command(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from npt.data import names, show

    bare = Path(args.name).is_dir()  # a folder of images, without a config
    backbone = _clip_at_hand(args, cfg)
    classes = names.describe(show.built(cfg, {"NUM_SHOTS": -1}), backbone)
    print(names.table(classes, None if args.all else show.EDGE))
    if not backbone:
        print("\nNearest classes: with a CLIP, as --backbone ViT-B/16 (350 MB) or tiny.")
    for words in names.remarks(classes):
        print(f"\nwarning: {words}.")
    if not bare or args.ratios or args.shots is not None:
        configured = [cfg.DATASET.IMBALANCE_RATIO] if cfg.DATASET.IMBALANCE_RATIO < 1 else RATIOS
        counts = show.count(cfg, args.ratios or configured)
        print(f"\n{show.table(counts, args.all)}")
        if args.output or not bare:
            output = args.output or Path(f"{counts.name}_classes.png")
            show.plot(counts, output)
            print(f"\nPicture in {output}")
    return 0


def _clip_at_hand(args: argparse.Namespace, cfg: Any) -> str:
    """The CLIP that `show` reads the class names with; "" if none is asked for, and none is here.

    tiny, which has read no other names, is for the mini suite.
    """
    from npt.backbones import sources
    from npt.datasets import mini

    if args.backbone:
        return args.backbone
    if cfg.DATASET.NAME in mini.DATASETS:
        return "tiny"
    name = cfg.MODEL.BACKBONE.NAME
    name = name if name in sources.MODELS else "ViT-B/16"
    return name if sources.cached()[name].is_file() else ""


def _config(args: argparse.Namespace) -> Any:
    """The config with which `show` builds the data set."""
    import npt.datasets
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY
    from npt.datasets.catalog import CATALOG

    if not all(0 < ratio <= 1 for ratio in args.ratios or ()):
        raise NPTError(f"--ratios must be above 0 and at most 1, not {args.ratios}")
    npt.datasets.add_to_registry()
    cfg = get_cfg_default()
    cfg.DATASET.NUM_SHOTS, cfg.SEED = 16, 1
    known = {name.casefold(): name for name in DATASET_REGISTRY.registered_names()}
    known |= {row.config: row.name for row in CATALOG.values()}
    name = known.get(args.name.casefold()) or known.get(args.name.replace("_", ""))
    if name:
        cfg.DATASET.NAME = name
    elif Path(args.name).is_dir():
        config.merge_file(cfg, OWN_IMAGES)
        cfg.DATASET.NUM_SHOTS, cfg.DATASET.ROOT = -1, args.name
    elif args.name.endswith(".yaml"):
        config.merge_file(cfg, args.name)
    else:
        raise NPTError(
            f"there is no data set {args.name}: give a folder of images, a yaml file, or one of "
            + ", ".join(sorted(set(known.values())))
        )
    flags = {
        "DATASET.ROOT": args.root,
        "DATASET.NUM_SHOTS": args.shots,
        "DATASET.SUBSAMPLE_CLASSES": args.classes,
        "DATASET.IMBALANCE_ORDER": args.order,
        "SEED": args.seed,
    }
    given = [(path, value) for path, value in flags.items() if value is not None]
    config.merge_pairs(cfg, [*itertools.chain(*given), *args.opts])
    if args.ratios and cfg.DATASET.IMBALANCE_TYPE == "natural":
        raise NPTError(
            "--ratios has no meaning for DATASET.IMBALANCE_TYPE natural, whose ratio is that of "
            "the data set: leave it out"
        )
    cfg.freeze()
    return cfg


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.do(args)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return report(error)


if __name__ == "__main__":
    sys.exit(main())
