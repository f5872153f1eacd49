"""Checks at import that `npt.trainers` belongs to this `npt`.

In a checkout, npt/trainers, npt/datasets and npt/configs are symbolic links. Without them, Python
would find no npt.trainers, or that of another, installed version.
"""

from pathlib import Path

HINT = (
    "this checkout has no symbolic links: install it with `pip install -e .`, or enable them "
    "(git config core.symlinks true) and clone again"
)
HOME = Path(__file__).resolve().parent

try:
    import npt.trainers  # adds the config keys of the methods, and imports none of them
except ModuleNotFoundError as error:
    if error.name != "npt.trainers":
        raise
    raise ImportError(f"npt is in {HOME}, but there is no npt.trainers: {HINT}") from None

_found = Path(npt.trainers.__path__[0]).resolve()
if _found not in (HOME / "trainers", HOME.parent / "trainers"):
    raise ImportError(f"npt is in {HOME}, but npt.trainers is in {_found}: {HINT}")
