"""The state of a run besides models and optimizers, so that a resumed run gives equal results."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

# Since torch 2.3, torch.amp.GradScaler is the base class of torch.cuda.amp.GradScaler.
GradScaler: Any = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler


def random_state() -> dict[str, Any]:
    """The state of all random generators, as numbers and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        # Reading the state would initialize CUDA, so it is skipped if CUDA is not in use.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state of `random_state`; devices that are not available are skipped."""
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
    """Random generators, the trainer's loss scalers, and the best validation result."""
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
    """Restore a state of `run_state`."""
    for name, scaler_state in state["scalers"].items():
        scaler = getattr(trainer, name, None)
        if isinstance(scaler, GradScaler) and scaler_state:
            scaler.load_state_dict(scaler_state)
    trainer.best_result = state["best_result"]
    set_random_state(state["random"])
