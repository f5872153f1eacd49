"""Neural-collapse-anchored prompt tuning (NPT) for CLIP.

`import npt` makes `import dassl` work, adds the config keys, registers the trainers `CoCoOpNPT`,
`MaPLeNPT` and `NPT`, finds `<Name>NPT` for any other trainer, and lets `DATASET.IMBALANCE_RATIO`
and `MODEL.ACCELERATE` act on any data set and trainer; nothing else.
"""

import sys

from npt import acceleration, config, engine, imbalance, registry
from npt.acceleration import accelerate
from npt.features import Features
from npt.registry import register

__version__ = "0.1.0"
__all__ = ["Features", "accelerate", "put_in_place", "register"]


def put_in_place() -> None:
    """What `import npt` does; repeating it changes nothing."""
    engine.activate()
    config.register()
    registry.install()
    imbalance.install()
    acceleration.install()


# `python -m npt.engine` reports on an engine that cannot be activated, rather than fall over it;
# `python -m npt.run` first puts the host's folder on the path, which may hold an engine.
if not (sys.argv[:1] == ["-m"] and {"npt.engine", "npt.run"} & set(sys.orig_argv)):
    put_in_place()
