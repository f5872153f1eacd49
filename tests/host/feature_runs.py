"""Short runs of the host repository's trainers in `trainers/features.py`, all in one process.

    python feature_runs.py FOLDER NAMES...      (the answers are in FOLDER/answers.json)

The answer of a trainer has

- `first`: the summary of the first step of its NPT trainer, and `by_hand`: the terms of the
  features that it classified with in that step, computed in float64; `last` likewise;
- `tested`, `tested_by_hand`: the same of a test;
- `changed`: the weights that differ between the host's training and one with both weights zero;
- `crossed`: the accuracies of two checkpoints, each loaded by the host's and the NPT trainer;
- `said`, `warned`: what NPT printed of its features, and its warnings.
"""

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path

import torch
from first_steps import REPO, built

from npt.geometry import language_collapse_degree, multimodal_isomorphism_degree
from npt.losses import language_collapse_loss, multimodal_isomorphism_loss

OFF = ("TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)
FEW = ("DATASET.NUM_SHOTS", 2, "DATALOADER.TEST.BATCH_SIZE", 1000)


def by_hand(used, labels):
    """The terms, and the measures of the same features."""
    image, text = (x.detach().double() for x in used)
    return {
        "loss_lc": language_collapse_loss(text, reduction="mean").item(),
        "loss_mi": multimodal_isomorphism_loss(image, text, labels, reduction="mean").item(),
        "lcd": language_collapse_degree(text).signed.item(),
        "mid": multimodal_isomorphism_degree(image, text, labels).signed.item(),
    }


def answer(folder, name):
    found, out = {}, io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out):
        warnings.simplefilter("always")
        ours = built(str(folder / "npt"), f"{name}NPT", *FEW)
        step, summaries = ours.forward_backward, []

        def recorded(*args, **kwargs):
            summary = step(*args, **kwargs)
            labels = args[1] if len(args) > 1 else args[0]["label"]
            summaries.append((summary, by_hand(ours.model.used, labels)))
            return summary

        ours.forward_backward = recorded
        ours.train()
        found["first"], found["by_hand"] = summaries[0]
        found["last"], found["last_by_hand"] = summaries[-1]
        found["tested"] = ours.results["test"]
        labels = torch.tensor([item.label for item in ours.dm.dataset.test])
        found["tested_by_hand"] = by_hand(ours.model.used, labels)
        trained = {"npt": ours}
        for kind, trainer, more in (("plain", name, ()), ("off", f"{name}NPT", OFF)):
            trained[kind] = built(str(folder / kind), trainer, *FEW, *more)
            trained[kind].train()
        plain, off = (trained[kind].model.state_dict() for kind in ("plain", "off"))
        found["changed"] = [key for key in plain if not torch.equal(plain[key], off[key])]
        with_terms = trained["npt"].model.state_dict()
        found["moved"] = [key for key in plain if not torch.equal(plain[key], with_terms[key])]
        found["crossed"] = {}
        for maker in ("plain", "npt"):
            trained["plain"].load_model(str(folder / maker), epoch=2)
            trained["npt"].load_model(str(folder / maker), epoch=2)
            found["crossed"][maker] = [float(trained[x].test()) for x in ("plain", "npt")]
    found["said"] = [x for x in out.getvalue().splitlines() if "NPT reads" in x]
    found["warned"] = [str(w.message) for w in caught if "npt" in str(w.message).lower()]
    return found


if __name__ == "__main__":
    sys.path[0] = str(REPO)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    answers = {name: answer(folder / name, name) for name in names}
    (folder / "answers.json").write_text(json.dumps(answers))
