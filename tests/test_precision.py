"""MODEL.TF32, and the dtype of products."""

import pytest
import torch
from trainer_kit import build, config

from npt.encoders.linear import product_dtype


@pytest.mark.parametrize("usual", ["highest", "medium"])
def test_tf32_is_for_the_runs_that_ask_for_it(monkeypatch, usual):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(usual)
    try:
        seen = []
        for wanted in (False, True, True, False):
            build(config("ZeroshotCLIP", "tiny", "MODEL.TF32", wanted), ["cat", "dog"])
            seen.append(torch.get_float32_matmul_precision())
        assert seen == [usual, "high", "high", usual]
    finally:
        torch.set_float32_matmul_precision(before)


def test_without_a_gpu_tf32_changes_nothing():
    before = torch.get_float32_matmul_precision()
    build(config("ZeroshotCLIP", "tiny", "MODEL.TF32", True), ["cat", "dog"])
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_product_dtype_is_that_of_a_product(dtype, autocast):
    x = torch.ones(2, 2, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert product_dtype(x) == (x @ x).dtype
    assert product_dtype(x.to("meta")) == dtype
