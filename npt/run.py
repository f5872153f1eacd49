"""`python -m npt.run SCRIPT.py [its flags]`: see `npt.host.run`."""

import sys

from npt.host.run import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    sys.exit(main())
