"""Makes what `all.sh --rehearse` runs on, in FOLDER, and prints the KEY VALUE pairs that use it.

    python scripts/_rehearsal.py FOLDER

FOLDER/data has small copies of the layouts of the fifteen data sets (five classes, a few images of
a few pixels; no split files, so these are made). FOLDER/clip.pt is a random CLIP with the layout of
OpenAI's ViT-B/16, cut to two layers, a quarter of its widths and images of 32 pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import _checkout  # noqa: F401
import torch
from clip.model import CLIP

from npt.files import atomic_write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "data"))
import layouts

PIXELS = 32
VIT_B16 = {
    "embed_dim": 128,
    "image_resolution": PIXELS,
    "vision_layers": 2,
    "vision_width": 192,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}


def main(folder: Path) -> None:
    data, weights = folder / "data", folder / "clip.pt"
    for name in layouts.BUILDERS:
        if not (data / layouts.BUILDERS[name][0]).exists():
            layouts.build(name, data)
    if not weights.exists():
        torch.manual_seed(0)
        with atomic_write(weights, "wb") as file:
            torch.save(CLIP(**VIT_B16).half().state_dict(), file)
    pairs = {
        "MODEL.BACKBONE.NAME": weights,
        "INPUT.SIZE": f"({PIXELS},{PIXELS})",
        "OPTIM.MAX_EPOCH": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "USE_CUDA": False,
        **{f"TRAINER.{method}.PREC": "fp32" for method in ("COOP", "COCOOP", "MAPLE")},
    }
    for key, value in pairs.items():
        print(f"{key}\n{value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
