"""Train or test one prompt learner: `python train.py --help`; the program is npt/cli.py."""

import sys

try:
    from npt.cli import main
except ModuleNotFoundError as error:  # a dependency, or npt.trainers in a checkout without links
    sys.exit(f"error: {error}: install the package with `pip install -e .`")

if __name__ == "__main__":
    sys.exit(main())
