"""First training steps of the host repository's trainers.

    python first_steps.py FOLDER REQUESTS      (as JSON; the answers are in FOLDER/answers.json)

A request is [trainer, KEY, VALUE, ...]. The answer has the `counts` of the training images, the
labels `drawn` in an epoch, the `loss` that the first step reports and the length of its gradient
(`slope`), and its calls of cross_entropy with gradient: logits, labels, loss, and the `share` of
that loss in what the trainer minimises. Where the trainer cannot be had, it has the `error`.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

import npt  # noqa: F401  before anything that imports dassl
from npt.errors import NPTError

REPO = Path(__file__).with_name("repo")


def built(folder, name, *pairs):
    import train  # the host's program: its config, data sets and trainers
    from dassl.config import get_cfg_default
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    for file in ("dots", "short"):
        cfg.merge_from_file(str(REPO / "configs" / f"{file}.yaml"))
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.TRAINER.NAME, cfg.SEED = folder, folder, name, 1
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    set_random_seed(1)
    return build_trainer(cfg)


def first_step(trainer):
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
    trainer.set_model_mode("train")
    torch.manual_seed(1)
    batch = next(iter(trainer.train_loader_x))
    calls, original = [], F.cross_entropy

    def recorded(logits, target, *more, **named):
        loss = original(logits, target, *more, **named)
        if loss.requires_grad and loss.dim() == 0:
            call = {"logits": logits.tolist(), "labels": target.tolist(), "loss": loss.item()}
            factor = 1024 if trainer.scaler else 1
            loss.register_hook(lambda g: call.update(share=g.item() / factor))
            calls.append(call)
        return loss

    F.cross_entropy = recorded
    try:
        summary = trainer.forward_backward(batch)
    finally:
        F.cross_entropy = original
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    slope = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    return {"loss": float(summary["loss"]), "slope": slope, "calls": calls}


def answer(folder, name, *pairs):
    try:
        trainer = built(folder, name, *pairs)
    except NPTError as error:
        return {"error": str(error)}
    images = Counter(item.label for item in trainer.dm.dataset.train_x)
    drawn = Counter(x for batch in trainer.train_loader_x for x in batch["label"].tolist())
    counts, drawn = ([found[k] for k in range(trainer.num_classes)] for found in (images, drawn))
    return {"counts": counts, "drawn": drawn, **first_step(trainer)}


if __name__ == "__main__":
    sys.path[0] = str(REPO)
    folder, requests = sys.argv[1:]
    answers = [answer(folder, *request) for request in json.loads(requests)]
    Path(folder, "answers.json").write_text(json.dumps(answers))
