"""Which of the Python programs given on stdin would accept their arguments.

stdin: a JSON list of the words after `python`; stdout: a JSON list of complaints, "" for none.
Run it in the folder of the programs. Each program runs, in a fork of this process, until it has
read its arguments; a training's config is then made, an experiment is read, and files of the
repository that the arguments name must be there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())

from npt.errors import NPTError
from npt.experiments.reading import load_experiment
from npt.flags import setup_cfg

SHARED = (  # what programs import; it is imported once, before the forks
    *("clip", "torchvision.transforms", "npt.session", "npt.cli", "npt.commands.predict"),
    *("npt.data.__main__", "npt.experiments.__main__"),
)
OTHERS = ("pip", "pytest", "ruff", "mypy")  # programs that are not ours
OURS = re.compile(r"(configs|scripts|benchmarks|tests|docs|trainers|datasets)/.+")


class Parsed(BaseException):
    """Raised when a program has read its arguments."""


def stop_after_parsing() -> None:
    depth = 0

    def stopping(method: Callable[..., Any]) -> Callable[..., Any]:
        def parse(*args: Any, **options: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                found = method(*args, **options)
            finally:
                depth -= 1
            if depth:
                return found
            if isinstance(found, tuple):  # npt.experiments takes what is unknown for pairs
                found[0].opts = found[1]
                found = found[0]
            raise Parsed(found)

        return parse

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))


def run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def complaint(words: list[str]) -> str:
    for word in words:
        if OURS.fullmatch(word) and not Path(word.partition("::")[0]).exists():
            return f"there is no {word}"
    if words[:1] == ["-m"] and words[1] in OTHERS:
        return ""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            run(words)
    except Parsed as parsed:
        return used(parsed.args[0])
    except SystemExit as end:
        return errors.getvalue() if end.code else ""
    return "it has not read its arguments"


def used(args: argparse.Namespace) -> str:
    """What is wrong with arguments that were accepted."""
    try:
        if getattr(args, "dataset_config_file", "") and getattr(args, "trainer", ""):
            setup_cfg(args)
        if OURS.fullmatch(str(getattr(args, "experiment", ""))):
            load_experiment(args.experiment, args.opts)
    except NPTError as error:
        return str(error)
    return ""


def in_a_fork(words: list[str]) -> str:
    read, write = os.pipe()
    if not os.fork():
        try:
            text = complaint(words)
        except BaseException as error:
            text = repr(error)
        os.write(write, text.encode()[:4096])
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.wait()
    return text


if __name__ == "__main__":
    for name in SHARED:
        importlib.import_module(name)
    stop_after_parsing()
    print(json.dumps([in_a_fork(words) for words in json.load(sys.stdin)]))
