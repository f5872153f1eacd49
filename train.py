"""Train or test one prompt learner: `python train.py --help`; the program is npt/cli.py."""

import sys

try:
    from npt.cli import main
    from npt.stopping import run_program
except ImportError as error:  # a dependency is missing, or this checkout has no links
    sys.exit(f"error: {error} (pip install -e . installs what is needed)")
except KeyboardInterrupt:  # Ctrl-C in the seconds in which torch is imported
    sys.exit(130)

if __name__ == "__main__":
    run_program(main)
