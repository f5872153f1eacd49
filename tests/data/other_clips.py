"""A CLIP of OpenAI's package as the model of another library, with the same weights."""

from typing import Any

from clip.model import CLIP
from torch import Tensor, nn


def in_library(library: str, clip_model: CLIP) -> nn.Module:
    state = {name: value.float() for name, value in clip_model.state_dict().items()}
    if library == "open_clip":
        from open_clip.model import build_model_from_openai_state_dict

        return build_model_from_openai_state_dict(state).float().eval()
    return _of_transformers(clip_model, state).eval()


def _of_transformers(clip_model: CLIP, state: dict[str, Tensor]) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    visual, embed = clip_model.visual, clip_model.visual.output_dim
    text_shape = _shape(clip_model.transformer, embed)
    vision_shape = _shape(visual.transformer, embed)
    words = {"eos_token_id": 49407, "max_position_embeddings": 77, "vocab_size": 49408}
    pixels = {"image_size": visual.input_resolution, "patch_size": visual.conv1.kernel_size[0]}
    config = CLIPConfig(
        text_config=text_shape | words,
        vision_config=vision_shape | pixels,
        projection_dim=embed,
    )
    model = CLIPModel(config)
    text, vision = "text_model", "vision_model"
    new = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        f"{text}.embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{text}.embeddings.position_embedding.weight": state["positional_embedding"],
        f"{vision}.embeddings.class_embedding": state["visual.class_embedding"],
        f"{vision}.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{vision}.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        **_renamed(state, "visual.ln_pre", f"{vision}.pre_layrnorm"),
        **_renamed(state, "visual.ln_post", f"{vision}.post_layernorm"),
        **_renamed(state, "ln_final", f"{text}.final_layer_norm"),
        **_layers(state, "", text, len(clip_model.transformer.resblocks)),
        **_layers(state, "visual.", vision, len(visual.transformer.resblocks)),
    }
    missing = model.load_state_dict(new, strict=False).missing_keys
    assert not [name for name in missing if "position_ids" not in name]
    return model


def _shape(transformer: Any, embed: int) -> dict[str, Any]:
    return {
        "hidden_size": transformer.width,
        "intermediate_size": 4 * transformer.width,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": transformer.resblocks[0].attn.num_heads,
        "hidden_act": "quick_gelu",
        "projection_dim": embed,
    }


def _renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {f"{new}.{leaf}": state[f"{old}.{leaf}"] for leaf in ("weight", "bias")}


def _layers(state: dict[str, Tensor], before: str, tower: str, count: int) -> dict[str, Tensor]:
    names = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    found: dict[str, Tensor] = {}
    for i in range(count):
        old, new = f"{before}transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
        for name, other in names.items():
            found |= _renamed(state, f"{old}.{name}", f"{new}.{other}")
        for leaf in ("weight", "bias"):
            parts = state[f"{old}.attn.in_proj_{leaf}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{new}.self_attn.{letter}_proj.{leaf}"] = part
    return found
