"""Reading checkpoints of prompt learners: our own files, and those of CoOp and MaPLe."""

import os
from typing import Any

from torch import Tensor, nn

from npt.errors import NPTError

BEST, POINTER = "model-best.pth.tar", "checkpoint"
DERIVED = ("token_prefix", "token_suffix")  # upstream stores token embeddings of its class names


def checkpoint_file(directory: str, epoch: int | None = None) -> str:
    """The file of an epoch; without one, the best model, else the newest."""
    name = BEST if epoch is None else f"model.pth.tar-{epoch}"
    path = os.path.join(directory, name)
    pointer = os.path.join(directory, POINTER)
    if epoch is None and not os.path.isfile(path) and os.path.isfile(pointer):
        with open(pointer, encoding="utf-8") as file:
            path = os.path.join(directory, file.readline().strip())
    if not os.path.isfile(path):
        raise NPTError(f'there is no model at "{path}"; check --model-dir and --load-epoch')
    return path


def learned(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The prompt learner's weights by their own names.

    They stand under these names, or under `prompt_learner.`, alone or among a whole CLIP's.
    """
    state = checkpoint.get("state_dict", checkpoint)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    inner = "prompt_learner."
    if any(key.startswith(inner) for key in state):
        state = {key.removeprefix(inner): v for key, v in state.items() if key.startswith(inner)}
    return {key: value for key, value in state.items() if key not in DERIVED}


def load_learned(learner: nn.Module, checkpoint: dict[str, Any], path: str, node: str) -> None:
    """Put a checkpoint's weights into `learner`, all of them or none.

    node: the config node that shapes the learner, for the error where they do not fit
    """
    found, wanted = learned(checkpoint), learner.state_dict()
    hint = f"compare {node} with that of its training"
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise NPTError(f'"{path}" has no {", ".join(missing)}; {hint}')
    unexpected = sorted(found.keys() - wanted.keys())
    if unexpected:
        raise NPTError(f'"{path}" also has {", ".join(unexpected)}, with no place here; {hint}')
    for key, value in wanted.items():
        old, new = tuple(found[key].shape), tuple(value.shape)
        if old != new:
            raise NPTError(
                f'{key} in "{path}" has the shape {old}, here it is {new}; it belongs to another '
                f"MODEL.BACKBONE.NAME or class list, or {hint}"
            )
    learner.load_state_dict(found)


def check_origin(
    checkpoint: dict[str, Any], path: str, here: dict[str, Any], class_list: bool
) -> None:
    """NPTError where a checkpoint says that it comes from another backbone, or other classes.

    The class list counts only if `class_list`; a shared context fits any.
    """
    backbone = checkpoint.get("backbone")
    if backbone and _stem(backbone) != _stem(here["backbone"]):
        raise NPTError(
            f'"{path}" was trained with MODEL.BACKBONE.NAME {backbone}, not {here["backbone"]}; '
            "a file with the same weights must have the same name"
        )
    classnames = checkpoint.get("classnames")
    if class_list and classnames and list(classnames) != list(here["classnames"]):
        pairs = zip(classnames, here["classnames"], strict=False)
        k, (old, new) = next(
            ((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1]),
            (min(len(classnames), len(here["classnames"])), ("", "")),
        )
        difference = (
            f"class {k} is {old!r} there and {new!r} here" if old != new else "lengths differ"
        )
        raise NPTError(
            f'"{path}" comes from other classes ({difference}); a run is continued, and '
            "class-specific contexts (CSC) are used, only with the class list of its training"
        )


def _stem(backbone: str) -> str:
    """ViT-B/16 and /some/where/ViT-B-16.pt are the same."""
    if os.path.splitext(backbone)[1] in (".pt", ".pth"):
        backbone = os.path.splitext(os.path.basename(backbone))[0]
    return backbone.replace("/", "-")
