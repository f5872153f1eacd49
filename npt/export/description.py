"""What somebody needs to use an exported classifier without this package: classifier.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from npt import results
from npt.backbones.catalog import MODELS
from npt.backbones.sources import files_of
from npt.download import digest
from npt.export.texts import scale
from npt.version import __version__

if TYPE_CHECKING:
    from npt.classifier import Classifier, SavedRun


def describe(classifier: Classifier) -> dict[str, Any]:
    """The classes, the preprocessing, how probabilities follow, and where all that is from."""
    run = classifier.run
    return {
        "npt": __version__,
        "classes": classifier.classes,
        "preprocessing": preprocessing(run.cfg),
        "scale": scale(classifier),
        "temperature": classifier.temperature,
        "formulas": {
            "logits": "scale * cosine of image_features and class_features",
            "probabilities": "softmax(logits / temperature)",
        },
        "backbone": _backbone(run.cfg.MODEL.BACKBONE.NAME),
        "run": _run(run),
        "precision": "float32",
    }


def preprocessing(cfg: Any) -> list[dict[str, Any]]:
    """The steps from an image file to the input of the encoder, in order, as in a test."""
    options, (height, width) = cfg.INPUT, cfg.INPUT.SIZE
    steps: list[dict[str, Any]] = [
        {"step": "read", "colours": "RGB", "exif_rotation": bool(options.get("EXIF_ROTATE"))},
        {
            "step": "resize",
            "shorter_side": max(height, width),
            "longer_side": "int(shorter_side * longer / shorter), rounded down",
            "interpolation": options.INTERPOLATION,
            "antialias": True,
            "library": "Pillow's Image.resize, of 8-bit values",
        },
        {
            "step": "center_crop",
            "height": height,
            "width": width,
            "offset": "half of the difference, rounded to the nearest, a half to the even number",
        },
        {"step": "scale", "divide_by": 255, "layout": "(3, height, width)"},
    ]
    if "normalize" in options.TRANSFORMS:
        mean, std = list(options.PIXEL_MEAN), list(options.PIXEL_STD)
        steps.append({"step": "normalize", "mean": mean, "std": std})
    if "instance_norm" in options.TRANSFORMS:
        steps.append({"step": "instance_norm", "what": "(x - mean) / (std + 1e-8) per channel"})
    return steps


def _backbone(name: str) -> dict[str, Any]:
    """The CLIP: the name that OpenAI or npt gave it, or its files; and their SHA-256."""
    if name in MODELS:
        return {"name": name, "sha256": MODELS[name].sha256}
    files = [{"file": str(path), "sha256": digest(path)} for path in files_of(name)]
    if name == "tiny":
        return {"name": name, "sha256": files[0]["sha256"]}
    return {"name": Path(name).name, **(files[0] if len(files) == 1 else {"files": files})}


def _run(run: SavedRun) -> dict[str, Any]:
    record = run.record
    found = {
        "folder": str(run.folder.resolve()),
        "result_sha256": digest(run.folder / results.RESULT),
        "npt": record.get("versions", {}).get("npt"),
        **{key: record.get(key) for key in ("trainer", "dataset", "seed", "data")},
    }
    if run.learns:
        file = run.checkpoint_file()
        found["checkpoint"] = {"file": str(Path(file).resolve()), "sha256": digest(Path(file))}
    return found
