"""Finds the features that a forward pass multiplies to get its logits.

Example: K = 3 classes, B = 2 images. A model with an adapter behind its image encoder computes

    z = adapter(image_encoder(images))         # (2, 512)
    logits = scale * z @ texts.t()             # (2, 3)

    with Products(classes=3) as products:
        logits = model(images)
    product = products.giving(logits)          # product.image is scale * z, product.text is texts

The logits count as those of a product if they are the product times a positive number. A number
that is added to all logits of an image, of a class, or to those of the labels (logit adjustment,
margins) does not matter: it belongs to the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from npt.host.compare import ADDED, distance, tolerance

SMALL = 2**16  # entries of a matrix that is recorded although none of its sizes is K
MANY = 10_000  # products recorded at most
SUM = "sum"  # begins the key of a sum of products
CROSS_ENTROPY = F.cross_entropy

Operands = tuple[Tensor, Tensor]  # (..., D) and (..., D)


class Product(NamedTuple):
    """Features whose products are the logits, up to a factor; rows of any length."""

    logits: Tensor  # (B, K)
    image: Tensor  # (B, D)
    text: Tensor  # (K, D), or (B, K, D) if each image has its own text features


class Place(NamedTuple):
    """Where a product is among those of a pass, and how many there are."""

    key: tuple
    of: int


class Claim(NamedTuple):
    """What a loss was computed of."""

    logits: Tensor  # (B, K)
    target: Tensor | None  # (B,), if the loss was cross_entropy


# --------------------------------------------------------------------------- products, by function
def _matmul(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Operands:
    return a, b.transpose(-1, -2) if b.dim() > 1 else b


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operands | None:
    return (x, weight) if bias is None else None


def _addmm(_: Any, a: Tensor, b: Tensor, *__: Any, **___: Any) -> Operands:
    return _matmul(a, b)


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> Operands | None:
    last = [[a.dim() - 1], [b.dim() - 1]]
    if dims == 1:
        return _matmul(a, b)
    fits = isinstance(dims, (tuple, list)) and [list(x) for x in dims] == last
    return (a, b) if fits else None


def _inner(a: Tensor, b: Tensor) -> Operands:
    return a, b


def _cosine(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Operands | None:
    return _elementwise(x1, x2, dim)


def _einsum(equation: Any, *operands: Any) -> Operands | None:
    """For equations like "bd,kd->bk" or "bd,bkd->bk"."""
    tensors = operands[0] if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(tensors) != 2 or "." in equation:
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    a, b = inputs.split(",")
    summed = set(a) & set(b) - set(output)
    shared = set(a) & set(b) & set(output)
    if (
        len(summed) != 1
        or len(set(output)) != 2
        or sorted(set(a) | set(b)) != sorted(summed | set(output))
    ):
        return None
    (d,) = summed
    x, y = tensors
    if not shared:  # "bd,kd->bk", or "->kb", which is the same with the operands exchanged
        x = x.permute([a.index(output[0] if output[0] in a else output[1]), a.index(d)])
        y = y.permute([b.index(output[1] if output[1] in b else output[0]), b.index(d)])
        return (x, y) if output[0] in a else (y, x)
    if output[0] not in shared or {len(a), len(b)} != {2, 3}:
        return None
    if len(a) == 2:  # "bd,bkd->bk"
        x, y = (
            x.permute([a.index(output[0]), a.index(d)])[:, None],
            y.permute([b.index(output[0]), b.index(output[1]), b.index(d)]),
        )
    else:
        y, x = (
            y.permute([b.index(output[0]), b.index(d)])[:, None],
            x.permute([a.index(output[0]), a.index(output[1]), a.index(d)]),
        )
    return x, y


def _elementwise(a: Tensor, b: Tensor, dim: int) -> Operands | None:
    """The operands of (a * b).sum(dim) as those of a matrix product."""
    size = max(a.dim(), b.dim())
    if dim not in (-1, size - 1) or size not in (2, 3):
        return None
    a, b = (x if x.dim() == size else x[None] for x in (a, b))
    if a.dim() != size or b.dim() != size or a.shape[-1] != b.shape[-1]:
        return None
    image, text = (a, b) if a.shape[-2] == 1 else (b, a)
    if image.shape[-2] != 1 or text.shape[-2] == 1:
        return None
    if size == 3 and len(text) == 1:  # all images share the texts
        return image[:, 0], text[0]
    return image, text


PRODUCTS: dict[str, Callable[..., Operands | None]] = {
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv"), _matmul),
    "addmm": _addmm,
    "tensordot": _tensordot,
    "linear": _linear,
    "inner": _inner,
    "einsum": _einsum,
    "cosine_similarity": _cosine,
}
LOSSES = ("cross_entropy", "log_softmax", "softmax", "logsumexp")


def _read(left: Tensor, right: Tensor, result: Tensor) -> Iterator[Product]:
    """The products of B images with K texts that a product may be; B = 1 for a single image."""
    dims = left.dim(), right.dim()
    if dims == (2, 2) and result.dim() == 2:
        yield Product(result, left, right)
        yield Product(result.t(), right, left)
    elif dims == (1, 2):
        yield Product(result.reshape(1, -1), left[None], right)
    elif dims == (2, 1):
        yield Product(result.reshape(1, -1), right[None], left)
    elif dims == (2, 2):  # an elementwise product of one image with K texts
        yield Product(result[None], left, right)
    elif dims == (3, 3) and left.shape[1] == 1:
        yield Product(result.reshape(len(left), -1), left[:, 0], right)
    elif dims == (3, 3) and right.shape[1] == 1:
        yield Product(result.reshape(len(right), -1), right[:, 0], left)
    elif dims == (3, 2) and left.shape[1] == 1:
        yield Product(result[:, 0], left[:, 0], right)
    elif dims == (2, 3):  # N prompts per class, whose logits are averaged
        yield Product(result.mean(0), left, right.mean(0))
    elif dims == (3, 2):
        yield Product(result.mean(0).t(), right, left.mean(0))


# --------------------------------------------------------------------------- the record
class Products(TorchFunctionMode):
    """Records matrix products, and what losses are computed of, inside a `with` block.

    classes: the number K of classes; without it, only small products are recorded
    listener: called with the Claim of each loss; returns what takes the place of its logits
    """

    def __init__(self, classes: int | None = None):
        super().__init__()
        self.classes = classes
        self.active = True
        self.shift: Tensor | None = None  # (K,) what a remedy adds to the logits of the batch
        self.listener: Callable[[Claim], Tensor] | None = None
        self.claims: list[Claim] = []
        self._records: list[tuple[Tensor, Tensor, Tensor]] = []
        self._factors: tuple[Tensor, Any, Any] | None = None  # the last elementwise product

    def clear(self) -> None:
        self.claims, self._records, self._factors = [], [], None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy:  # torch names itself so, also where it has been replaced
            func = CROSS_ENTROPY
        name = getattr(func, "__name__", "") if self.active else ""
        if name in LOSSES:
            args, kwargs = self._claimed(name, args, kwargs)
        result = func(*args, **kwargs)
        if name in PRODUCTS:
            self._record(PRODUCTS[name], args, kwargs, result)
        elif name == "mul" and len(args) == 2:
            self._factors = (result, *args)
        elif name == "sum" and self._factors is not None and args and args[0] is self._factors[0]:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int) and not kwargs.get("keepdim"):
                self._record(_elementwise, self._factors[1:], {"dim": dim}, result)
        return result

    def _record(self, reader: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if not isinstance(result, Tensor) or not 1 <= result.dim() <= 3:
            return
        if torch.is_grad_enabled() and not result.requires_grad:
            return  # of a teacher
        if self.classes not in result.shape and (result.dim() > 2 or result.numel() > SMALL):
            return
        if len(self._records) < MANY:
            try:
                operands = reader(*args, **kwargs)
            except (TypeError, AttributeError, ValueError, IndexError):  # another way to call it
                return
            if operands is not None:
                self._records.append((*operands, result))

    def _claimed(self, name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """Record the logits of a loss; the listener may replace them."""
        logits = args[0] if args else kwargs.get("input")
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            return args, kwargs
        if torch.is_grad_enabled() and not logits.requires_grad:
            return args, kwargs
        target = kwargs.get("target", args[1] if len(args) > 1 else None)
        claim = Claim(logits, target if name == "cross_entropy" else None)
        self.claims.append(claim)
        if self.listener is not None:
            logits = self.listener(claim)
            args, kwargs = (
                ((logits, *args[1:]), kwargs) if args else ((), {**kwargs, "input": logits})
            )
        return args, kwargs

    # ---- what was recorded

    def without_shift(self, claim: Claim) -> Tensor:
        """The logits of a cross-entropy of the batch as the host computed them."""
        if self.shift is None or claim.target is None or self.shift.shape != claim.logits.shape[1:]:
            return claim.logits
        return claim.logits - self.shift.to(claim.logits)

    def all(self, images: int) -> dict[tuple, Product]:
        """The products of a batch of B images, by their place in the pass."""
        found: dict[tuple, Product] = {}
        single: dict[int, list[Product]] = {}  # of one image, by the number of texts
        for number, record in enumerate(self._records):
            for way, product in enumerate(_read(*record)):
                if len(product.logits) == images:
                    found[number, way] = product
                elif len(product.logits) == 1 and product.text.dim() == 2:
                    single.setdefault(product.logits.shape[1], []).append(product)
        for texts, products in single.items():  # one product per image, as in CoCoOp
            times, left = divmod(len(products), images)
            if left == 0:
                for i in range(times):
                    found["each", texts, i, "in turn"] = _stacked(products[i::times])
                    found["each", texts, i, "in a row"] = _stacked(
                        products[i * images : (i + 1) * images]
                    )
        return found

    def giving(self, logits: Tensor, labels: Tensor | None = None) -> tuple[Place, Product] | None:
        """The product that gives logits (B, K) best, if one does; labels (B,)."""
        found = self.all(len(logits))
        for added, some in itertools.product(ADDED, (found, _sums(found))):
            distances = {
                key: distance(logits, p.logits, labels, added)
                for key, p in some.items()
                if p.logits.shape == logits.shape
            }
            best = min(distances, key=distances.__getitem__, default=None)
            if best is not None:
                product = some[best]
                if distances[best] <= tolerance(logits, product.logits)[0]:
                    return Place(best, len(found)), product
        return None

    def at(self, place: Place, images: int) -> Product | None:
        """The product at a place of an earlier pass; None if this pass has other products."""
        found = self.all(images)
        some = _sums(found) if place.key[0] == SUM else found
        return some.get(place.key) if len(found) == place.of else None


def _sums(found: dict[tuple, Product]) -> dict[tuple, Product]:
    """The sums of all products of a shape, as single products.

    Images and texts with several features, whose cosines are averaged (RPO): these are
    concatenated. If the texts are the same in all of them, the images are added, and vice versa.
    """
    alike: dict[tuple, list[Product]] = {}
    for key, product in found.items():
        if isinstance(key[0], int) and product.text.dim() == 2:
            width = product.text.shape[-1]  # another D: no features of CLIP, such as a cache
            alike.setdefault((SUM, key[1], *product.logits.shape, width), []).append(product)
    return {
        key: Product(_sum([p.logits for p in products]), *_operands_of_sum(products))
        for key, products in alike.items()
        if len(products) > 1
    }


def _operands_of_sum(products: list[Product]) -> Operands:
    images, texts = [p.image for p in products], [p.text for p in products]
    if all(x is texts[0] or torch.equal(x, texts[0]) for x in texts):
        return _sum(images), texts[0]
    if all(x is images[0] or torch.equal(x, images[0]) for x in images):
        return images[0], _sum(texts)
    return torch.cat(images, dim=-1), torch.cat(texts, dim=-1)


def _sum(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(0)


def _stacked(products: list[Product]) -> Product:
    """Products of one image each, as one of all images."""
    texts = [p.text for p in products]
    shared = all(x is texts[0] for x in texts)
    return Product(
        torch.cat([p.logits for p in products]),
        torch.cat([p.image for p in products]),
        texts[0] if shared else torch.stack(texts),
    )
