"""The base class of all trainers here; a method adds its prompts, and a loss if it differs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dassl.data import DataManager
from dassl.optim import build_lr_scheduler, build_optimizer
from npt import engine
from npt.backbones.following import check_input
from npt.backbones.loading import load_clip
from npt.backbones.openai import openai_clip
from npt.backbones.sources import digest_of
from npt.config import check, keys_of_method
from npt.encoders import ClassPrompts, build_encoders
from npt.errors import NPTError
from npt.host.steps import on_device
from npt.remedied import Remedied
from npt.terms import Batch, logged_figures
from npt.trainer import NPTMixin
from npt.trainers.checkpoints import POINTER, check_origin, checkpoint_file, load_learned, read
from npt.trainers.images import KeptImages
from npt.trainers.prompts import Classes, PromptedCLIP, PromptLearner
from npt.trainers.steps import PromptSteps, grad_scaler

if TYPE_CHECKING:
    from clip.model import CLIP


class PromptTrainer(Remedied, PromptSteps):
    """Trains the prompts of a frozen CLIP."""

    model: Any  # a PromptedCLIP
    model_name = "prompt_learner"  # the folder of checkpoints in OUTPUT_DIR
    key_prefix = ""  # of the parameters' names in checkpoints

    # ---- what a method defines

    @classmethod
    def build_prompts(
        cls, cfg: Any, classes: Classes, clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        """The prompt learner, and the class prompts with the positions of its context vectors."""
        raise NotImplementedError(f"{cls.__name__} does not define build_prompts")

    @classmethod
    def build_clip(cls, cfg: Any, classes: Classes, clip_model: CLIP) -> PromptedCLIP:
        """A CLIP with the prompts of this method for the classes, as a training begins with it."""
        learner, prompts = cls.build_prompts(cfg, classes, clip_model)
        encoders = build_encoders(
            clip_model,
            prompts,
            cfg.MODEL.CLASS_CHUNK,
            cfg.MODEL.PLAIN_ENCODERS,
            cfg.MODEL.LINEAR,
        )
        return PromptedCLIP(learner, *encoders, clip_model.logit_scale)

    # ---- configuration, data and model

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        check(cfg, keys=keys_of_method(self.node))
        if not self.node:
            return
        if self.node not in cfg.TRAINER:
            raise NPTError(
                f"the config has no node TRAINER.{self.node}; import npt before creating the config"
            )
        if cfg.TRAINER[self.node].PREC == "fp16" and not (
            cfg.USE_CUDA and torch.cuda.is_available()
        ):
            raise NPTError(f"TRAINER.{self.node}.PREC is fp16, which needs a GPU; use fp32 or amp")

    def build_data_loader(self) -> None:
        self.dm = dm = DataManager(self.cfg, dataset_wrapper=KeptImages)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self) -> None:
        cfg = self.cfg
        self.classnames = list(self.dm.dataset.classnames)
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip(cfg.MODEL.BACKBONE.NAME, self.device)
        self.backbone_file = digest_of(cfg.MODEL.BACKBONE.NAME)
        check_input(cfg, clip_model.visual.input_resolution)
        if self.precision == "fp16":
            openai_clip().model.convert_weights(clip_model)

        print("Building custom CLIP")
        self.model = self.build_clip(cfg, Classes.of(self.dm.dataset), clip_model)
        learner = self.model.prompt_learner
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        print(f"Parameters to be updated: {', '.join(names) or 'none'}")
        if cfg.MODEL.INIT_WEIGHTS:
            path = cfg.MODEL.INIT_WEIGHTS
            load_learned(learner, read(path), path, f"TRAINER.{self.node}")
        self.model.to(self.device)
        self.scaler = None
        if not names:
            return

        if self.precision == "amp" and self.amp_dtype == torch.float16:
            self.scaler = grad_scaler()
        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        module = nn.ModuleDict({"prompt_learner": learner}) if self.key_prefix else learner
        self.register_model(self.model_name, module, self.optim, self.sched)

    # ---- training

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self, NPTMixin):  # it records its steps itself
            return super().forward_backward(batch)
        batch = {**batch, "label": on_device(batch["label"], self.device)}
        seen: dict[str, Tensor] = {}

        def look(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda encoder, inputs, output: seen.update({name: output.detach()})

        encoders = {"image": self.model.image_encoder, "text": self.model.text_encoder}
        handles = [x.register_forward_hook(look(name)) for name, x in encoders.items()]
        try:
            summary = super().forward_backward(batch)
        finally:
            for handle in handles:
                handle.remove()
        features = self._features(seen, batch["label"])
        figures: dict[str, Any] = {"loss": summary["loss"]}
        if features is not None:
            with suppress(NPTError):  # such as LCD, of one class
                figures |= logged_figures(features)
        self._measure_course.add(self.epoch, figures, features)
        return summary

    def _features(self, seen: dict[str, Tensor], labels: Tensor) -> Batch | None:
        """The outputs of the encoders in a step; None if a method runs them in another way."""
        image, text = seen.get("image"), seen.get("text")
        if image is None or text is None or len(image) != len(labels) or text.dim() not in (2, 3):
            return None
        return Batch(image, text, labels, self.knowledge())

    # ---- checkpoints

    def checkpoint_extra(self) -> dict[str, Any]:
        """The entries of a checkpoint about its origin; `check_origin` reads them."""
        return {
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "backbone_file": self.backbone_file,
            "classnames": self.classnames,
            "train_counts": self.train_counts,
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from `directory`; NPTError if its run has another backbone or other classes."""
        if engine.describe().name != "embedded":  # the embedded one calls check_checkpoint
            for name in self.get_model_names():
                folder = os.path.join(directory, name)
                if os.path.isfile(os.path.join(folder, POINTER)):
                    path = checkpoint_file(folder)
                    self.check_checkpoint(read(path), path)
        return super().resume_model_if_exist(directory)

    def check_checkpoint(self, checkpoint: dict[str, Any], fpath: str) -> None:
        check_origin(checkpoint, fpath, self.checkpoint_extra(), True)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the prompt learner of `epoch`, else the best one, else the newest.

        NPTError if there is no such checkpoint, or it does not fit the model.
        """
        if not directory:
            print("No --model-dir is given: no weights are loaded")
            return
        learner = self.model.prompt_learner
        specific = self.model.text_encoder.class_specific
        for name in self.get_model_names():
            path = checkpoint_file(os.path.join(directory, name), epoch)
            checkpoint = read(path)
            check_origin(checkpoint, path, self.checkpoint_extra(), specific)
            load_learned(learner, checkpoint, path, f"TRAINER.{self.node}")
            if checkpoint.get("classnames") == self.classnames:
                self.train_counts = checkpoint.get("train_counts")
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch")})')
        self._measure_loaded(directory, epoch)
