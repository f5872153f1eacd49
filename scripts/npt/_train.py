"""train.py for the scripts of this folder; afterwards, log.txt has the lines of this start.

    python scripts/npt/_train.py FLAG ... KEY VALUE ...

The first start in a folder writes log.txt, a later one log.txt-<date>. The parsers of the family
read log.txt only, and would miss the result of a run whose first start was stopped or failed.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main(folder: Path) -> None:
    earlier = set(folder.glob("log.txt-*"))
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        if not end.code:
            for log in set(folder.glob("log.txt-*")) - earlier:
                with (folder / "log.txt").open("ab") as file:
                    file.write(log.read_bytes())
        raise


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # the root of the repository: its npt, whatever is installed
    main(Path(sys.argv[sys.argv.index("--output-dir") + 1]))
