"""Runs a host repository's own train.py, unedited, with npt in place.

    python -m npt.run train.py --trainer MaPLeNPT --dataset-config-file ... (train.py's own flags)

`import dassl` works there, the config has our keys, the NPT trainers are registered. Errors that
the user can put right are printed as one sentence on stderr, exit code 2; NPT_TRACEBACK=1 shows
their traceback. Any other error keeps its traceback.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import npt  # noqa: F401  the first `import dassl` of the script is then joined by our names
from npt.errors import NPTError, report

USAGE = "usage: python -m npt.run SCRIPT.py [its flags]"


def run(argv: Sequence[str]) -> None:
    """Run the script as Python would: named `__main__`, its folder first on the path.

    The engine is settled by the script's own `import dassl`, with that path.
    """
    if not argv or argv[0].startswith("-"):
        raise NPTError(f"a script comes first; {USAGE}")
    script = Path(argv[0])
    if not script.is_file():
        raise NPTError(f"there is no script '{script}' in {Path.cwd()}; {USAGE}")
    sys.argv = list(argv)
    folder = str(script.resolve().parent)
    if getattr(sys.flags, "safe_path", False):  # then Python has put no folder there
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
    except Exception as error:
        return report(error)
    return 0
