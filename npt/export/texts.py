"""The class features of a classifier, and its prompts, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npt.errors import NPTError
from npt.export.graph import class_prompts
from npt.files import atomic_write

if TYPE_CHECKING:
    from npt.classifier import Classifier

FEATURES_FILE, PROMPTS_FILE = "class_features.safetensors", "prompts.safetensors"


def write_features(classifier: Classifier, folder: Path) -> dict[str, Any]:
    """Write class_features (K, E), of length 1, with what turns cosines into probabilities.

    NPTError for CoCoOp, whose class features are others for every image.
    """
    if classifier.depends_on_image:
        raise NPTError(
            f"{classifier.run.record['trainer']} makes other class features for every image, so "
            "there are none to export: use --format onnx, which has its text encoder in the graph"
        )
    tensors = {"class_features": classifier.text_features}
    _write(folder / FEATURES_FILE, tensors, classifier)
    return {"tensors": _shapes(tensors)}


def write_prompts(classifier: Classifier, folder: Path) -> dict[str, Any]:
    """Write the prompts for the text encoder of the same CLIP in another library.

    token_ids (K, 77), the placeholders of the context among them; context (n, D), or (K, n, D)
    class-specific, to put at the positions (K, n) of the token embeddings. Without a context
    (zero-shot CLIP) only token_ids.
    NPTError for prompts that are more than an input of the text encoder (MaPLe, CoCoOp).
    """
    run, learner = classifier.run, classifier.model.prompt_learner
    refused = {
        "has prompts in the image encoder": _in_image_encoder(learner),
        "makes another context for every image": classifier.depends_on_image,
    }
    with torch.no_grad():
        context, deep = learner(torch.zeros(1, classifier.clip_model.visual.output_dim))
    refused["has prompts in deeper layers of the text encoder"] = bool(deep)
    for why, applies in refused.items():
        if applies:
            raise NPTError(
                f"{run.record['trainer']} {why}, which the CLIP of Hugging Face and open_clip "
                "cannot take without changes to their code: use --format onnx"
            )
    prompts = class_prompts(classifier)
    tensors = {"token_ids": prompts.tokens.long()}
    if context is not None and prompts.slots is not None:
        tensors |= {"context": context.float(), "positions": prompts.slots}
    _write(folder / PROMPTS_FILE, tensors, classifier)
    return {"tensors": _shapes(tensors)}


def _in_image_encoder(learner: Any) -> bool:
    with torch.no_grad():
        return learner.visual()[0] is not None


def _write(file: Path, tensors: dict[str, Tensor], classifier: Classifier) -> None:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise NPTError(
            f"{file.name} needs the package safetensors, which is not installed: "
            'pip install "npt-clip[export]", or export without it (--format onnx)'
        ) from error
    about = {
        "classes": json.dumps(classifier.classes),
        "scale": repr(scale(classifier)),
        "temperature": repr(classifier.temperature),
    }
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
    with atomic_write(file, "wb") as stream:
        stream.write(content)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def scale(classifier: Classifier) -> float:
    """By which cosines are multiplied to get logits."""
    return classifier.model.logit_scale.exp().item()
