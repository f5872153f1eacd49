"""`build_transform`: the torchvision pipeline of INPUT.TRANSFORMS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dassl.utils.errors import InvalidValue, UserError

# The allowed names in INPUT.TRANSFORMS, in the order in which they are applied in training.
# center_crop is part of every test pipeline and has no effect in training.
AVAI_CHOICES = [
    "random_translation",
    "random_crop",
    "random_resized_crop",
    "random_flip",
    "randaugment",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    "cutout",
    "normalize",
    "gaussian_noise",
    "instance_norm",
    "center_crop",
]


def __getattr__(name: str) -> Any:
    if name == "INTERPOLATION_MODES":
        from torchvision.transforms import InterpolationMode

        return {
            "bilinear": InterpolationMode.BILINEAR,
            "bicubic": InterpolationMode.BICUBIC,
            "nearest": InterpolationMode.NEAREST,
        }
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def interpolation_mode(cfg):
    """torchvision's constant for INPUT.INTERPOLATION. InvalidValue if it is unknown."""
    modes = __getattr__("INTERPOLATION_MODES")
    if cfg.INPUT.INTERPOLATION not in modes:
        raise InvalidValue(
            f'INPUT.INTERPOLATION is "{cfg.INPUT.INTERPOLATION}": use one of {", ".join(modes)}'
        )
    return modes[cfg.INPUT.INTERPOLATION]


def image_size(cfg) -> tuple[int, int]:
    """Height and width from INPUT.SIZE. InvalidValue if it is not two numbers above 0."""
    size = tuple(cfg.INPUT.SIZE)
    if len(size) != 2 or min(size) < 1:
        raise InvalidValue(f"INPUT.SIZE is {size}: give height and width, such as (224, 224)")
    return size


def blur_kernel(cfg) -> int:
    """INPUT.GB_K. InvalidValue if the image is too small for it: its border is mirrored."""
    kernel, least = cfg.INPUT.GB_K, min(image_size(cfg))
    if kernel // 2 >= least:
        raise InvalidValue(
            f"INPUT.GB_K is {kernel}, but images of INPUT.SIZE {image_size(cfg)} take a blur of at "
            f"most {2 * least - 1}: lower it"
        )
    return kernel


class Random2DTranslation:
    """With probability `p`, enlarge by an eighth and crop a random (height, width) region.

    Otherwise resize to (height, width).
    """

    def __init__(self, height: int, width: int, p: float, interpolation):
        self.size = (height, width)
        self.p = p
        self.interpolation = interpolation

    def __call__(self, image):
        from torchvision.transforms import functional as F

        height, width = self.size
        if torch.rand(()).item() >= self.p:
            return F.resize(image, [height, width], self.interpolation)
        tall, wide = round(height * 1.125), round(width * 1.125)
        image = F.resize(image, [tall, wide], self.interpolation)
        top = int(torch.randint(tall - height + 1, ()))
        left = int(torch.randint(wide - width + 1, ()))
        return F.crop(image, top, left, height, width)


class RandomCrop:
    """Crop a random (height, width) region of the image with a black frame of `padding` pixels."""

    def __init__(self, height: int, width: int, padding: int):
        from torchvision.transforms import RandomCrop as Crop

        self.size = (height, width)
        self.padding = padding
        self.crop = Crop(self.size, padding=padding)

    def __call__(self, image):
        width, height = image.size
        frame = 2 * self.padding
        if height + frame < self.size[0] or width + frame < self.size[1]:
            raise InvalidValue(
                f"INPUT.TRANSFORMS has random_crop, but an image of {height}x{width} pixels, "
                f"padded by {self.padding}, is smaller than INPUT.SIZE {self.size}: use "
                "random_resized_crop"
            )
        return self.crop(image)


class Cutout:
    """Set `n_holes` random squares with sides of `length` pixels to zero in an image (C, H, W)."""

    def __init__(self, n_holes: int = 1, length: int = 16):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        image = image.clone()
        half = self.length // 2
        for _ in range(self.n_holes):
            y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
            image[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return image


class GaussianNoise:
    """With probability `p`, add Gaussian noise to an image tensor."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5):
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if torch.rand(()).item() >= self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


class InstanceNormalization:
    """Normalize each channel of an image (C, H, W) to mean 0 and standard deviation 1."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        return (image - mean[:, None, None]) / (std[:, None, None] + 1e-8)


def build_transform(
    cfg, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable | None:
    """Build and print the training or test pipeline of INPUT.TRANSFORMS (or `choices`).

    Returns None if INPUT.NO_TRANSFORM is set. InvalidValue if a name is unknown, or if a value
    under INPUT is not valid for its transform.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("INPUT.NO_TRANSFORM is True: images are used as they are")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    unknown = [choice for choice in choices if choice not in AVAI_CHOICES]
    if unknown:
        raise InvalidValue(
            f"INPUT.TRANSFORMS has unknown names {unknown}: use {', '.join(sorted(AVAI_CHOICES))}"
        )
    from torchvision.transforms import Compose

    try:
        steps = _train_steps(cfg, set(choices)) if is_train else _test_steps(cfg, set(choices))
    except UserError:
        raise
    except (TypeError, ValueError) as err:  # torchvision checks the values
        raise InvalidValue(f"A value under INPUT is not valid for its transform: {err}") from err
    print(f"Building transform_{'train' if is_train else 'test'}")
    for text, _ in steps:
        print(f"+ {text}")
    return Compose([step for _, step in steps])


def _normalize(cfg) -> tuple[str, Callable]:
    from torchvision.transforms import Normalize

    mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    return f"normalization (mean={mean}, std={std})", Normalize(mean=mean, std=std)


def _train_steps(cfg, choices: set[str]) -> list[tuple[str, Callable]]:
    import torchvision.transforms as T

    o, mode = cfg.INPUT, interpolation_mode(cfg)
    height, width = image_size(cfg)
    size = f"{height}x{width}"
    steps: list[tuple[str, Callable]] = []
    # A random crop already produces the final size.
    if not choices & {"random_crop", "random_resized_crop"}:
        steps.append((f"resize to {size}", T.Resize((height, width), interpolation=mode)))
    rows: dict[str, Callable[[], tuple[str, Callable]]] = {
        "random_translation": lambda: (
            "random translation",
            Random2DTranslation(height, width, 0.5, mode),
        ),
        "random_crop": lambda: (
            f"random crop (size={size}, padding={o.CROP_PADDING})",
            RandomCrop(height, width, o.CROP_PADDING),
        ),
        "random_resized_crop": lambda: (
            f"random resized crop (size={size}, scale={tuple(o.RRCROP_SCALE)})",
            T.RandomResizedCrop((height, width), scale=tuple(o.RRCROP_SCALE), interpolation=mode),
        ),
        "random_flip": lambda: ("random flip", T.RandomHorizontalFlip()),
        "randaugment": lambda: (
            f"randaugment (n={o.RANDAUGMENT_N}, m={o.RANDAUGMENT_M})",
            T.RandAugment(o.RANDAUGMENT_N, o.RANDAUGMENT_M),
        ),
        "colorjitter": lambda: (
            f"color jitter (brightness={o.COLORJITTER_B}, contrast={o.COLORJITTER_C}, "
            f"saturation={o.COLORJITTER_S}, hue={o.COLORJITTER_H})",
            T.ColorJitter(o.COLORJITTER_B, o.COLORJITTER_C, o.COLORJITTER_S, o.COLORJITTER_H),
        ),
        "randomgrayscale": lambda: (f"random gray scale (p={o.RGS_P})", T.RandomGrayscale(o.RGS_P)),
        "gaussian_blur": lambda: (
            f"gaussian blur (p={o.GB_P}, kernel={o.GB_K})",
            T.RandomApply([T.GaussianBlur(blur_kernel(cfg))], p=o.GB_P),
        ),
        "to_tensor": lambda: ("to torch tensor of range [0, 1]", T.ToTensor()),
        "cutout": lambda: (
            f"cutout (n_holes={o.CUTOUT_N}, length={o.CUTOUT_LEN})",
            Cutout(o.CUTOUT_N, o.CUTOUT_LEN),
        ),
        "normalize": lambda: _normalize(cfg),
        "gaussian_noise": lambda: (
            f"gaussian noise (mean={o.GN_MEAN}, std={o.GN_STD})",
            GaussianNoise(o.GN_MEAN, o.GN_STD),
        ),
        "instance_norm": lambda: ("instance normalization", InstanceNormalization()),
    }
    return steps + [row() for name, row in rows.items() if name in choices | {"to_tensor"}]


def _test_steps(cfg, choices: set[str]) -> list[tuple[str, Callable]]:
    import torchvision.transforms as T

    (height, width), mode = image_size(cfg), interpolation_mode(cfg)
    edge = max(height, width)
    steps: list[tuple[str, Callable]] = [
        (f"resize the smaller edge to {edge}", T.Resize(edge, interpolation=mode)),
        (f"{height}x{width} center crop", T.CenterCrop((height, width))),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    if "normalize" in choices:
        steps.append(_normalize(cfg))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps
