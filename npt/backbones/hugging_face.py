"""CLIPs of Hugging Face's transformers: what their config.json says, and their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from npt.backbones.catalog import VOCABULARY, Form, Preprocessing, Tower, Unsuitable
from npt.backbones.openclip import square

CONFIG = "config.json"
# The preprocessing is in one of them; in the latter under "image_processor".
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"  # after the name of weights that are in several files

# What a config need not say:
TEXT = {"num_attention_heads": 8, "vocab_size": VOCABULARY}
VISION = {"num_attention_heads": 12, "image_size": 224, "num_channels": 3}
END = (2, 49407)  # ids of the last token; 2 stands for "the largest id" in transformers
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic", None: "bicubic"}  # Pillow's numbers
KINDS = {  # of models, by `model_type` -> why they are not suitable
    "siglip": "it is a SigLIP, trained with a sigmoid, with other pooling and another tokenizer",
    "siglip2": "it is a SigLIP, trained with a sigmoid, with other pooling and another tokenizer",
    "chinese_clip": "it is a Chinese-CLIP, whose text encoder is a BERT",
    "altclip": "it is an AltCLIP, whose text encoder is an XLM-R",
    "clipseg": "it is a CLIPSeg, which segments images",
    "clip_text_model": "it is the text encoder alone",
    "clip_vision_model": "it is the image encoder alone",
}


def form(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Form:
    """What config.json and the preprocessing of a model say.

    Unsuitable if it is not a CLIP of OpenAI's kind.
    """
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise Unsuitable(KINDS.get(kind, f"it is a model of the type {kind}, not clip"))
    text, vision = _part(config, "text_config", TEXT), _part(config, "vision_config", VISION)
    if text["vocab_size"] < VOCABULARY:
        raise Unsuitable(
            f"its vocabulary has {text['vocab_size']} tokens, and that of CLIP's tokenizer "
            f"{VOCABULARY}"
        )
    if text.get("eos_token_id", END[1]) not in END:
        raise Unsuitable(f"its texts end with the token {text['eos_token_id']}, not with CLIP's")
    if vision["num_channels"] != 3:
        raise Unsuitable(f"its images have {vision['num_channels']} channels, not 3")
    return Form(_tower(text), _tower(vision), _preprocessing(vision, processor))


def _part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an encoder. In old files it is `text_config_dict`, and then this one counts."""
    old = config.get(f"{name}_dict")
    return {**defaults, **((config.get(name) or {}) if old is None else old)}


def _tower(part: Mapping[str, Any]) -> Tower:
    activation = part.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise Unsuitable(f"the activation of its MLPs is {activation}, not GELU or QuickGELU")
    heads = int(part["num_attention_heads"])
    if heads < 1:
        raise Unsuitable(f"an encoder has {heads} attention heads")
    return Tower(heads, ACTIVATIONS[activation], float(part.get("layer_norm_eps", 1e-5)))


def _preprocessing(vision: Mapping[str, Any], processor: Mapping[str, Any]) -> Preprocessing:
    usual = Preprocessing(square(vision["image_size"]))
    normalises = processor.get("do_normalize", True)
    return Preprocessing(
        usual.size,
        tuple(processor.get("image_mean") or usual.mean) if normalises else (0.0, 0.0, 0.0),
        tuple(processor.get("image_std") or usual.std) if normalises else (1.0, 1.0, 1.0),
        INTERPOLATIONS.get(processor.get("resample"), "bicubic"),
        _unlike(processor, usual.size),
    ).checked()


def _unlike(processor: Mapping[str, Any], pixels: int) -> str:
    """What a preprocessing does that is not done here."""
    size = processor.get("size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    crops = processor.get("do_center_crop", True)
    if processor.get("resample") not in INTERPOLATIONS:
        return f"resized with Pillow's filter {processor['resample']}"
    if not processor.get("do_resize", True):
        return "not resized"
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if abs(factor - 1 / 255) > 1e-6:
        return "not scaled to [0, 1]"
    if isinstance(size, Mapping) and edge is None and not crops:
        return "resized to squares as a whole"
    if isinstance(edge, int) and edge != pixels:
        return f"resized to {edge} pixels before they were cropped to {pixels}"
    return ""


# ---- weights

OUTSIDE = {  # names outside of the layers: theirs -> OpenAI's
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # their spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("text_projection", "visual.proj")
INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
PROJECTIONS = ("q", "k", "v")  # the order of the rows of OpenAI's in_proj
READ_ELSEWHERE = re.compile(r"\.position_ids$|\.self_attn\.[kv]_proj\.(weight|bias)$")
LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_hugging_face(keys: Mapping[str, Any]) -> bool:
    return any(key.startswith(("text_model.", "vision_model.")) for key in keys)


def converted(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of transformers' CLIPModel in OpenAI's layout. KeyError if a part is missing."""
    import torch

    found: dict[str, Any] = {}
    for name, value in state.items():
        layer = LAYER.fullmatch(name)
        if name in OUTSIDE:
            key = OUTSIDE[name]
            found[key] = value.t() if key in TRANSPOSED else value
        elif layer is not None and layer[3] in INSIDE:
            found[f"{_block(layer)}.{INSIDE[layer[3]]}.{layer[4]}"] = value
        elif layer is not None and layer[3] == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", f"{p}_proj")] for p in PROJECTIONS]
            found[f"{_block(layer)}.attn.in_proj_{layer[4]}"] = torch.cat(parts)
        elif not READ_ELSEWHERE.search(name):
            found[name] = value  # clip does not know it, and will say so
    return found


def _block(layer: re.Match[str]) -> str:
    prefix = "visual." if layer[1] == "vision" else ""
    return f"{prefix}transformer.resblocks.{layer[2]}"
