"""OpenAI's `clip`, also where a host repository's changed copy comes before it on the path.

MaPLe and its descendants carry a folder `clip` whose models take more arguments than OpenAI's.
Their own trainers go on using it; what npt builds itself comes from the package as it was.
"""

import importlib
import importlib.util
import inspect
import sys
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from npt.errors import NPTError

BESIDE = "npt_openai_clip"  # the name of the package where `clip` is taken by a changed one


def _unchanged(package: ModuleType) -> bool:
    """Whether its models are built of weights alone."""
    model = importlib.import_module(f"{package.__name__}.model")
    return len(inspect.signature(model.build_model).parameters) == 1


def _find() -> ModuleType:
    with warnings.catch_warnings():  # clip's own import of pkg_resources concerns nobody here
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import clip

        if _unchanged(clip):
            return clip
        taken = Path(clip.__file__).resolve()
        for entry in sys.path:
            spec = PathFinder.find_spec("clip", [entry])
            if spec is None or spec.origin is None or Path(spec.origin).resolve() == taken:
                continue
            folder = [str(Path(spec.origin).parent)]
            spec = importlib.util.spec_from_file_location(
                BESIDE, spec.origin, submodule_search_locations=folder
            )
            package = sys.modules[BESIDE] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(package)
            if _unchanged(package):
                return package
    raise NPTError(
        f"the package clip in {taken.parent} is a changed copy, and OpenAI's, which npt's own "
        "trainers need, is not installed; pip install clip-anytorch"
    )


clip = _find()
_model = importlib.import_module(f"{clip.__name__}.model")
CLIP, VisionTransformer = _model.CLIP, _model.VisionTransformer
ResidualAttentionBlock = _model.ResidualAttentionBlock
build_model, convert_weights = _model.build_model, _model.convert_weights
