"""Reading checkpoints of prompt learners, written by npt or by the original CoOp and MaPLe code."""

import os
import pickle
import warnings
from typing import Any

from torch import Tensor, nn

from dassl.utils import load_checkpoint
from npt.errors import NPTError
from npt.files import check_zip
from npt.finite import not_finite

BEST = "model-best.pth.tar"
POINTER = "checkpoint"  # a file with the name of the newest checkpoint in its first line
DERIVED = ("token_prefix", "token_suffix")  # buffers of the original code: embedded class names


def checkpoint_file(directory: str, epoch: int | None = None) -> str:
    """The path of the checkpoint of `epoch`; without an epoch of the best one, else the newest.

    NPTError if it does not exist.
    """
    name = BEST if epoch is None else f"model.pth.tar-{epoch}"
    path = os.path.join(directory, name)
    pointer = os.path.join(directory, POINTER)
    if epoch is None and not os.path.isfile(path) and os.path.isfile(pointer):
        with open(pointer, encoding="utf-8", errors="replace") as file:
            name = file.readline(1000).strip()
        if "\0" in name or name != os.path.basename(name):
            raise NPTError(
                f'"{pointer}" does not contain the name of a checkpoint: give --load-epoch'
            )
        path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise NPTError(f'there is no model at "{path}"; check --model-dir and --load-epoch')
    return path


def read(path: str) -> dict[str, Any]:
    """The checkpoint in a file. NPTError if it is damaged, or has no state dict."""
    check_zip(path)
    try:
        checkpoint = load_checkpoint(path)
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise NPTError(f'"{path}" is damaged or is not a checkpoint ({error})') from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise NPTError(f'"{path}" has no state dict of a prompt learner: choose another file')
    return checkpoint


def learned(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the prompt learner in a checkpoint, by their names in the prompt learner.

    The names in the checkpoint may have the prefix `prompt_learner.`; then other entries, such as
    the weights of CLIP, are left out.
    """
    state = checkpoint.get("state_dict", checkpoint)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    inner = "prompt_learner."
    if any(key.startswith(inner) for key in state):
        state = {key.removeprefix(inner): v for key, v in state.items() if key.startswith(inner)}
    return {
        key: value
        for key, value in state.items()
        if key not in DERIVED and isinstance(value, Tensor)
    }


def load_learned(learner: nn.Module, checkpoint: dict[str, Any], path: str, node: str) -> None:
    """Load the weights of a checkpoint into `learner`.

    NPTError, and no weight is changed, if the names or shapes differ. node: the config node that
    determines the shapes, for the message
    """
    found, wanted = learned(checkpoint), learner.state_dict()
    bad = not_finite(found, wanted)
    if bad:
        raise NPTError(
            f'"{path}" has values that are infinite or NaN in {", ".join(bad)}: its training has '
            "diverged, train again with a lower OPTIM.LR"
        )
    hint = f"compare {node} here and in the training of that file"
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise NPTError(f'"{path}" has no {", ".join(missing)}; {hint}')
    unexpected = sorted(found.keys() - wanted.keys())
    if unexpected:
        raise NPTError(
            f'"{path}" also has {", ".join(unexpected)}, which this model does not have; {hint}'
        )
    for key, value in wanted.items():
        old, new = tuple(found[key].shape), tuple(value.shape)
        if old != new:
            raise NPTError(
                f'{key} in "{path}" has the shape {old}, but in this model the shape {new}; it '
                f"belongs to another MODEL.BACKBONE.NAME or class list, or {hint}"
            )
    learner.load_state_dict(found)


def check_origin(
    checkpoint: dict[str, Any], path: str, here: dict[str, Any], class_list: bool
) -> None:
    """NPTError if a checkpoint comes from another backbone, or other classes, than `here`.

    class_list: whether to compare the class lists; a context that all classes share fits any
    """
    backbone = checkpoint.get("backbone")
    files = checkpoint.get("backbone_file"), here.get("backbone_file")
    same = all(files) and files[0] == files[1]
    if backbone and not same and _stem(backbone) != _stem(here["backbone"]):
        raise NPTError(
            f'"{path}" was trained with MODEL.BACKBONE.NAME {backbone}, not {here["backbone"]}; '
            "if it is the same model, give its file the same name"
        )
    if all(files) and not same:
        warnings.warn(
            f'"{path}" was trained with another file under the name {here["backbone"]}: unless '
            "both have the same weights, the figures are not those of that training",
            stacklevel=2,
        )
    classnames = checkpoint.get("classnames")
    if class_list and classnames and list(classnames) != list(here["classnames"]):
        pairs = zip(classnames, here["classnames"], strict=False)
        k, (old, new) = next(
            ((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1]),
            (min(len(classnames), len(here["classnames"])), ("", "")),
        )
        difference = (
            f"class {k} is {old!r} there and {new!r} here"
            if old != new
            else f"it has {len(classnames)} classes, not {len(here['classnames'])}"
        )
        raise NPTError(
            f'"{path}" was trained on other classes ({difference}); use the same class list to '
            "resume a run, or to load class-specific contexts (CSC)"
        )


def _stem(backbone: str) -> str:
    """The name of a backbone in a form that is the same for ViT-B/16 and /models/ViT-B-16.pt."""
    if os.path.splitext(backbone)[1] in (".pt", ".pth"):
        backbone = os.path.splitext(os.path.basename(backbone))[0]
    return backbone.replace("/", "-")
