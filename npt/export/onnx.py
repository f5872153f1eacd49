"""A classifier as an ONNX file, checked with ONNX Runtime against the classifier itself."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from npt.errors import NPTError, sentence
from npt.export.graph import Graph
from npt.files import writing
from npt.randomness import random_state_kept
from npt.session import check_names, silent

if TYPE_CHECKING:
    from npt.classifier import Classifier

FILE, WEIGHTS = "model.onnx", "model.onnx.data"
INPUT, OUTPUTS = "images", ("image_features", "logits", "probabilities")
OPSET = 17  # the newest that torch 2.1 can write
LARGEST = 2_000_000_000  # bytes; protobuf, the format of ONNX files, ends at 2 GiB
BATCHES = (1, 2, 7)  # images of the check
# The largest differences that are accepted. Rounding gives 1e-7 to 1e-5 for features. Logits are
# cosines times about 100; 2e-3 in logits moves a probability by less than 0.001.
TOLERANCES = {"image_features": 1e-4, "logits": 2e-3, "probabilities": 1e-3}


def check_packages() -> None:
    """NPTError if a package is missing that is needed to write or to check."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise NPTError(
            f"ONNX needs the package {' and '.join(missing)}, which is not installed: "
            'pip install "npt-clip[export]", or export without onnx (--format safetensors)'
        )


def write_onnx(classifier: Classifier, folder: Path) -> dict[str, Any]:
    """Write model.onnx, of more than 2 GB with its weights in model.onnx.data, and check it.

    Returns what a user of the file has to know, and the largest differences that the check found.
    NPTError if it cannot be written, or differs from the classifier by more than TOLERANCES.
    """
    check_packages()
    with torch.no_grad():
        _write(Graph(classifier).eval(), _image_size(classifier), folder / FILE)
    return {
        "opset": OPSET,
        "input": {"name": INPUT, "shape": ["N", 3, *_image_size(classifier)], "type": "float32"},
        "outputs": list(OUTPUTS),
        "check": check(classifier, folder / FILE),
    }


def _image_size(classifier: Classifier) -> tuple[int, int]:
    height, width = classifier.run.cfg.INPUT.SIZE
    return height, width


def _write(graph: Graph, size: tuple[int, int], file: Path) -> None:
    """Trace the graph with a batch of two images.

    The exporter is the older one of torch's two: it is in all versions since 2.1, and needs no
    further package.
    """
    parameters = inspect.signature(torch.onnx.export).parameters
    older: dict[str, Any] = {"dynamo": False} if "dynamo" in parameters else {}
    try:
        with warnings.catch_warnings(), silent(), writing(file), _folder_in(file.parent) as folder:
            warnings.simplefilter("ignore")  # of what the tracing keeps constant; it is checked
            torch.onnx.export(
                graph,
                (torch.zeros(2, 3, *size),),
                str(folder / FILE),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "N"} for name in (INPUT, *OUTPUTS)},
                opset_version=OPSET,
                **older,
            )
            _move(folder / FILE, file, _size(graph))
    except Exception as error:  # torch's exporter raises many types
        if sentence(error) is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise NPTError(
            f"torch {torch.__version__} cannot write this model as ONNX ({reason}): try another "
            "version of torch, or export without onnx (--format safetensors)"
        ) from error


@contextmanager
def _folder_in(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def _size(graph: Graph) -> int:
    weights = [*graph.parameters(), *graph.buffers()]
    return sum(w.numel() * w.element_size() for w in weights)


def _move(written: Path, file: Path, size: int) -> None:
    """Move what torch wrote; of a large graph, the weights, which it writes to a file each, to one.

    size: bytes of the weights
    """
    if size <= LARGEST:
        os.replace(written, file)
        return
    import onnx

    onnx.save(onnx.load(str(written)), str(file), save_as_external_data=True, location=WEIGHTS)


# --------------------------------------------------------------------------- check
def check(classifier: Classifier, file: Path) -> dict[str, Any]:
    """Compare an ONNX file with its classifier on images, in batches of several sizes.

    Returns the largest absolute difference of each output. NPTError if one is too large.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    pictures, kind = _pictures(classifier, sum(BATCHES))
    batch = classifier.preprocess(pictures)
    features, _, logits = classifier.encode_batch(batch)
    expected = [features, logits, (logits / classifier.temperature).softmax(-1)]
    found = [session.run(list(OUTPUTS), {INPUT: x.numpy()}) for x in batch.split(list(BATCHES))]
    differences = {
        name: float(np.abs(np.concatenate(parts) - true.numpy()).max())
        for name, parts, true in zip(OUTPUTS, zip(*found, strict=True), expected, strict=True)
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCES[name]:  # also NaN
            raise NPTError(
                f"the ONNX file is wrong and was deleted: its {name} differ from those of PyTorch "
                f"by {difference:.2g}, where {TOLERANCES[name]:g} is allowed; try another version "
                f"of torch (here {torch.__version__}) or onnxruntime ({onnxruntime.__version__})"
            )
    return {
        "images": f"{len(pictures)} {kind}",
        "batches": list(BATCHES),
        "largest_differences": differences,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }


def _pictures(classifier: Classifier, count: int) -> tuple[list[Any], str]:
    """Images for the check, and what they are: test images of the run, if they are here."""
    try:
        files = _test_files(classifier.run.cfg)
        chosen = [files[i * len(files) // count] for i in range(count)] if files else []
        classifier.preprocess(chosen)
        return chosen, "test images"
    except Exception as error:  # of the many ways in which data are gone
        if sentence(error) is None:
            raise
    return list(_generated(count)), "generated images"


def _test_files(cfg: Any) -> list[str]:
    """The test images of a run. NPTError or OSError if they are not here."""
    from dassl.data import data_manager

    check_names(cfg)
    with silent(), random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run has said them
        return [item.impath for item in data_manager.build_dataset(cfg).test or ()]


def _generated(count: int) -> Iterator[Image.Image]:
    """Patches of colour with noise, of different shapes."""
    random = np.random.default_rng(0)
    for k in range(count):
        height, width = (48 + 16 * k, 200) if k % 2 else (200, 48 + 16 * k)
        patches = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        colours = np.asarray(Image.fromarray(patches).resize((width, height))).astype(int)
        noise = random.integers(-20, 21, (height, width, 3))
        yield Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))
