"""CLIPs of open_clip: what its configs say, and its layout of the weights.

open_clip's classes have many options; a config names those that differ from its defaults. A model
is one of OpenAI's kind if it uses none of those that change what is computed. Its activation is
GELU unless the config, or the tag of the weights, has quick_gelu.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from npt.backbones.catalog import HEAD, VOCABULARY, Form, Preprocessing, Tower, Unsuitable

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HEADS = {1280: 80, 1408: 88, 1664: 104}  # widths of ViTs whose heads are not 64 wide
FREE = {  # options that change nothing in a test, or that the weights show
    *("layers", "width", "mlp_ratio", "patch_size", "image_size", "context_length", "vocab_size"),
    *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "pad_id"),
    *("eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "head_width", "heads"),
    *("act_kwargs", "norm_kwargs", "timm_model_pretrained", "timm_pool", "timm_proj"),
    *("timm_proj_bias", "timm_drop", "timm_drop_path", "block_type"),
}
DEFAULTS = {"pos_embed_type": "learnable", "proj_type": "linear"}  # else: False, None or nothing
POOLS = {"text_cfg": "argmax", "vision_cfg": "tok"}
REASONS = {  # an option -> why a model with it is not suitable; {} is its value
    "multimodal_cfg": "it is a CoCa, whose text encoder has a token of its own and a decoder",
    "timm_model_name": "its image encoder is {} of timm, not CLIP's ViT or ResNet",
    "hf_model_name": "its text encoder is {} of Hugging Face, not CLIP's",
    "hf_tokenizer_name": "its texts are read by the tokenizer {}, not by CLIP's",
    "init_logit_bias": "it was trained with a sigmoid (SigLIP), not with CLIP's softmax",
    "no_causal_mask": "its text encoder is not causal",
    "vocab_size": f"its vocabulary has {{}} tokens, and that of CLIP's tokenizer {VOCABULARY}",
}
IN_MODEL = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "cast_dtype"),
    *("init_logit_scale", "nonscalar_logit_scale", "output_dict"),
}
RESIZING = {  # `resize_mode` -> what it does that is not done here
    "shortest": "",
    "squash": "resized to squares as a whole",
    "longest": "resized by their longer side and filled up",
}


def form(
    model: Mapping[str, Any], preprocess: Mapping[str, Any], quick: bool | None = None
) -> Form:
    """What a model's config and the preprocessing of its weights say.

    quick: whether the weights were trained with QuickGELU; None: as the config says
    Unsuitable if it is not a CLIP of OpenAI's kind.
    """
    for option, value in _unsuitable(model):
        reason = REASONS.get(option, f"its option {option} is {{}}, and CLIP has no such thing")
        raise Unsuitable(reason.format(value))
    quick = bool(model.get("quick_gelu")) if quick is None else quick
    text, vision = model.get("text_cfg", {}), model.get("vision_cfg", {})
    resnet = isinstance(vision.get("layers", 12), (list, tuple))
    width = int(vision.get("width", 768)) * (32 if resnet else 1)  # of what attention reads
    size = square(vision.get("image_size", 224))  # open_clip, too, ignores that of `preprocess`
    usual = Preprocessing(size)
    return Form(
        _tower(text, int(text.get("heads", 8)), quick),
        _tower(vision, width // int(vision.get("head_width", HEAD)), quick),
        Preprocessing(
            size,
            tuple(preprocess.get("mean") or usual.mean),
            tuple(preprocess.get("std") or usual.std),
            preprocess.get("interpolation") or usual.interpolation,
            RESIZING[preprocess.get("resize_mode") or "shortest"],
        ).checked(),
    )


def square(size: Any) -> int:
    """An image size, a number or (height, width), as one number. Unsuitable if they differ."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if height != width:
        raise Unsuitable(f"its images have {height} x {width} pixels, and only squares can be used")
    return int(height)


def _unsuitable(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of a model, with their values, that change what is computed."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for option in ("multimodal_cfg", "init_logit_bias"):
        if model.get(option) is not None:
            yield option, model[option]
    if text.get("vocab_size", VOCABULARY) != VOCABULARY:
        yield "vocab_size", text["vocab_size"]
    for name, options in (("vision_cfg", vision), ("text_cfg", text)):
        plain = {**DEFAULTS, "pool_type": POOLS[name]}
        for option, value in sorted(options.items(), key=lambda item: item[0] not in REASONS):
            if option not in FREE and value and value != plain.get(option):
                yield option, value
    for option, value in model.items():
        if option not in IN_MODEL and value:
            yield option, value


def _tower(options: Mapping[str, Any], heads: int, quick: bool) -> Tower:
    activation = "quick_gelu" if quick else "gelu"
    how = options.get("act_kwargs") or {}
    if how.get("approximate") == "tanh" and not quick:
        activation = "gelu_tanh"
    return Tower(heads, activation, (options.get("norm_kwargs") or {}).get("eps", 1e-5))


# ---- weights


def converted(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of open_clip in OpenAI's layout, which differs in names and shapes only."""
    found = {}
    for key, value in state.items():
        key = key.removeprefix("text.")  # of a model with `custom_text`
        if key != "attn_mask":  # old versions kept it with the weights
            found[key] = value.reshape(()) if key == "logit_scale" else value
    linear = found.pop("text_projection.weight", None)  # in a model with `proj_bias`
    if linear is not None:
        found["text_projection"] = linear.t()
    return found


# The first modules of a layer, in the order of their names in a state dict:
CLIP_ORDER = ("attn", "ln_1", "mlp", "ln_2")
OPEN_CLIP_ORDER = ("ln_1", "attn", "ln_2", "mlp")


def is_written_by(keys: Iterable[str], order: Sequence[str]) -> bool:
    """Whether the first layer of texts in a state dict has its modules in this order."""
    layer = re.compile(r"(?:text\.)?transformer\.resblocks\.0\.(\w+)\.")
    modules = dict.fromkeys(found[1] for key in keys if (found := layer.match(str(key))))
    return list(modules) == list(order)


def guessed(state: Mapping[str, Any]) -> Form:
    """The form of a state dict of open_clip without a config: that of its usual models."""
    weight = state.get("visual.class_embedding")
    width = 0 if weight is None else len(weight)
    heads = width // HEADS.get(width, HEAD)
    return Form(Tower(activation="gelu"), Tower(heads, "gelu"))
