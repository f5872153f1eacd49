"""Neural-collapse-anchored prompt tuning (NPT) for CLIP.

`import npt` makes `import dassl` work. When dassl is imported, now or later, npt adds its config
keys to the engine's defaults, registers the trainers `CoCoOpNPT`, `MaPLeNPT` and `NPT`, finds
`<Name>NPT` for any other trainer, and lets the keys `DATASET.IMBALANCE_*` act on any data set.
"""

import importlib
from typing import TYPE_CHECKING, Any

from npt import engine, tree  # noqa: F401
from npt.version import __version__

if TYPE_CHECKING:
    from npt import terms
    from npt.classifier import load
    from npt.host.acceleration import accelerate
    from npt.host.features import Features
    from npt.host.registry import register

__all__ = ["Features", "__version__", "accelerate", "load", "put_in_place", "register", "terms"]

# torch, which they import, takes seconds: what needs none, such as `npt --version`, shall not wait.
_HOMES = {
    "Features": "npt.host.features",
    "accelerate": "npt.host.acceleration",
    "load": "npt.classifier",
    "register": "npt.host.registry",
}
_MODULES = ("config", "remedies", "terms")


def __getattr__(name: str) -> Any:
    """The names above that need torch, imported at their first use."""
    if name in _MODULES:
        return importlib.import_module(f"npt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def put_in_place() -> None:
    """Add keys, names, thinning, sampling and reading to the engine; repeating changes nothing.

    The embedded engine gets names, and what acts on data, when these parts of it are imported: who
    only reads configs does not wait for torch.
    """
    import dassl  # noqa: F401  selects the engine, if it is the first import
    from npt import config
    from npt.host import effect  # noqa: F401  its imports add keys, too

    config.add_keys_to_defaults()
    if engine.describe().name == "embedded":
        engine.after_import("dassl.engine", _add_names)
        engine.after_import("dassl.data.data_manager", _act_on_data)
    else:
        _add_names()
        _act_on_data()


def _add_names() -> None:
    from npt.host import naming, registry

    registry.extend_registry()
    naming.wrap_build_trainer()
    naming.wrap_clean_cfg()


def _act_on_data() -> None:
    from npt.host import reading, sampling, thinning

    thinning.wrap_build_dataset()
    sampling.wrap_build_sampler()
    reading.wrap_reading()


engine.when_imported(put_in_place)
