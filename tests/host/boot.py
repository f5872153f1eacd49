"""Runs a real host's train.py where there is neither a GPU nor a network.

    python boot.py CLIP_FILE ADAPTER train.py ...      (as `python -m npt.run train.py ...`)

Its `clip` takes CLIP_FILE for whatever it would download, and `.cuda()` stays on the CPU. ADAPTER
is an expression of `model` for text features that its text_encoder does not give, or empty.
"""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    clip_file, adapter, script = sys.argv[1:4]
    sys.path[0] = str(Path(script).resolve().parent)  # the host may carry a `clip` of its own
    import clip.clip

    clip.clip._download = lambda *args, **kwargs: clip_file
    if not torch.cuda.is_available():
        for kind in (torch.Tensor, torch.nn.Module):
            kind.cuda = lambda self, *args, **kwargs: self

    import npt
    from npt.run import main

    if adapter:
        trainer = sys.argv[sys.argv.index("--trainer") + 1].removesuffix("NPT")
        texts = eval(f"lambda model: {adapter}")
        npt.register(trainer, features=lambda model, batch: npt.Features(None, texts(model)))
    sys.exit(main(sys.argv[3:]))
