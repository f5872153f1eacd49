"""A CLIP is built without random numbers, and leaves the generator as clip's constructor does."""

import pytest
import torch

from npt.backbones.building import build
from npt.backbones.openai import openai_clip

SHAPES = {  # embed, image size, layers, width, patch, context, vocabulary, width, heads, layers
    "ViT": (32, 32, 2, 64, 8, 77, 500, 64, 1, 3),
    "odd sizes": (37, 40, 1, 128, 10, 77, 333, 64, 1, 2),
    "ResNet": (64, 32, (1, 2, 1, 1), 16, None, 77, 500, 64, 1, 2),
    "ViT-B/16, two layers": (512, 224, 2, 768, 16, 77, 49408, 512, 8, 2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_generator_goes_on_as_after_clips_constructor(name):
    torch.manual_seed(5)
    expected = openai_clip().model.CLIP(*SHAPES[name]).eval()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    found = build(expected.state_dict(), "clip.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(x, found.state_dict()[k]) for k, x in expected.state_dict().items())
    size = SHAPES[name][1]
    tokens = torch.tensor([[1, 5, 9, 332, *[0] * 73]])
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(found.encode_text(tokens), expected.encode_text(tokens))
        assert torch.equal(found.encode_image(images), expected.encode_image(images))
    assert found.visual.input_resolution == size and not found.training
