"""Trainer names: the engine's registry finds an NPT trainer `<Name>NPT` for each trainer `<Name>`.

Example: after `import npt` in a repository with a trainer `KgCoOp`, the registry returns the class
`KgCoOpNPT`, that is `class KgCoOpNPT(NPTMixin, KgCoOp)`. It does not matter whether `KgCoOp` is
registered before or after the import. If the repository has its own trainer `KgCoOpNPT`, that one
is returned.

`NPT` and the names of our own methods, such as `CoCoOpNPT` and `MaPLeNPT`, always exist.
"""

from __future__ import annotations

import copyreg
import threading
from typing import TYPE_CHECKING, Any

from npt.errors import NPTError
from npt.host.features import Adapter
from npt.names import SUFFIX
from npt.remedied import Remedied
from npt.trainer import NPTMixin
from npt.trainers import METHODS

if TYPE_CHECKING:
    from dassl.utils import Registry
else:
    Registry = object  # `FindsNPTTrainers` is mixed into the registry class of the engine

# Trainers that may be registered later, ours among them; an ordered set.
_bases = {name: None for name, method in METHODS.items() if method.node}
_adapters: dict[str, Adapter] = {}  # by trainer name
_classes: dict[type, type[NPTMixin]] = {}  # trainer class -> its NPT class
_lock = threading.RLock()  # a trainer gets one class, whichever threads ask for it


def register(base: str, features: Adapter | None = None) -> None:
    """Add the name `<base>NPT`: NPT around the trainer `base`, which may be registered later.

    features: a function (model, batch) or (model, batch, trainer) -> npt.Features, for a model
    whose features NPT cannot find, or which should have others; see docs/plugin.md. It is used
    whenever NPT wraps `base`, and replaces an earlier one.
    """
    _bases[base] = None
    if features is not None:
        _adapters[base] = features


def extend_registry() -> None:
    """Make the engine's registry find NPT trainers; repeating it changes nothing."""
    from dassl.engine import TRAINER_REGISTRY

    kind = type(TRAINER_REGISTRY)
    if not issubclass(kind, FindsNPTTrainers):  # in place: other modules hold this same object
        TRAINER_REGISTRY.__class__ = type(kind.__name__, (FindsNPTTrainers, kind), {})


def build_npt(cfg: Any) -> Any:
    """Build the trainer `NPT`: NPT around the trainer that TRAINER.NPT.BASE names."""
    return npt_class(cfg.TRAINER.NPT.get("BASE", ""))(cfg)


def npt_class(base: str) -> type[NPTMixin]:
    """The NPT class around the trainer registered as `base`, or else around NPT's own `base`.

    It is the same class in every call, as long as the same trainer is registered as `base`.
    Raises NPTError if there is no such trainer.
    """
    import npt.trainers
    from dassl.engine import TRAINER_REGISTRY

    npt.trainers.add_to_registry()  # adds only names that are not taken
    names = [n for n in TRAINER_REGISTRY.registered_names() if not n.endswith(SUFFIX)]
    if base not in names:
        given = f'"{base}"' if base else "empty"
        raise NPTError(
            f"The trainer to wrap is {given}, but it must be one of {', '.join(names)}; for the "
            "trainer NPT, set it by TRAINER.NPT.BASE."
        )
    cls = around(TRAINER_REGISTRY.get(base))
    if base in _adapters:
        cls.features_adapter = staticmethod(_adapters[base])
    return cls


def around(wrapped: type) -> type[NPTMixin]:
    """The NPT class around a trainer class, the same in every call.

    It can be pickled if `wrapped` can: another process imports `wrapped` and calls this function.
    """
    import npt.trainers

    with _lock:
        if wrapped not in _classes:
            _classes[wrapped] = npt.trainers.npt_class_of(wrapped) or _wrap(wrapped)
        return _classes[wrapped]


def _wrap(wrapped: type) -> type[NPTMixin]:
    kind: Any = type("NPTClass", (type(wrapped),), {})  # a metaclass, whose classes pickle so:
    copyreg.pickle(kind, lambda cls: (around, (wrapped,)))
    return kind(wrapped.__name__ + SUFFIX, (NPTMixin, wrapped), {"__module__": __name__})


def is_ours(trainer: Any) -> bool:
    """Whether a trainer is one of npt's, or an NPT class around another."""
    return isinstance(trainer, type) and issubclass(trainer, Remedied)


class FindsNPTTrainers(Registry):
    """Mixin that is put in front of the class of the engine's registry."""

    def own_names(self) -> list[str]:
        """The names that are registered, without those that NPT adds to them."""
        return list(super().registered_names())

    def registered_names(self) -> list[str]:
        names = self.own_names()
        bases = [name for name in (*names, *_bases) if not name.endswith(SUFFIX)]
        return list(dict.fromkeys([*names, SUFFIX, *(base + SUFFIX for base in bases)]))

    def get(self, name: str) -> Any:
        names, base = self.own_names(), name.removesuffix(SUFFIX)
        if name in names or base == name:
            return super().get(name)
        if name == SUFFIX:
            return build_npt
        return npt_class(base) if base in names or base in _bases else super().get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.registered_names()
