"""The names under which the engine finds NPT trainers.

`CoCoOpNPT`, `MaPLeNPT` and `NPT` are there; and `<Name>NPT` is for every trainer `<Name>` that a
host registers, before or after npt is imported. A host's own trainer of such a name comes first.
"""

from __future__ import annotations

from typing import Any

from npt.errors import NPTError
from npt.host.features import Adapter
from npt.trainer import NPTMixin

SUFFIX = "NPT"
_bases = {"CoCoOp": None, "MaPLe": None}  # whose names are there before the trainers themselves
_adapters: dict[str, Adapter] = {}  # by the name of the trainer whose features they read
_classes: dict[type, type] = {}  # wrapped trainer -> the class around it


def register(base: str, features: Adapter | None = None) -> None:
    """Have `<base>NPT`: NPT around the trainer `base`, which may itself be registered later.

    features: for a model that does not compute its features in an `image_encoder` and a
    `text_encoder` of its own, a function (model, batch) -> npt.Features; see docs/plugin.md. It is
    used wherever `base` is wrapped, and replaces one given before.
    """
    _bases[base] = None
    if features is not None:
        _adapters[base] = features


def extend_registry() -> None:
    """Make the engine's registry find the names; safe to repeat."""
    from dassl.engine import TRAINER_REGISTRY

    kind = type(TRAINER_REGISTRY)
    if not issubclass(kind, Resolving):  # in place, as hosts hold this very object
        TRAINER_REGISTRY.__class__ = type(kind.__name__, (Resolving, kind), {})


def by_base(cfg: Any) -> Any:
    """The trainer `NPT`: around the one that TRAINER.NPT.BASE names."""
    return npt_class(cfg.TRAINER.NPT.get("BASE", ""))(cfg)


def npt_class(base: str) -> type:
    """The NPT trainer around the trainer registered as `base`: the host's, else ours.

    The same class each time, as long as `base` is registered as the same trainer. NPTError where
    there is no such trainer.
    """
    import npt.trainers
    from dassl.engine import TRAINER_REGISTRY

    npt.trainers.add_to_registry()  # ours, under names that are still free
    names = [n for n in TRAINER_REGISTRY.registered_names() if not n.endswith(SUFFIX)]
    if base not in names:
        said = f'"{base}"' if base else "empty"
        raise NPTError(
            f"The trainer to wrap is {said}, but it must be one of {', '.join(names)}; set it "
            "by TRAINER.NPT.BASE for the trainer NPT."
        )
    wrapped = TRAINER_REGISTRY.get(base)
    if wrapped not in _classes:
        _classes[wrapped] = npt.trainers.npt_class_of(wrapped) or _wrap(wrapped)
    cls = _classes[wrapped]
    if base in _adapters:
        cls.features_adapter = staticmethod(_adapters[base])
    return cls


def _wrap(wrapped: type) -> type:
    """A class that pickles by its name in this module, which `__getattr__` resolves."""
    return type(wrapped.__name__ + SUFFIX, (NPTMixin, wrapped), {"__module__": __name__})


def __getattr__(name: str) -> type:
    """`KgCoOpNPT` and the like, as unpickling asks for them."""
    base = name.removesuffix(SUFFIX)
    if name.startswith("_") or base in ("", name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return npt_class(base)
    except NPTError as error:
        raise AttributeError(str(error)) from error


class Resolving:
    """Put before the class of the engine's registry: finds NPT trainers by their names."""

    def registered_names(self) -> list[str]:
        names = list(super().registered_names())
        bases = [name for name in (*names, *_bases) if not name.endswith(SUFFIX)]
        return list(dict.fromkeys([*names, SUFFIX, *(base + SUFFIX for base in bases)]))

    def get(self, name: str) -> Any:
        names, base = super().registered_names(), name.removesuffix(SUFFIX)
        if name in names or base == name:
            return super().get(name)
        if name == SUFFIX:
            return by_base
        return npt_class(base) if base in names or base in _bases else super().get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.registered_names()
