"""What a run needs, beside models and optimizers, to go on as if it had never stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

try:
    from torch.amp import GradScaler  # the base of the one in torch.cuda.amp, since torch 2.3
except ImportError:  # pragma: no cover
    from torch.cuda.amp import GradScaler


def random_state() -> dict[str, Any]:
    """The state of every random generator, as numbers and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        # not where no GPU is in use: asking would start all of them
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave; devices that are not there now are skipped."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = np.asarray(keys, dtype=np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for i, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, i)


def run_state(trainer: Any) -> dict[str, Any]:
    """Random generators, loss scalers held by the trainer, and the best validation result."""
    return {
        "random": random_state(),
        "scalers": {
            name: value.state_dict()
            for name, value in vars(trainer).items()
            if isinstance(value, GradScaler)
        },
        "best_result": float(getattr(trainer, "best_result", -np.inf)),
    }


def set_run_state(trainer: Any, state: dict[str, Any]) -> None:
    """Put back what `run_state` gave."""
    for name, scaler_state in state["scalers"].items():
        scaler = getattr(trainer, name, None)
        if isinstance(scaler, GradScaler) and scaler_state:
            scaler.load_state_dict(scaler_state)
    trainer.best_result = state["best_result"]
    set_random_state(state["random"])
