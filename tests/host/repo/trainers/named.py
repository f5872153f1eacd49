"""A host whose code compares the trainer's name with the names it knows."""

from dassl.engine import TRAINER_REGISTRY

from .methods import Base

# Settings of single trainers, which its train.py merges before the command line.
SETTINGS = {"Named": ["TRAINER.HOST.N_CTX", 2]}


@TRAINER_REGISTRY.register()
class Named(Base):
    """The data set gives it fewer classes, and its model is built by name."""

    def build_model(self):
        if self.cfg.TRAINER.NAME != "Named":
            raise ValueError(f"no model for {self.cfg.TRAINER.NAME}")
        super().build_model()
        assert self.model.prompt_learner.ctx.shape[0] == 2

    def test(self, split=None):
        print(f"Test of {self.cfg.TRAINER.NAME}")
        return super().test(split)
