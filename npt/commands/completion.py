"""`npt completion bash`: the script with which a shell completes the command `npt`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from npt.errors import NPTError, report
from npt.flags import Parser

SHELLS = ("bash", "zsh", "tcsh")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt completion",
        description="Print the script with which a shell completes verbs, flags and file names.",
        example="npt completion bash > ~/.local/share/bash-completion/completions/npt\n"
        'npt completion zsh > "${fpath[1]}/_npt"',
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """The parsers of all verbs that have one, as one parser."""
    from npt.__main__ import VERBS

    parser = argparse.ArgumentParser(prog="npt")
    verbs = parser.add_subparsers()
    for verb, (module, what) in VERBS.items():
        build = getattr(importlib.import_module(module), "build_parser", None)
        parents = [build()] if build else []
        verbs.add_parser(verb, help=what, parents=parents, conflict_handler="resolve")
    return parser


def script(shell: str) -> str:
    """The completion script. NPTError where the package shtab is missing."""
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise NPTError("completion needs the package shtab: pip install shtab") from error
    parser = whole_parser()
    _complete_files(parser, shtab.FILE)
    return shtab.complete(parser, shell)


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Let values without choices be completed as names of files, also those of sub-parsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, files)
        elif action.nargs != 0 and action.choices is None:
            action.complete = files  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        print(script(args.shell))
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
