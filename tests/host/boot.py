"""Runs the train.py of a real host without a GPU and without a network.

    python boot.py CLIP_FILE CLIPS ADAPTER train.py ...      (like `python -m npt.run train.py ...`)

The host's modules CLIPS, such as "clip.clip", load CLIP_FILE instead of any download, and `.cuda()`
does nothing without a GPU. ADAPTER is a Python expression that computes the text features from
`model`, or empty.
"""

import importlib
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    clip_file, clips, adapter, script = sys.argv[1:5]
    sys.path[0] = str(Path(script).resolve().parent)  # the host may have its own `clip`
    for name in clips.split():
        importlib.import_module(name)._download = lambda *args, **kwargs: clip_file
    if not torch.cuda.is_available():
        for kind in (torch.Tensor, torch.nn.Module):
            kind.cuda = lambda self, *args, **kwargs: self

    import npt
    from npt.run import main

    if adapter:
        trainer = sys.argv[sys.argv.index("--trainer") + 1].removesuffix("NPT")
        texts = eval(f"lambda model: {adapter}")
        npt.register(trainer, features=lambda model, batch: npt.Features(None, texts(model)))
    sys.exit(main(sys.argv[4:]))
