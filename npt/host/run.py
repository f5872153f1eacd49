"""Runs the train.py of a host repository, without any change to it, with NPT installed in it.

    python -m npt.run train.py --trainer MaPLeNPT --dataset-config-file ... (train.py's own flags)

Inside the script `import dassl` works, the config contains NPT's keys, and the NPT trainers are
registered. An error that the user can fix is printed as one sentence on stderr, with exit code 2;
NPT_TRACEBACK=1 shows its traceback. Any other error keeps its traceback, exit code 1. A last line
says what ran: host, trainer, engine and version.
"""

from __future__ import annotations

import itertools
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import npt  # adds NPT's names as soon as the script imports dassl
from npt import engine
from npt.errors import NPTError, report

USAGE = "usage: python -m npt.run SCRIPT.py [its flags]"


def run(argv: Sequence[str]) -> None:
    """Run a script as Python would: as `__main__`, with its folder first on `sys.path`.

    The script's own `import dassl` determines the engine, with that path.

    argv: the script and its arguments
    """
    if not argv or argv[0].startswith("-"):
        raise NPTError(f"the first argument must be a script; {USAGE}")
    script = Path(argv[0])
    if not script.is_file():
        raise NPTError(f"there is no script '{script}' in {Path.cwd()}; {USAGE}")
    sys.argv = list(argv)
    folder = str(script.resolve().parent)
    if getattr(sys.flags, "safe_path", False):  # then sys.path[0] is not a script's folder
        sys.path.insert(0, folder)
    else:
        sys.path[0] = folder
    runpy.run_path(str(script), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    try:
        run(argv)
    except SystemExit as end:
        if not end.code or not engine.imported():
            raise
        if isinstance(end.code, str):  # Python would print it, with exit code 1
            print(end.code, file=sys.stderr)
        print(_what_ran(argv), file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        return _failed(error, argv)
    return 0


def _failed(error: Exception, argv: Sequence[str]) -> int:
    """Print an error and what ran; returns the exit code."""
    first, trace = _replaced(error), "".join(traceback.format_exception(error))
    try:
        code = report(first)
    except Exception:
        sys.stdout.flush()
        print(trace, end="", file=sys.stderr)
        code = 1
    else:
        if first is not error:
            print(f"the host then raised {type(error).__name__}: {error}", file=sys.stderr)
    if code == 1 or engine.imported():  # else nothing of the host has run
        print(_what_ran(argv), file=sys.stderr)
    return code


def _what_ran(argv: Sequence[str]) -> str:
    from npt.host import naming

    flags = dict(itertools.pairwise(argv))
    trainer = naming.last_built() or flags.get("--trainer", "none yet")
    used = f"{found.name} {found.version}" if (found := engine.imported()) else "not imported yet"
    return (
        f"host {Path(argv[0]).resolve().parent}, trainer {trainer}, dassl {used}, npt "
        f"{npt.__version__}: docs/plugin.md of npt tells which hosts were tried, what does not "
        "work, and how an adapter or another engine helps"
    )


def _replaced(error: Exception) -> Exception:
    """The NPTError that the host's own handler replaced by another error, else the error itself.

    DePT's train.py, for example, ends every failed run with an exception without details.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, NPTError):
        found = found.__cause__ if found.__suppress_context__ else found.__context__
    return found or error
