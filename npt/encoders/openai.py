"""OpenAI's package `clip`, even if a host repository shadows it with a modified copy.

MaPLe and the repositories that derive from it contain a folder `clip`, whose models take more
arguments than OpenAI's. The trainers of such a host keep using that copy. The models that npt
builds come from the original package, which is then imported under a second name.
"""

import importlib
import importlib.util
import inspect
import sys
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from npt.errors import NPTError

SECOND_NAME = "npt_openai_clip"  # of OpenAI's package, where `clip` is a modified copy


def _is_original(package: ModuleType) -> bool:
    """Whether `build_model` takes the weights only, as in OpenAI's package."""
    model = importlib.import_module(f"{package.__name__}.model")
    return len(inspect.signature(model.build_model).parameters) == 1


def _import_clip() -> ModuleType:
    """OpenAI's package: `clip` itself, else the first original one further along `sys.path`."""
    with warnings.catch_warnings():  # about clip's import of pkg_resources, not the user's code
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import clip

        if _is_original(clip):
            return clip
        modified = Path(clip.__file__).resolve()
        for entry in sys.path:
            found = PathFinder.find_spec("clip", [entry])
            if found is None or found.origin is None or Path(found.origin).resolve() == modified:
                continue
            folder = [str(Path(found.origin).parent)]
            spec = importlib.util.spec_from_file_location(
                SECOND_NAME, found.origin, submodule_search_locations=folder
            )
            assert spec is not None and spec.loader is not None
            package = sys.modules[SECOND_NAME] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(package)
            if _is_original(package):
                return package
    raise NPTError(
        f"the package clip in {modified.parent} is a changed copy, and OpenAI's, which npt's own "
        "trainers need, is not installed; pip install clip-anytorch"
    )


clip = _import_clip()
_model = importlib.import_module(f"{clip.__name__}.model")
build_model, convert_weights = _model.build_model, _model.convert_weights
if TYPE_CHECKING:
    from clip.model import CLIP, ResidualAttentionBlock, VisionTransformer
else:
    CLIP, VisionTransformer = _model.CLIP, _model.VisionTransformer
    ResidualAttentionBlock = _model.ResidualAttentionBlock
