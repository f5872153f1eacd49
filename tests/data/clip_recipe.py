"""Small CLIPs for tests: random ones, and the one of the reference arrays in this folder."""

import zlib

import numpy as np
import torch
from clip.model import CLIP

WIDTH, LAYERS, PATCH, IMAGE, EMBED = 128, 4, 8, 32, 64
VOCABULARY, POSITIONS = 49408, 77


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the reference checkpoint, as in OpenAI's files."""
    w = WIDTH
    norm = {"weight": (w,), "bias": (w,)}
    layer = {
        "attn.in_proj_weight": (3 * w, w),
        "attn.in_proj_bias": (3 * w,),
        "attn.out_proj.weight": (w, w),
        "attn.out_proj.bias": (w,),
        "mlp.c_fc.weight": (4 * w, w),
        "mlp.c_fc.bias": (4 * w,),
        "mlp.c_proj.weight": (w, 4 * w),
        "mlp.c_proj.bias": (w,),
        **{f"{ln}.{leaf}": shape for ln in ("ln_1", "ln_2") for leaf, shape in norm.items()},
    }
    out = {
        "positional_embedding": (POSITIONS, w),
        "text_projection": (w, EMBED),
        "logit_scale": (),
        "visual.class_embedding": (w,),
        "visual.positional_embedding": ((IMAGE // PATCH) ** 2 + 1, w),
        "visual.proj": (w, EMBED),
        "visual.conv1.weight": (w, 3, PATCH, PATCH),
        "token_embedding.weight": (VOCABULARY, w),
    }
    for ln in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        out.update({f"{ln}.{leaf}": shape for leaf, shape in norm.items()})
    for tower in ("visual.", ""):
        for i in range(LAYERS):
            prefix = f"{tower}transformer.resblocks.{i}."
            out.update({prefix + key: shape for key, shape in layer.items()})
    return out


SPREAD = {  # standard deviation by the end of the name
    "attn.in_proj_weight": 0.15,
    "attn.out_proj.weight": 0.08,
    "mlp.c_fc.weight": 0.08,
    "mlp.c_proj.weight": 0.04,
    "bias": 0.02,
    "token_embedding.weight": 0.05,
    "visual.positional_embedding": 0.1,
    "positional_embedding": 0.02,
    "class_embedding": 0.1,
    "conv1.weight": 0.05,
    "proj": 0.1,
    "text_projection": 0.1,
}


def values(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """offset + std * normal, rounded to float16; the generator's seed is the CRC of the name."""
    if key == "logit_scale":
        std, offset = 0.0, 4.60546875
    elif "ln_" in key:
        std, offset = (0.1, 1.0) if key.endswith("weight") else (0.05, 0.0)
    else:
        std, offset = next(s for ending, s in SPREAD.items() if key.endswith(ending)), 0.0
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    x = np.asarray(offset + std * rng.standard_normal(shape))
    return torch.from_numpy(x.astype(np.float16).astype(np.float32))


def reference_state_dict() -> dict[str, torch.Tensor]:
    return {key: values(key, shape) for key, shape in shapes().items()}


def random_clip(seed: int, layers: int = 3, vocabulary: int = 64, dtype=torch.float32) -> CLIP:
    """A CLIP of width 64, with weights so large that the attention mask matters; EOT: last id."""
    generator = torch.Generator().manual_seed(seed)
    model = CLIP(
        embed_dim=32, image_resolution=16, vision_layers=layers, vision_width=64,
        vision_patch_size=8, context_length=POSITIONS, vocab_size=vocabulary,
        transformer_width=64, transformer_heads=4, transformer_layers=layers,
    )  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            offset = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            p.copy_(offset + 0.2 * torch.randn(p.shape, generator=generator))
    return model.eval().requires_grad_(False).to(dtype)


def random_prompts(
    seed: int, lengths: list[int], n: int, words: int = 1, vocabulary: int = 64
) -> torch.Tensor:
    """Token ids (K, 77): SOS, n placeholders, `words` common words, a name, ".", EOT, zeros."""
    generator = torch.Generator().manual_seed(seed)
    sos, eot = vocabulary - 2, vocabulary - 1
    common = torch.randint(1, sos, (words,), generator=generator).tolist()
    out = torch.zeros(len(lengths), POSITIONS, dtype=torch.long)
    for k, length in enumerate(lengths):
        name = torch.randint(1, sos, (length,), generator=generator).tolist()
        row = [sos, *[5] * n, *common, *name, 7, eot]
        out[k, : len(row)] = torch.tensor(row)
    return out


def half_runs_on_cpu() -> bool:
    """Whether this torch has float16 kernels for the CPU (torch 2.1 does not)."""
    try:
        torch.nn.functional.conv2d(torch.zeros(1, 1, 2, 2).half(), torch.zeros(1, 1, 1, 1).half())
        torch.nn.functional.linear(torch.zeros(1, 1).half(), torch.zeros(1, 1).half())
    except RuntimeError:
        return False
    return True
