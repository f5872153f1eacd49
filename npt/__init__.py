"""Neural-collapse-anchored prompt tuning (NPT) for CLIP.

`import npt` makes `import dassl` work, adds the config keys, registers the trainers `CoCoOpNPT`,
`MaPLeNPT` and `NPT`, and lets `DATASET.IMBALANCE_RATIO` act on any data set; nothing else.
"""

from npt import config, engine, imbalance, trainer

__version__ = "0.1.0"

engine.activate()
config.register()
trainer.register()
imbalance.install()
