"""Image features of test sets, computed once for all runs of an experiment.

Zero-shot CLIP, CoOp and CoCoOp, also with NPT, classify by the features of a frozen image encoder:
for the same test images they are the same in every run, whatever the method, seed and ratio. The
first run writes them into a file while it tests; the others read that file instead of the images.

A file is used only where a test gives the same figures to the last digit with it. Therefore

- its name is a checksum of all that the bits of features depend on: weights, transform, images,
  batches, device, versions (`Settings`, `FrozenLoader.key`);
- its content has a checksum of its own;
- a process, before its first use of stored features with some settings, encodes one batch and
  compares the bits.

In every other case the features are computed, and stored again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from dassl.data.data_manager import DatasetWrapper
from npt.encoders.linear import chosen
from npt.errors import NPTError
from npt.files import atomic_write, remove_leftovers
from npt.randomness import random_state_kept
from npt.trainers.prompts import PromptedCLIP, PromptLearner
from npt.version import __version__

FEATURES = "image_features"  # in the output folder of an experiment
LOADERS = ("val_loader", "test_loader")  # of a trainer
CPUINFO = Path("/proc/cpuinfo")
_verified: set[str] = (
    set()
)  # settings whose stored features had the bits that this process computes


def keep_features(trainer: Any, folder: Path) -> Any:
    """Make a built trainer read the features of its test images from `folder`, or store them.

    Training is not affected. Returns the trainer, unchanged if its image features are not frozen
    or its test images are not read as `FrozenLoader` does.
    """
    if not has_frozen_images(trainer):
        return trainer
    try:
        import safetensors  # noqa: F401
    except ImportError:
        warnings.warn(
            "Without safetensors, the image features of test sets are computed in each run: "
            'pip install "npt-clip[report]".',
            stacklevel=2,
        )
        return trainer
    encoder = trainer.model.image_encoder
    trainer.model.image_encoder = Encoded(encoder).eval()
    settings = Settings.of(encoder)
    for name in LOADERS:
        loader = getattr(trainer, name)
        if loader is not None and is_plain(loader):
            setattr(trainer, name, FrozenLoader(loader, encoder, settings, folder))
    return trainer


def has_frozen_images(trainer: Any) -> bool:
    """Whether the features of an image depend on nothing that is trained, nor on the classes."""
    model = getattr(trainer, "model", None)
    return (
        isinstance(model, PromptedCLIP)
        and type(model.prompt_learner).visual is PromptLearner.visual
        and not any(p.requires_grad for p in model.image_encoder.parameters())
    )


def is_plain(loader: Any) -> bool:
    """Whether a loader gives each image once, in order, by one transform."""
    data = loader.dataset
    return (
        isinstance(data, DatasetWrapper)
        and hasattr(data, "described")  # of the embedded engine
        and not data.is_train
        and isinstance(loader.sampler, SequentialSampler)
        and callable(data.transform)
        and not data.return_img0
    )


class Encoded(nn.Module):
    """An image encoder for images (B, 3, H, W) that returns features (B, E) as they are."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor, *prompts: Any) -> Tensor:
        return image if image.dim() == 2 else self.encoder(image, *prompts)


@dataclass(frozen=True)
class Settings:
    """What the bits of the features of a batch of images depend on, but for the batch."""

    weights: str  # a checksum
    encoder: str
    device: str
    versions: str
    threads: int
    numerics: str

    @classmethod
    def of(cls, encoder: nn.Module) -> Settings:
        import PIL
        import torchvision

        backends = torch.backends
        return cls(
            weights_digest(encoder),
            "/".join(type(x).__qualname__ for x in (encoder, *encoder.children())),
            device_name(next(encoder.parameters()).device),
            " ".join([__version__, torch.__version__, torchvision.__version__, PIL.__version__]),
            torch.get_num_threads(),
            f"{torch.get_float32_matmul_precision()} {backends.cudnn.allow_tf32} "
            f"{backends.cudnn.benchmark} {torch.are_deterministic_algorithms_enabled()} "
            f"{backends.mkldnn.is_available()} {chosen(next(encoder.parameters()))}",
        )

    def digest(self) -> str:
        return _digest(asdict(self))


class FrozenLoader:
    """The batches of a loader of test images, with their features (B, E) in place of the images."""

    def __init__(self, loader: Any, encoder: nn.Module, settings: Settings, folder: Path):
        self.loader, self.encoder, self.settings, self.folder = loader, encoder, settings, folder
        self.device = next(encoder.parameters()).device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        key = self.key
        file = None if key is None else self.folder / f"{key[:32]}.safetensors"
        features = None if file is None else self._stored(file)
        if features is not None:
            print(f"Image features of {len(features)} images are those in {file}")
            yield from self._described(features)
            return
        found = []
        for batch in self.loader:
            found.append(self.encoder(batch["img"].to(self.device)))
            yield {**batch, "img": found[-1]}
        if file is not None:
            self._store(file, torch.cat(found))

    @cached_property
    def key(self) -> str | None:
        """A checksum of all that the features depend on; None if an image is not there."""
        data, images = self.loader.dataset, []
        try:
            for item in data.data_source:
                status = os.stat(item.impath)
                images.append((os.path.abspath(item.impath), status.st_size, status.st_mtime_ns))
        except OSError:  # the test says which
            return None
        rotates = data.cfg.INPUT.get("EXIF_ROTATE", False)
        reading = (type(data).__qualname__, repr(data.transform), self.loader.batch_size, rotates)
        return _digest([asdict(self.settings), reading, images])

    def _described(self, features: Tensor) -> Iterator[dict[str, Any]]:
        """The batches without reading an image."""
        data = self.loader.dataset
        for indices in self.loader.batch_sampler:
            batch = self.loader.collate_fn([data.described(i) for i in indices])
            yield {**batch, "img": features[indices]}

    # ---- the file

    def _stored(self, file: Path) -> Tensor | None:
        """Features (N, E) on the device; None, with a warning if the file cannot be used."""
        if not file.exists():
            return None
        try:
            features = read(file, self.key or "")
            if len(features) != len(self.loader.dataset):
                raise ValueError("it is of another number of images")
        except Exception as error:  # damaged bytes lead to many types
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            _warn(f"{file} cannot be used ({why})")
            return None
        features = features.to(self.device)
        if not self._reproduces(features):
            _warn(f"{file} has not the bits that are computed here")
            return None
        return features

    def _reproduces(self, features: Tensor) -> bool:
        """Whether the first batch has the same bits here. Asked once for the same settings."""
        settings = self.settings.digest()
        if settings not in _verified:
            indices = next(iter(self.loader.batch_sampler))
            with random_state_kept():
                images = self.loader.collate_fn([self.loader.dataset[i] for i in indices])["img"]
                here = self.encoder(images.to(self.device))
            if here.dtype != features.dtype or not torch.equal(here, features[indices]):
                return False
            _verified.add(settings)
        return True

    def _store(self, file: Path, features: Tensor) -> None:
        from safetensors.torch import save

        features = features.cpu().contiguous()
        about = {"key": self.key or "", "sha256": tensor_digest(features)}
        try:
            remove_leftovers(self.folder)
            with atomic_write(file, "wb") as stream:
                stream.write(save({"features": features}, about))
        except (NPTError, OSError) as error:
            warnings.warn(f"Image features are not kept: {error}", stacklevel=3)


def read(file: Path, key: str) -> Tensor:
    """The features (N, E) in a file. Exceptions of many types if it is damaged or another's."""
    from safetensors import safe_open

    if not file.is_file():  # such as a pipe
        raise ValueError("it is not a file")
    with safe_open(str(file), "pt") as opened:
        about, features = opened.metadata() or {}, opened.get_tensor("features")
    if about.get("key") != key:
        raise ValueError("it is of other images or settings")
    if about.get("sha256") != tensor_digest(features):
        raise ValueError("it is damaged")
    return features


def _warn(why: str) -> None:
    warnings.warn(f"{why}: the image features are computed again.", stacklevel=4)


# --------------------------------------------------------------------------- checksums
def _digest(content: Mapping[str, Any] | list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """A checksum of the bytes, the shape and the dtype of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(encoder: nn.Module) -> str:
    """A checksum of the names and values of all weights."""
    tensors = {name: tensor_digest(x) for name, x in encoder.state_dict().items()}
    forms = {name: _form(module) for name, module in encoder.named_modules()}
    return _digest({"tensors": tensors, "forms": forms})


def _form(module: nn.Module) -> list[str]:
    """What a module computes besides its weights: QuickGELU or GELU, heads, epsilons, strides."""
    return [type(module).__name__, module.extra_repr(), str(getattr(module, "num_heads", ""))]


def device_name(device: torch.device) -> str:
    """The kind of device, and its model where that is known."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {platform.machine()} {capability}{model}"
