"""What is known of a CLIP besides its weights, and OpenAI's models. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple

from npt.errors import NPTError

ADDRESS = "https://openaipublic.azureedge.net/clip/models"
VOCABULARY = 49408  # tokens of CLIP's tokenizer
CONTEXT = 77  # tokens of a text, filled up
HEAD = 64  # the width of an attention head in OpenAI's models
TINY = 32  # the image size of "tiny", in pixels


class Unsuitable(NPTError):
    """Why a model is no CLIP of OpenAI's kind, as a part of a sentence."""

    def of(self, source: str) -> NPTError:
        """The whole sentence, for a name or a file."""
        return NPTError(
            f"{source} (MODEL.BACKBONE.NAME) cannot be used: {self}; choose a CLIP with the "
            "encoders of OpenAI's"
        )


class Preprocessing(NamedTuple):
    """How images are prepared for a CLIP.

    size: height and width in pixels
    mean, std: of each channel, by which pixels in [0, 1] are normalised
    interpolation: of the resizing
    unlike: what its training did with images that is not done here, in words; or empty
    """

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    unlike: str = ""

    def keys(self) -> dict[str, object]:
        """The config keys of INPUT that say this, with their values."""
        return {
            "SIZE": (self.size, self.size),
            "PIXEL_MEAN": list(self.mean),
            "PIXEL_STD": list(self.std),
            "INTERPOLATION": self.interpolation,
        }

    def checked(self) -> Preprocessing:
        """Itself; Unsuitable if it is none."""
        for name, values in (("mean", self.mean), ("standard deviation", self.std)):
            numbers = len(values) == 3 and all(isinstance(x, (int, float)) for x in values)
            if not numbers or (name != "mean" and min(values) <= 0):
                raise Unsuitable(f"the {name} of its preprocessing is {list(values)}")
        return self


class Tower(NamedTuple):
    """What the weights of one of the two encoders do not show.

    heads: of attention; 0: as many as have the width 64
    activation: of the MLPs, a key of `npt.backbones.building.ACTIVATIONS`
    eps: of LayerNorm
    """

    heads: int = 0
    activation: str = "quick_gelu"
    eps: float = 1e-5


class Form(NamedTuple):
    """What the weights of a CLIP do not show; the default is that of OpenAI's models.

    preprocessing: None: OpenAI's, with the size that the weights show
    """

    text: Tower = Tower()
    image: Tower = Tower()
    preprocessing: Preprocessing | None = None


OPENAI = Form()


class OpenAI(NamedTuple):
    """A model of OpenAI's: the SHA-256 and the name of its file, and its image size in pixels."""

    sha256: str
    file: str
    size: int = 224


MODELS = {
    "RN50": OpenAI("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
    "RN101": OpenAI("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101.pt"),
    "RN50x4": OpenAI(
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "RN50x4.pt", 288
    ),
    "RN50x16": OpenAI(
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "RN50x16.pt", 384
    ),
    "RN50x64": OpenAI(
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "RN50x64.pt", 448
    ),
    "ViT-B/32": OpenAI(
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"
    ),
    "ViT-B/16": OpenAI(
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"
    ),
    "ViT-L/14": OpenAI(
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"
    ),
    "ViT-L/14@336px": OpenAI(
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "ViT-L-14-336px.pt",
        336,
    ),
}
