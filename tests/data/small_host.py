"""Trainers of the family in small, without the engine around them: one for each pattern."""

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode as CN

import npt  # noqa: F401  lets dassl be imported
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss
from npt.trainer import NPTMixin

K, D, B = 5, 8, 4


def config(w1=0.3, w2=0.8, reduction="class"):
    node = {"W1": w1, "W2": w2, "E_W": 1.0, "E_H": 2.0, "REDUCTION": reduction, "BASE": ""}
    return CN({"TRAINER": {"NPT": node, "NAME": "Host"}})


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(K, D))

    def forward(self, shift):
        return torch.tanh(self.table + shift)


class TwoTowers(nn.Module):
    """A model of the family in small; `style` says what it returns and how it runs its texts."""

    def __init__(self, style="loss"):
        super().__init__()
        self.style = style
        self.prompt_learner = nn.Linear(D, D)
        self.text_encoder = TextEncoder()
        self.image_encoder = nn.Linear(6, D)

    def forward(self, image, label=None):
        z = F.normalize(self.image_encoder(image), dim=-1)
        if "per image" in self.style:
            texts = [self.text_encoder(self.prompt_learner(row)) for row in z]
            logits = torch.stack(
                [10 * F.normalize(g, dim=-1) @ row for g, row in zip(texts, z, strict=True)]
            )
        else:
            text = self.text_encoder(self.prompt_learner.bias)
            logits = 10 * z @ F.normalize(text, dim=-1).T
        if "loss" not in self.style or label is None:
            return (logits, z) if "tuple" in self.style else logits
        loss = F.cross_entropy(logits, label)
        if "named" in self.style:
            return namedtuple("Out", "loss logits")(loss, logits)
        return (loss, logits) if "tuple" in self.style else loss


class Host:
    """A trainer of the family, without the engine around it."""

    scaler = None

    def __init__(self, cfg, style="loss"):
        self.cfg = cfg
        torch.manual_seed(0)
        self.model = TwoTowers(style)
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def check_cfg(self, cfg):
        pass

    def loss(self, batch):
        out = self.model(batch["img"], batch["label"])
        first = out[0] if isinstance(out, tuple) else out
        return first if first.dim() == 0 else F.cross_entropy(first, batch["label"])

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return {"loss": loss.item(), "acc": 50.0}


class WithOwnTerms(Host):
    """Like KgCoOp or PromptSRC: a loss of its own on top of what the model gives."""

    def loss(self, batch):
        return super().loss(batch) + 0.1 * self.model.prompt_learner.weight.square().sum()


class WithScaler(Host):
    """Mixed precision as upstream has it: the loss is multiplied, the gradients divided."""

    class Scaler:
        def scale(self, x):
            return x * 1024.0

    def __init__(self, *args):
        super().__init__(*args)
        self.scaler = self.Scaler()

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad /= 1024.0
        self.optim.step()
        return {"loss": loss.item()}


def wrapped(base, *args):
    return type("HostNPT", (NPTMixin, base), {})(*args)


def batches(n=1):
    g = torch.Generator().manual_seed(7)
    return [
        {"img": torch.randn(B, 6, generator=g), "label": torch.randint(K, (B,), generator=g)}
        for _ in range(n)
    ]


def plain_terms(model, batch, node):
    """w1 L_LC + w2 L_MI from the features computed by hand, in a pass of their own."""
    image = model.image_encoder(batch["img"])
    if "per image" in model.style:
        rows = F.normalize(image, dim=-1)
        text = torch.stack([model.text_encoder(model.prompt_learner(row)) for row in rows])
    else:
        text = model.text_encoder(model.prompt_learner.bias)
    lc = language_collapse_loss(text, node.E_W, node.REDUCTION)
    mi = multimodal_isomorphism_loss(
        image, text, batch["label"], node.E_W, node.E_H, node.REDUCTION
    )
    return lc, mi
