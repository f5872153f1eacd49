"""The classifier of a trained run, for notebooks and programs: `load`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from npt.backbones.loading import load_clip
from npt.backbones.openai import openai_clip
from npt.backbones.sources import digest_of
from npt.class_names import warn_of_one_prompt
from npt.classifier.images import is_one, listed, tensors
from npt.classifier.saved import SavedRun
from npt.errors import InvalidArgument, NPTError
from npt.randomness import random_state_kept
from npt.session import silent

if TYPE_CHECKING:
    from clip.model import CLIP

    from npt.trainers.prompts import Classes, PromptedCLIP

_ONE_AT_A_TIME = threading.RLock()  # threads share the random state and the output of a process


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the best first, with their probabilities."""

    classes: list[str]
    probabilities: list[float]

    @property
    def best(self) -> str:
        return self.classes[0]


class Encoded(NamedTuple):
    """What a model makes of N images; float32, on the CPU."""

    images: Tensor  # (N, E) features, of length 1
    texts: Tensor  # (K, E) features, of length 1; (N, K, E) if each image has its own
    logits: Tensor  # (N, K)


def load(
    run: str | os.PathLike[str],
    device: str | torch.device | None = None,
    backbone: str = "",
) -> Classifier:
    """The classifier of a run: its prompts in a frozen CLIP, for its classes.

        classifier = npt.load("output/mine")
        classifier.predict("photo.jpg").best

    run: the folder of a training, or of a test with other classes (`--eval-only --model-dir`)
    device: default: the GPU if there is one, else the CPU
    backbone: the path of CLIP's weights, if they are not where the training had them

    The random state of the process is not changed. NPTError if the folder is not that of a run of
    this package, its model is gone or damaged, or CLIP cannot be loaded.
    """
    saved = SavedRun.open(run, backbone)
    place = _device(device)
    name = saved.cfg.MODEL.BACKBONE.NAME
    try:
        with _ONE_AT_A_TIME, random_state_kept():
            clip_model = load_clip(name, place)
    except NPTError as error:
        if os.path.isabs(name) and not os.path.exists(name):
            raise NPTError(
                f"the run in {saved.folder} was trained on the CLIP {name}, which is not here: "
                "give the place of that file on this machine (backbone, --backbone)"
            ) from error
        raise
    if saved.learns and saved.cfg.TRAINER[saved.method.node].PREC == "fp16" and place.type != "cpu":
        openai_clip().model.convert_weights(clip_model)  # as in the training
    return Classifier(saved, clip_model, saved.classes, place)


def _device(name: str | torch.device | None) -> torch.device:
    """NPTError for a device that this machine or this PyTorch does not have."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidArgument(
            f"the device {name} cannot be used here ({str(error).strip().splitlines()[0]}): give "
            "another one, such as cpu"
        ) from error
    return device


class Classifier:
    """Classifies images by a run's prompts.

    run: the run as its folder has it; `run.record` is its result.json
    classes: the class names, in the order of the labels
    temperature: by which logits are divided before the softmax, see `SavedRun.temperature`; 1 for
        other classes than those of the run
    model: the frozen CLIP with the prompts; `clip_model` is that CLIP
    template: of prompts that are written by hand

    Images are paths, PIL images, arrays or tensors, one or a list of them; see
    `npt.classifier.images`. Results are float32 tensors on the CPU.
    """

    def __init__(self, run: SavedRun, clip_model: CLIP, classes: Classes, device: torch.device):
        self.run, self.device = run, device
        self.classes = list(classes.names)
        self.temperature = run.temperature if self.classes == run.classes.names else 1.0
        self.clip_model, self.template = clip_model, classes.template
        self.model = _prompted(run, clip_model, classes).to(device).eval()
        self._transform = _transform(run.cfg)

    def predict(self, images: Any, k: int = 3) -> Any:
        """The `k` most probable classes of each image, or all classes if there are fewer.

        Returns a Prediction for one image, a list of Predictions for several. Probabilities are the
        softmax over all classes of logits / temperature.
        """
        found = self._best(self.probabilities(images), k)
        return found[0] if is_one(images) else found

    def predict_batch(self, batch: Tensor, k: int = 3) -> list[Prediction]:
        """As `predict`, of images (N, 3, H, W) that `preprocess` has made, in one pass."""
        with torch.no_grad():
            logits = self.model(batch.to(self.device)).float().cpu()
        return self._best((logits / self.temperature).softmax(-1), k)

    @torch.no_grad()
    def encode_batch(self, batch: Tensor) -> Encoded:
        """Features and logits of images (N, 3, H, W) that `preprocess` has made, in one pass."""
        images = self.model.encode_images(batch.to(self.device))
        texts = self.model.encode_texts(images)
        logits = self.model.classify(images, texts)
        return Encoded(*(x.float().cpu() for x in (images, texts, logits)))

    def _best(self, probabilities: Tensor, k: int) -> list[Prediction]:
        try:
            wanted = index(k)
        except TypeError as error:
            raise InvalidArgument(f"k is {k!r}: it must be a number of classes") from error
        if wanted < 1:
            raise InvalidArgument(f"k is {k}: ask for at least one class")
        top = probabilities.topk(min(wanted, len(self.classes)))
        return [
            Prediction([self.classes[label] for label in labels], values)
            for labels, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def probabilities(self, images: Any) -> Tensor:
        """Probabilities (N, K) of N images."""
        return (self.logits(images) / self.temperature).softmax(-1)

    def logits(self, images: Any) -> Tensor:
        """CLIP's logits (N, K) of N images: cosines times its scale, about 100."""
        return self._of_batches(images, self.model, (len(self.classes),))

    def image_features(self, images: Any) -> Tensor:
        """Image features (N, E), of length 1, of N images."""
        width = int(self.clip_model.visual.output_dim)
        return self._of_batches(images, self.model.encode_images, (width,))

    @property
    def text_features(self) -> Tensor:
        """Class features (K, E), of length 1.

        NPTError for CoCoOp, whose class texts are others for every image: see `texts_of`.
        """
        texts = self._texts_without_image()
        if texts.dim() == 3:
            raise NPTError(
                "the class texts of CoCoOp depend on the image, so there are no text_features of a "
                "class alone: use texts_of(images)"
            )
        return texts.float().cpu()

    def texts_of(self, images: Any) -> Tensor:
        """Class features (N, K, E), of length 1, as they are for each of N images."""
        width = int(self.clip_model.visual.output_dim)

        def texts(batch: Tensor) -> Tensor:
            found = self.model.encode_texts(self.model.encode_images(batch))
            return found if found.dim() == 3 else found.expand(len(batch), *found.shape)

        return self._of_batches(images, texts, (len(self.classes), width))

    @property
    def depends_on_image(self) -> bool:
        """Whether every image has class texts of its own (CoCoOp)."""
        return self._texts_without_image().dim() == 3

    @torch.no_grad()
    def _texts_without_image(self) -> Tensor:
        """Class features (K, E), or (1, K, E) where an image, here none, has a part in them."""
        width = int(self.clip_model.visual.output_dim)
        return self.model.encode_texts(torch.zeros(1, width, device=self.device))

    def with_classes(self, names: Sequence[str]) -> Classifier:
        """A classifier of other classes, by the same prompts and the same CLIP.

        names: the class names, as a prompt names them ("golden retriever")
        NPTError for no names, for a name that CLIP cannot read, and for class-specific contexts
        (CoOp with CSC), which were learned for the classes of the training alone.
        """
        from npt.trainers.prompts import Classes

        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InvalidArgument(f"the class names are {names!r}: give a list of names")
        classes = Classes(list(names), self.template)
        if not classes.names:
            raise NPTError("there is no class name in the list: give one at least")
        for number, name in enumerate(classes.names):
            if not isinstance(name, str) or not name.strip():
                raise NPTError(f"class name {number} is {name!r}: it must be a text, not empty")
        warn_of_one_prompt(classes.names)
        return Classifier(self.run, self.clip_model, classes, self.device)

    def preprocess(self, images: Any) -> Tensor:
        """Images as the encoder takes them, (N, 3, H, W) of float32: `predict` does it itself."""
        return torch.stack(list(self._tensors(images)))

    def _tensors(self, images: Any) -> Iterator[Tensor]:
        upright = self.run.cfg.INPUT.get("EXIF_ROTATE", False)
        return tensors(listed(images), self._transform, upright)

    @torch.no_grad()
    def _of_batches(
        self, images: Any, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        """`function` of batches of preprocessed images, in one tensor; `shape` is that of a row."""
        found = [
            function(batch.to(self.device)).float().cpu()
            for batch in _batches(self._tensors(images), self.batch_size)
        ]
        return torch.cat(found) if found else torch.empty(0, *shape)

    @property
    def batch_size(self) -> int:
        """Images in one pass, as in the tests of the run."""
        return int(self.run.cfg.DATALOADER.TEST.BATCH_SIZE)


def _batches(images: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _prompted(run: SavedRun, clip_model: CLIP, classes: Classes) -> PromptedCLIP:
    """The prompts of a run for `classes`, with the weights of its checkpoint."""
    from npt.trainers.checkpoints import check_origin, load_learned

    with (
        _ONE_AT_A_TIME,
        silent(),
        random_state_kept(),
    ):  # random prompts, which the checkpoint replaces
        model = run.method.build_clip(run.cfg, classes, clip_model)
    if run.learns:
        name = run.cfg.MODEL.BACKBONE.NAME
        here = {
            "backbone": name,
            "backbone_file": digest_of(name),
            "classnames": classes.names,
        }
        checkpoint, path = run.checkpoint()
        check_origin(checkpoint, path, here, bool(model.text_encoder.class_specific))
        load_learned(model.prompt_learner, checkpoint, path, f"TRAINER.{run.method.node}")
    return model


def _transform(cfg: Any) -> Callable[[Any], Tensor]:
    """The preprocessing of a test; NPTError if the run had none."""
    from dassl.data.transforms import build_transform

    with _ONE_AT_A_TIME, silent():
        transform = build_transform(cfg, is_train=False)
    if transform is None:
        raise NPTError("the run has INPUT.NO_TRANSFORM True, so it has no preprocessing to repeat")
    return transform
