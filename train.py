"""Train or test one prompt learner: `python train.py --help`; the program is npt/cli.py."""

import sys

try:
    from npt.cli import main
except Exception as error:  # what `import npt` refuses is as much the user's as what main refuses
    if isinstance(error, ModuleNotFoundError):
        sys.exit(f"error: {error}: install the package with `pip install -e .`")
    if type(error).__name__ != "NPTError":
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
