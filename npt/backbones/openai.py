"""OpenAI's package `clip`, even if a host repository shadows it with a changed copy.

Repositories of the CoOp family contain a folder `clip`. In some it is OpenAI's code; in others its
classes have other names, take other arguments or return other features. The trainers of the host
keep using that copy. NPT's own models use it, too, if it computes what OpenAI's does
(`npt.backbones.recognition`), else the first package on `sys.path` that does, which is imported
under a second name. It is imported when it is first needed, that is for a model or tokens of NPT's
own, so everything else works without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from npt.backbones.recognition import check
from npt.errors import NPTError
from npt.randomness import random_state_kept

SECOND_NAME = "npt_openai_clip"  # of OpenAI's package, where `clip` is a changed copy

_lock = threading.Lock()  # of the search, which any thread may start


def openai_clip() -> Any:
    """The package; the same in every call. NPTError if there is none."""
    with _lock:
        return _search()


def is_vit(visual: Any) -> bool:
    """Whether an image encoder of CLIP is a ViT; else it is a ResNet."""
    return hasattr(visual, "class_embedding")


@cache
def _search() -> ModuleType:
    reasons = []
    with warnings.catch_warnings(), random_state_kept():
        warnings.simplefilter("ignore")  # of clip's import, not of the user's code
        for spec in _places():
            try:
                package = importlib.import_module("clip") if spec is None else _load(spec)
                check(package)
                return package
            except Exception as error:  # code of any kind is tried out here
                where = "clip" if spec is None else spec.origin
                reason = (str(error) or type(error).__name__).splitlines()[0]
                reasons.append(f"{where}: {reason[:200]}")
                _forget()
    raise NPTError(
        "OpenAI's package clip, which npt's own models and prompts need, is not installed, or it "
        f"is hidden by a changed copy ({'; '.join(dict.fromkeys(reasons))}); "
        'pip install clip-anytorch "setuptools<81"'
    )


def _places() -> Iterator[ModuleSpec | None]:
    """Where packages `clip` are: None for the one that `import clip` gives, then all others.

    The file of the first one comes last: it may have been changed after its import.
    """
    yield None
    first = getattr(sys.modules.get("clip"), "__file__", None)
    found = {spec.origin: spec for spec in _specs() if spec.origin}
    yield from sorted(found.values(), key=lambda spec: spec.origin == first)


def _specs() -> Iterator[ModuleSpec]:
    for finder in list(sys.meta_path):
        for path in [[entry] for entry in sys.path] if finder is PathFinder else [None]:
            try:
                spec = finder.find_spec("clip", path)
            except Exception:  # another package's finder, which may want other arguments
                continue
            if spec is not None:
                yield spec


def _load(spec: ModuleSpec) -> ModuleType:
    """Import the package of `spec` under the second name."""
    assert spec.origin is not None
    second = importlib.util.spec_from_file_location(
        SECOND_NAME, spec.origin, submodule_search_locations=spec.submodule_search_locations
    )
    if second is None or second.loader is None:
        raise ImportError("it cannot be imported")
    package = sys.modules[SECOND_NAME] = importlib.util.module_from_spec(second)
    second.loader.exec_module(package)
    return package


def _forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == SECOND_NAME]:
        del sys.modules[name]


def __getattr__(name: str) -> Any:
    """Names of the package's module `model`, such as CLIP, imported at their first use."""
    if name in ("CLIP", "VisionTransformer", "build_model", "convert_weights"):
        return getattr(openai_clip().model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
