"""TF32, in which NVIDIA GPUs since Ampere multiply float32 matrices several times faster."""

import torch

_before: list[str] = []  # torch's own setting, while MODEL.TF32 replaces it


def use_tf32(wanted: bool) -> None:
    """Let GPUs multiply float32 matrices in TF32, or as torch is set to do without us."""
    if wanted and torch.cuda.is_available() and not _before:
        _before.append(torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")
    elif not wanted and _before:
        torch.set_float32_matmul_precision(_before.pop())
