"""Neural-collapse-anchored prompt tuning (NPT) for CLIP.

`import npt` makes `import dassl` work. When dassl is imported, now or later, npt adds its config
keys to the engine's defaults, registers the trainers `CoCoOpNPT`, `MaPLeNPT` and `NPT`, finds
`<Name>NPT` for any other trainer, and lets the keys `DATASET.IMBALANCE_*` act on any data set.
"""

from npt import config, engine, remedies, terms, tree  # noqa: F401
from npt.host import naming, registry, sampling, thinning
from npt.host.acceleration import accelerate
from npt.host.features import Features
from npt.host.registry import register
from npt.version import __version__

__all__ = ["Features", "__version__", "accelerate", "put_in_place", "register", "terms"]


def put_in_place() -> None:
    """Add keys, names, thinning and sampling to the engine; repeating it changes nothing."""
    import dassl  # noqa: F401  selects the engine, if it is the first import

    config.add_keys_to_defaults()
    registry.extend_registry()
    naming.wrap_build_trainer()
    naming.wrap_clean_cfg()
    thinning.wrap_build_dataset()
    sampling.wrap_build_sampler()


engine.when_imported(put_in_place)
