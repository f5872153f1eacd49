"""The folder of an export: it gets all of its files, or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from npt.download import digest
from npt.errors import NPTError
from npt.export import onnx, texts
from npt.export.description import describe
from npt.files import read_record, write_record, writing

if TYPE_CHECKING:
    from npt.classifier import Classifier

DESCRIPTION = "classifier.json"


class Format(NamedTuple):
    """write: writes the files into a folder and returns what the description says of them"""

    write: Callable[[Classifier, Path], dict[str, Any]]
    files: tuple[str, ...]


FORMATS = {  # those that are quick first: they may refuse a classifier
    "safetensors": Format(texts.write_features, (texts.FEATURES_FILE,)),
    "prompts": Format(texts.write_prompts, (texts.PROMPTS_FILE,)),
    "onnx": Format(onnx.write_onnx, (onnx.FILE, onnx.WEIGHTS)),
}


def default_formats(classifier: Classifier) -> list[str]:
    """ONNX, and the class features where a class has one whatever the image."""
    return ["onnx"] if classifier.depends_on_image else ["onnx", "safetensors"]


def export(classifier: Classifier, out: Path, formats: Sequence[str]) -> dict[str, Any]:
    """Write a classifier into the folder `out`, and return the content of its classifier.json.

    classifier: on the CPU, in float32
    An earlier export in `out` is replaced when everything has been written and checked; other files
    there are not touched. NPTError if a format cannot hold this classifier, a file with a name of
    the export is there and not of an export, or `out` cannot be written.
    """
    names = [name for name in FORMATS if name in formats]
    earlier = _earlier(out, {file for name in names for file in FORMATS[name].files})
    with _staged(out) as folder:
        content = {name: FORMATS[name].write(classifier, folder) for name in names}
        written = sorted(file.name for file in folder.iterdir())
        content["files"] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
            for name in written
        }
        content = {**describe(classifier), **content}
        write_record(folder / DESCRIPTION, content)
        with writing(out):
            for name in [*written, DESCRIPTION]:  # the description last: it has the digests
                os.replace(folder / name, out / name)
    for name in earlier - set(written):
        with suppress(OSError):
            (out / name).unlink()
    return content


def _earlier(out: Path, names: set[str]) -> set[str]:
    """The files of an earlier export in `out`; NPTError for others in their place."""
    if out.exists() and not out.is_dir():
        raise NPTError(f"{out} is a file: name a folder for the export")
    if not os.path.lexists(out / DESCRIPTION):
        strange = sorted(name for name in names if os.path.lexists(out / name))
        if strange:
            raise NPTError(
                f"{out} has a file {strange[0]} that is not of an export: choose another folder"
            )
        return set()
    try:
        content = read_record(out / DESCRIPTION)
        return {str(name) for name in content["files"]} & _all_files()
    except (NPTError, KeyError, TypeError) as error:
        raise NPTError(
            f"{out / DESCRIPTION} is not, or no longer, that of an export: choose another folder"
        ) from error


def _all_files() -> set[str]:
    return {file for row in FORMATS.values() for file in row.files}


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A temporary folder in `out`, deleted at the end, as are the folders made for it if empty."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            stage = tempfile.TemporaryDirectory(prefix=".export-", dir=out)
        with stage as folder:
            yield Path(folder)
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()
