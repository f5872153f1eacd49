"""A data set whose classes depend on the trainer, as in hosts that teach with one trainer."""

from dassl.data.datasets import DATASET_REGISTRY

from .dots import Dots

TEACHER = "KgCoOp"


@DATASET_REGISTRY.register()
class NamedDots(Dots):
    """All eight colours for the trainer TEACHER, the first four for any other."""

    def __init__(self, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASET.SUBSAMPLE_CLASSES = "all" if cfg.TRAINER.NAME == TEACHER else "base"
        super().__init__(cfg)
