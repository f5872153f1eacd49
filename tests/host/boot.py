"""Runs the train.py of a real host without a GPU and without a network.

    python boot.py CLIPS ADAPTER train.py ...      (like `python -m npt.run train.py ...`)

CLIPS is a folder of CLIPs (`ViT-B-16.pt`), which stand for those that the host would download or
find beside its code. Without a GPU everything stays on the CPU, in single precision, as half is
slow there (HALF=1 keeps it). ADAPTER is an expression of `model`, `batch` and `npt`, the features
for npt.register; it may be empty.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

ABSENT = ("gdown", "langchain", "patchworklib", "plotnine", "wilds", "yagmail")
KEEP_HALF = os.environ.get("HALF") == "1"


class NoGPU(TorchFunctionMode):
    """`.cuda()` and `device="cuda"` mean the CPU; half precision means single precision."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "cuda":
            return args[0]
        if name == "half" and not KEEP_HALF:
            return args[0].float()
        kwargs = {name: on_cpu(x) for name, x in (kwargs or {}).items()}
        found = function(*map(on_cpu, args), **kwargs)
        # hosts change what they moved to the GPU: it must be a copy, as there
        return found.clone() if name == "to" and found is args[0] else found


def on_cpu(x):
    if isinstance(x, (str, torch.device)) and str(x).startswith("cuda"):
        return torch.device("cpu")
    return torch.float32 if x is torch.float16 and not KEEP_HALF else x


class Absent(ModuleType):
    """A package that hosts import for figures, downloads and mails, which no test needs."""

    __all__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name)


def add_absent():
    for name in ABSENT:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = Absent(name)
    if not hasattr(np, "int"):
        np.int = int  # the transforms of Dassl 0.6 use this name of older versions


def replace_loading(clips):
    """Let torch load the CLIPs for files that are missing."""
    load = torch.load

    def load_or_stand_in(file, *args, **kwargs):
        if isinstance(file, (str, Path)) and not Path(file).exists():
            file = clips / Path(file).name
        with torch._C.DisableTorchFunction():
            return load(file, *args, **kwargs)

    def load_archive(file, *args, **kwargs):
        raise RuntimeError("no TorchScript archive")

    torch.load, torch.jit.load = load_or_stand_in, load_archive


def replace_downloads(clips):
    """Replace CLIP's download in all modules of the host, as soon as it reads its arguments.

    A checkpoint of a teacher that is missing is an empty one.
    """
    parse_args = argparse.ArgumentParser.parse_args

    def download(url, *args, **kwargs):
        return str(clips / Path(url).name)

    def reader(load_checkpoint):
        def read(file):
            return load_checkpoint(file) if Path(file).exists() else {"state_dict": {}, "epoch": 1}

        return read

    def replace(*args, **kwargs):
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            if "_download" in names and "_MODELS" in names:
                module._download = download
            if "load_checkpoint" in names and not module.__name__.startswith(("dassl", "npt")):
                module.load_checkpoint = reader(module.load_checkpoint)
        return parse_args(*args, **kwargs)

    argparse.ArgumentParser.parse_args = replace


if __name__ == "__main__":
    clips, adapter, script = Path(sys.argv[1]), *sys.argv[2:4]
    sys.path[0] = str(Path(script).resolve().parent)  # the host may have its own `clip`
    add_absent()
    replace_loading(clips)
    replace_downloads(clips)
    if not torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)  # on CPUs it has no second derivatives
        NoGPU().__enter__()

    import npt
    from npt.run import main

    if adapter:
        trainer = sys.argv[sys.argv.index("--trainer") + 1].removesuffix("NPT")
        features = eval(f"lambda model, batch: {adapter}", {"npt": npt})
        npt.register(trainer, features=features)
    sys.exit(main(sys.argv[3:]))
