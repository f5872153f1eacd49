"""A host's own encoder, run with quick modules and on prompts without their unused end.

CLIP's text transformer is causal, and text features are read at the end-of-text token, so what
follows the longest prompt does not matter. Example: K = 3 classes, whose longest prompt ends at
position 9. `Truncated` runs the host's text encoder with

    prompts (3, 10, 512) and token ids (3, 10)            in place of (3, 77, 512), (3, 77)
    positional_embedding (10, 512), attn_mask (10, 10)    in place of (77, 512), (77, 77)

Everything else is the host's own: prompts in several parts, tokens that are put in after some
layer, adapters between and inside layers.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from npt.encoders.linear import version
from npt.host.calls import HOOKED, Call, hooked, is_self_contained
from npt.host.quick import Shadow, quick_modules, shadowed
from npt.host.verification import Unsuitable


class Truncated:
    """The host's text encoder with quick modules, on shorter prompts."""

    of_gradients: float | None = None

    def __init__(self) -> None:
        self.lengths: list[tuple[Tensor, tuple, int]] = []  # token ids, their version, length
        # In a test: the inputs of the last call, all else that it depends on, and its output.
        self.kept: tuple[list[Tensor], list[Any], Tensor] | None = None

    def plan(self, call: Call) -> int:
        """The number of tokens to compute."""
        if hooked(call.encoder):
            raise Unsuitable(HOOKED)
        _, tokens = call.prompts_and_tokens()
        return self._length(tokens)

    def _length(self, tokens: Tensor) -> int:
        """Up to the last end-of-text token (the largest id) of token ids (K, 77)."""
        for known, its_version, length in self.lengths:
            if known is tokens and version(tokens) == its_version:
                return length
        length = int(tokens.argmax(dim=-1).max()) + 1
        self.lengths = [(tokens, version(tokens), length), *self.lengths[:3]]
        return length

    def run(self, call: Call, plan: int) -> Any:
        if torch.is_grad_enabled() or not call.is_plain() or not is_self_contained(call.encoder):
            return self._run(call, plan)
        inputs = call.tensors()
        state: list[Any] = [call.form(), call.numbers(), *_versions(call.encoder)]
        if self.kept is not None:
            old_inputs, old_state, output = self.kept
            if state == old_state and _all_equal(inputs, old_inputs):
                return output.clone()
        random = torch.get_rng_state()
        output = self._run(call, plan)
        usable = isinstance(output, Tensor) and not output.is_inference()
        if usable and torch.equal(random, torch.get_rng_state()):
            self.kept = ([x.detach().clone() for x in inputs], state, output.clone())
        return output

    def _run(self, call: Call, length: int) -> Any:
        prompts, _ = call.prompts_and_tokens()
        count, full, width = prompts.shape

        def cut(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x[:, :length] if x.dim() > 1 and x.shape[:2] == (count, full) else x
            if type(x) in (list, tuple):
                return type(x)(map(cut, x))
            return x

        shadows = quick_modules(call.encoder)
        shadows += _cut_attributes(call.encoder, full, width, length)
        with shadowed(shadows):
            return call.forward(*cut(call.args), **{k: cut(x) for k, x in call.kwargs.items()})


def _cut_attributes(encoder: nn.Module, full: int, width: int, length: int) -> list[Shadow]:
    """The positional embeddings (full, width) and attention masks (full, full), cut to `length`.

    A mask may be larger than `full`, for tokens that are put in later.
    """
    found: list[Shadow] = []
    for module in encoder.modules():
        for name, x in _own_tensors(module):
            if x.dim() == 2 and x.shape == (full, width):
                found.append((module, name, x[:length]))
            elif x.dim() == 2 and x.shape[0] == x.shape[1] >= full and not _is_weight(x):
                size = len(x) - full + length
                found.append((module, name, x[:size, :size]))
    return found


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    tables = (module._parameters, module._buffers, module.__dict__)
    return [(k, x) for table in tables for k, x in table.items() if isinstance(x, Tensor)]


def _is_weight(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter)


def _versions(encoder: nn.Module) -> list[Hashable]:
    """Changes when a tensor of the encoder changes."""
    return [version(x) for module in encoder.modules() for _, x in _own_tensors(module)]


def _all_equal(new: list[Tensor], old: list[Tensor]) -> bool:
    kinds = [[(x.shape, x.dtype, x.device) for x in tensors] for tensors in (new, old)]
    return kinds[0] == kinds[1] and all(map(torch.equal, new, old))
