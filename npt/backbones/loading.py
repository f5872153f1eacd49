"""Loading of every kind of CLIP (see `npt.backbones.sources`).

`load_clip` always returns a `clip.model.CLIP`, frozen, in eval mode, in float32, with exactly the
values of the files (`build_model` of the package clip rounds them to float16).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from npt.backbones import hugging_face, openclip, weights
from npt.backbones.building import SCALARS, build, image_size
from npt.backbones.catalog import CONTEXT, OPENAI, Form, Unsuitable
from npt.backbones.kept import kept_or_loaded
from npt.backbones.sources import find
from npt.errors import NPTError

if TYPE_CHECKING:
    from clip.model import CLIP

SIGNS = {  # parts of the names of weights -> why a model that has them is not suitable
    "text_decoder.": "it is a CoCa, whose text encoder has a token of its own and a decoder",
    "logit_bias": "it was trained with a sigmoid (SigLIP), not with CLIP's softmax",
    "vision_model.head.": "it is a SigLIP, which pools with attention",
    "visual.rope": "it is an EVA-CLIP with rotary positions",
    "visual.blocks.": "it is an EVA-CLIP, whose image encoder is not CLIP's ViT",
    "visual.trunk.": "its image encoder is one of timm, not CLIP's ViT or ResNet",
    "text.transformer.encoder.": "its text encoder is one of Hugging Face, not CLIP's",
    "text.transformer.embeddings.": "its text encoder is one of Hugging Face, not CLIP's",
    "bert.": "its text encoder is a BERT",
    "positional_embedding_res": "it is a LongCLIP, whose positions are in two tables",
}


def load_clip(name: str, device: str | torch.device = "cpu") -> CLIP:
    """A frozen CLIP in float32, in eval mode.

    name: see `npt.backbones.sources`
    Nothing in a file is executed, and its checksums, where it has some, are verified. The random
    generator is left as the constructors of OpenAI's package leave it.
    Raises NPTError if there is no such model, it is not of OpenAI's kind, or it cannot be read or
    downloaded.
    """
    source = find(name)
    files = source.files()

    def load() -> CLIP:
        shown = str(files[0]) if len(files) == 1 else name
        state = weights.read(files)
        found = converted(state, shown)
        return build(found, shown, source.form or written(state, found, name))

    return kept_or_loaded(files, source.form, load).to(device)


def image_size_of(file: Path) -> int:
    """The image size in pixels that the weights in a file show. NPTError if they are no CLIP's."""
    shapes = weights.shapes([file])
    try:
        return image_size(shapes)
    except (KeyError, IndexError, ValueError) as error:
        load_clip(str(file))  # says more of what is wrong
        raise NPTError(
            f"{file} (MODEL.BACKBONE.NAME) is not a CLIP's state dict: {error}"
        ) from error


def converted(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A state dict of any layout in OpenAI's. NPTError if it is another model's."""
    for sign, reason in SIGNS.items():
        if any(str(key).startswith(sign) for key in state):
            raise Unsuitable(reason).of(source)
    convert = hugging_face if hugging_face.is_hugging_face(state) else openclip
    try:
        found = convert.converted(state)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise NPTError(
            f"{source} (MODEL.BACKBONE.NAME) is not a CLIP's state dict: {error}"
        ) from error
    positions = found.get("positional_embedding")
    if isinstance(positions, torch.Tensor):  # a text has 77 tokens at most
        found["positional_embedding"] = positions[:CONTEXT]
    return found


def written(state: Mapping[str, Any], found: Mapping[str, Any], name: str) -> Form:
    """The form of weights about which nothing is written, by who wrote them: clip or open_clip.

    state: as in the file, whose order counts; found: in OpenAI's layout
    """
    if hugging_face.is_hugging_face(state):
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) has weights of Hugging Face without their "
            f"{hugging_face.CONFIG}: name the folder that has both"
        )
    if any(key in state for key in SCALARS) or openclip.is_written_by(state, openclip.CLIP_ORDER):
        return OPENAI
    theirs = openclip.is_written_by(state, openclip.OPEN_CLIP_ORDER)
    form = openclip.guessed(found) if theirs or name.endswith(weights.SAFETENSORS) else OPENAI
    taken, other = ("GELU", "-quickgelu") if form != OPENAI else ("QuickGELU", "")
    heads = f" and {form.image.heads} attention heads for images" if form.image.heads else ""
    warnings.warn(
        f"{name} was not written by OpenAI's clip and does not say whether it has GELU or "
        f"QuickGELU: {taken}{heads} are taken; if that is wrong, name its model, such as "
        f"open_clip:ViT-B-16{other}/{name}",
        stacklevel=4,
    )
    return form
