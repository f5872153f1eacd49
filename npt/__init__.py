"""Neural-collapse-anchored prompt tuning (NPT) for CLIP.

`import npt` makes `import dassl` work, adds the config keys, registers the trainers `CoCoOpNPT`,
`MaPLeNPT` and `NPT`, and lets `DATASET.IMBALANCE_RATIO` act on any data set; nothing else.
"""

import sys

from npt import config, engine, imbalance, trainer

__version__ = "0.1.0"

# `python -m npt.engine` reports on an engine that cannot be activated, rather than fall over it.
if not (sys.argv[:1] == ["-m"] and "npt.engine" in sys.orig_argv):
    engine.activate()
    config.register()
    trainer.register()
    imbalance.install()
