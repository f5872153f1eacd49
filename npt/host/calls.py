"""A call of a host's encoder, and what its result depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from npt.encoders.linear import product_dtype, version
from npt.host.verification import Unsuitable, tensors_in

PLAIN = (bool, int, float, str)  # attributes of a module that may be settings
FIXED = (*PLAIN, type(None), Tensor, torch.dtype, torch.device)
HOOKED = "forward hooks are registered inside it"


class Call:
    """A call of an encoder: its arguments, and the host's own computation."""

    def __init__(
        self, encoder: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ):
        self.encoder, self.forward, self.args, self.kwargs = encoder, forward, args, kwargs

    def host_s(self) -> Any:
        """What the host's own computation returns."""
        return self.forward(*self.args, **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """Those among the arguments, in lists too."""
        return tensors_in([self.args, self.kwargs])

    def numbers(self) -> list[Any]:
        """The numbers among the arguments."""
        given = [*self.args, *self.kwargs.values()]
        return [x for x in given if isinstance(x, (int, float)) and not isinstance(x, bool)]

    def prompts_and_tokens(self) -> tuple[Tensor, Tensor]:
        """The prompts (K, 77, D) and token ids (K, 77) of a text encoder; Unsuitable if absent."""
        tensors = self.tensors()
        for prompts in tensors:
            if prompts.dim() == 3 and prompts.is_floating_point():
                for tokens in tensors:
                    if tokens.shape == prompts.shape[:2] and not tokens.is_floating_point():
                        return prompts, tokens
        raise Unsuitable("it is not called with prompts (K, 77, D) and token ids (K, 77)")

    def is_plain(self) -> bool:
        """Whether its arguments are values, not objects or functions that may change."""
        return _is_plain([self.args, self.kwargs])

    def form(self) -> Hashable:
        """Changes if the result must be verified again, for another reason than trained weights.

        Modes and precision; kinds of the arguments, and the values of those that are switches;
        plain values among the attributes of the encoder's modules.
        """
        pairs = [*enumerate(self.args), *self.kwargs.items()]
        switches = (bool, str, type(None))
        kinds = [(k, x if isinstance(x, switches) else type(x)) for k, x in pairs]
        tensors = self.tensors()
        of_tensors = [(x.dim(), x.dtype, x.device, x.requires_grad) for x in tensors]
        products = [product_dtype(x) for x in tensors[:1] if x.is_floating_point()]
        modes = [torch.is_grad_enabled(), hooked(self.encoder)]
        return (*kinds, *of_tensors, *products, *modes, *settings(self.encoder))


def settings(encoder: nn.Module) -> list[Any]:
    """The plain values among the attributes of an encoder's modules, their modes included."""
    return [x for m in encoder.modules() for x in m.__dict__.values() if type(x) in PLAIN]


def is_self_contained(encoder: nn.Module) -> bool:
    """Whether all attributes of its modules are values, weights and modules inside it."""
    return all(
        _is_plain(x)
        for module in encoder.modules()
        for name, x in module.__dict__.items()
        if not name.startswith("_")  # nn.Module's own
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_plain(list(value.values()))
    if isinstance(value, (tuple, list, nn.ParameterList)):
        return all(map(_is_plain, value))
    return isinstance(value, FIXED)


def stored(encoder: nn.Module) -> list[Hashable]:
    """What an encoder may change when it runs, and use in the next run."""
    tensors = [*encoder.parameters(), *encoder.buffers()]
    return [*map(version, tensors), *settings(encoder)]


def hooked(module: nn.Module) -> bool:
    """Whether a module inside it has forward hooks or forward pre-hooks."""
    inner = (m for m in module.modules() if m is not module)
    return any(m._forward_hooks or m._forward_pre_hooks for m in inner)
