"""Runs a host repository's own train.py, unedited, with npt in place.

    python -m npt.run train.py --trainer MaPLeNPT --dataset-config-file ... (train.py's own flags)

`dassl` can then be imported, the config has our keys, the NPT trainers are registered. What goes
wrong because of what was asked for is said in one sentence on stderr, exit code 2.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import npt
from npt.errors import NPTError

USAGE = "usage: python -m npt.run SCRIPT.py [its flags]"


def run(argv: Sequence[str]) -> None:
    """Run the script as Python would: named `__main__`, its folder first on the path."""
    if not argv or argv[0].startswith("-"):
        raise NPTError(f"a script comes first; {USAGE}")
    script = Path(argv[0])
    if not script.is_file():
        raise NPTError(f"there is no script '{script}' in {Path.cwd()}; {USAGE}")
    sys.argv = list(argv)
    sys.path[0] = str(script.resolve().parent)
    npt.put_in_place()
    runpy.run_path(str(script), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    try:
        run(argv)
    except Exception as error:
        from npt.cli import report

        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
