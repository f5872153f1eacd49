"""The host repositories that test_real.py knows, and what it passes to each.

A checkout is recognised by a file in it, whatever its folder is called; `train.py` may lie a folder
below (KgCoOp/KgCoOp, ProGrad/ProGrad.public, PLOT/plot-pp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, eq=False)
class Method:
    """A trainer of a host, and how it is run.

    config: its yaml; settings: KEY VALUE; flags: of its train.py
    adapter: the features, an expression of `model`, `batch` and `npt` (see boot.py)
    fails: what does not work -> what is said of it: `trains` (the host's own trainer), `npt`,
        `checkpoints`, `accelerated`, `thinned`, `remedies`, `sampler`
    host_fork: its code needs the Dassl that it brings along
    """

    trainer: str
    config: str
    settings: tuple[object, ...] = ()
    flags: tuple[str, ...] = ()
    adapter: str = ""
    fails: Mapping[str, str] = field(default_factory=dict)
    host_fork: bool = False


LONG = {"thinned": "its train.py trains 100 epochs for four shots"}
NO_CROSS_ENTROPY = {"remedies": "does not call torch's cross_entropy"}
# One step an epoch, for hosts that set OPTIM.MAX_EPOCH by the shots themselves: 50 for one.
ONCE = ("DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
# A CLIP of one layer, for images of 224 pixels.
LARGE = ("MODEL.BACKBONE.NAME", "ViT-B/32", "INPUT.SIZE", "(224, 224)")
BASE = ("DATASET.SUBSAMPLE_CLASSES", "base")


# Prompts in all three layers of the CLIP of these tests.
def deep(node: str) -> tuple[object, ...]:
    return tuple(x for end in ("VISION", "TEXT") for x in (f"TRAINER.{node}.PROMPT_DEPTH_{end}", 3))


# The file that only this host has -> its trainers. The first that fits counts.
HOSTS: dict[str, list[Method]] = {
    "trainers/plotpp.py": [
        Method(
            "PLOTPP",
            "configs/trainers/PLOTPP/vit.yaml",
            ("TRAINER.PLOTPP.PREC", "fp32", "TRAINER.PLOTPP.N", 2, *BASE, *ONCE),
            flags=("--device", "cuda:0"),
            adapter="(lambda prompts, images: npt.Features("
            "model.image_encoder(batch['img'], images).mean(0), "
            "model.text_encoder(prompts, model.tokenized_prompts)"
            ".view(model.N, model.n_cls, -1).mean(0)))(*model.prompt_learner())",
            fails=LONG,
        ),
    ],
    "trainers/plot.py": [
        Method(
            "PLOT",
            "configs/trainers/PLOT/rn50.yaml",
            ("TRAINER.PLOT.PREC", "fp32", "TRAINER.PLOT.N", 2, *ONCE),
            adapter="npt.Features(model.image_encoder(batch['img'])[0], "
            "model.text_encoder(model.prompt_learner(), model.tokenized_prompts)"
            ".view(model.N, model.n_cls, -1).mean(0))",
            fails=LONG,
        ),
    ],
    "prompting/lasp.py": [
        Method(
            "LASP",
            "configs/LASP/vit_b16_c4_ep10_batch1_cls_t2t_5_wcl_25_g1_b.yaml",
            ("TRAINER.LASP.PREC", "fp32"),
        ),
    ],
    "trainers/promptlt.py": [
        Method(
            "PromptLT",
            "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",  # its own has unknown keys
            ("TRAINER.PromptLT.PREC", "fp32", "TRAINER.PromptLT.REP_LAYERS", "[2, 3]", *BASE),
            fails={"trains": "REP_DIM"},  # a key that it reads, and that nothing defines
        ),
        Method(
            "TCP",
            "configs/trainers/TCP/vit_b16_ep100_ctxv1.yaml",
            # its evaluator reads that key, too
            ("TRAINER.COOP.PREC", "fp32", "TEST.EVALUATOR", "Classification", *BASE),
            fails={
                "checkpoints": "its load_model ignores --load-epoch",
                "remedies": "with logits of the 3 classes",  # it has logits of all five
            },
        ),
    ],
    "trainers/candle.py": [
        Method(
            "Candle",
            "configs/trainers/Candle/vit_b16_bs128_lr0.001.yaml",
            ("TRAINER.COOP.PREC", "fp32"),
            adapter="npt.Features("
            "model.clip_model.encode_image(batch['img']) @ model.proto_manager.head.proj_image, "
            "model.proto_manager.head.text_features @ model.proto_manager.head.proj_text)",
            fails=NO_CROSS_ENTROPY,  # its batches have the labels of prototypes, too
        ),
    ],
    "trainers/sple_coop.py": [
        Method(
            "StackSPLE_CoOp",
            "configs/trainers/SPLE/CoOp/vit_b16_ep20.yaml",
            fails={"trains": "imagenet_templates"},  # files that its repository lacks
        ),
    ],
    "trainers/hicropl.py": [
        Method(
            "HiCroPL",
            "configs/trainers/HiCroPL/vit_b16_c2_ep50_batch32_16ctx.yaml",
            ("TRAINER.HICROPL.PROMPT_DEPTH", 3, "TRAINER.HICROPL.CROSS_LAYER", 2),
            host_fork=True,
        ),
    ],
    "trainers/promptkd.py": [
        Method(
            "PromptKD",
            "configs/trainers/PromptKD/vit_b16_c2_ep20_batch8_4+4ctx.yaml",
            (*deep("PROMPTKD"), "TRAINER.PROMPTKD.PREC", "fp32"),
            fails=NO_CROSS_ENTROPY,  # it learns from a teacher
        ),
    ],
    "trainers/prometar.py": [
        Method(
            "ProMetaR",
            "configs/trainers/ProMetaR/vit_b16_c2_ep10_batch4_4+4ctx.yaml",
            deep("PROMETAR"),
        ),
    ],
    "trainers/coprompt.py": [
        Method("CoPrompt", "configs/trainers/coprompt.yaml"),
    ],
    "trainers/coop_atp.py": [
        Method(
            "CoOp_ATP",
            "configs/trainers/CoOp/vit_b16.yaml",
            ("TRAINER.COOP.PREC", "fp32", "TRAINER.ATPROMPT.USE_ATPROMPT", True),
            host_fork=True,
        ),
        Method(
            "CoCoOp_ATP",
            "configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
            ("TRAINER.COCOOP.PREC", "fp32", "TRAINER.ATPROMPT.USE_ATPROMPT", True),
            host_fork=True,
        ),
        Method(
            "MaPLe_ATP",
            "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
            ("TRAINER.MAPLE.PROMPT_DEPTH", 3, "TRAINER.ATPROMPT.USE_ATPROMPT", True),
            host_fork=True,
        ),
        Method(
            "DePT_ATP",
            "configs/trainers/DePT/vit_b16_ep10_bs4_lr35.yaml",
            ("TRAINER.COOP.PREC", "fp32", "TRAINER.ATPROMPT.USE_ATPROMPT", True, *BASE),
            host_fork=True,
        ),
    ],
    "trainers/elp_coop.py": [
        Method(
            "ExtrasLinearProbeCoOp",
            "configs/trainers/ExtrasLinearProbeCoOp/vit_b16_ep10_bs4_lr35.yaml",
            ("TRAINER.COOP.PREC", "fp32", *BASE),
        ),
        Method(
            "ExtrasLinearProbeKgCoOp",
            "configs/trainers/ExtrasLinearProbeKgCoOp/vit_b16_ep10_ctxv1_bs4_lr35.yaml",
            ("TRAINER.COOP.PREC", "fp32", *BASE),
        ),
    ],
    "trainers/mmrl.py": [
        Method(
            "MMRL",
            "configs/trainers/MMRL/vit_b16.yaml",
            ("TRAINER.MMRL.PREC", "fp32", "TRAINER.MMRL.REP_LAYERS", "[2, 3]", "TASK", "B2N"),
        ),
        Method(
            "MMRLpp",
            "configs/trainers/MMRLpp/vit_b16.yaml",
            ("TRAINER.MMRLpp.PREC", "fp32", "TRAINER.MMRLpp.REP_LAYERS", "[2, 3]", "TASK", "B2N"),
        ),
    ],
    "trainers/mmadapter.py": [
        Method(
            "MultiModalAdapter",
            "configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml",
            (
                *("TRAINER.MMADAPTER.PREC", "fp32", "TRAINER.MMADAPTER.ADAPTER_START", 2),
                *("TRAINER.MMADAPTER.ADAPTER_END", 3),
            ),
        ),
    ],
    "trainers/rpo.py": [
        Method(
            "RPO",
            "configs/trainers/RPO/main_K4.yaml",
            ("TRAINER.RPO.PREC", "fp32", *LARGE),
        ),
    ],
    "trainers/adapters.py": [
        Method(
            "ADAPTER",
            "configs/trainers/SGD_lr1e-1_B256_ep300.yaml",
            ("TRAINER.ADAPTER.PREC", "fp32"),
            fails={
                "accelerated": "no module of it has layers of CLIP's transformers",
                "sampler": "its train.py chooses the sampler",
            },
        ),
    ],
    "trainers/taskres.py": [
        Method(
            "TaskRes",
            "configs/trainers/TaskRes/adam_lr2e-4_B256_ep200_ViT16.yaml",
            ("TRAINER.TaskRes.PREC", "fp32"),
        ),
    ],
    "trainers/textrefiner.py": [
        Method("TextRefiner", "configs/trainers/TextRefiner/vit_b16_ep10_ctxv1.yaml", LARGE),
    ],
    "trainers/tcp.py": [
        Method(
            "TCP", "configs/trainers/TCP/vit_b16_ep100_ctxv1.yaml", ("TRAINER.COOP.PREC", "fp32")
        ),
    ],
    "trainers/kgcoop.py": [
        Method("KgCoOp", "configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml"),
    ],
    "trainers/prograd.py": [
        Method(
            "ProGrad",
            "configs/trainers/ProGrad/rn50.yaml",
            (
                *("TRAINER.COOP.PREC", "fp32", "MODEL.BACKBONE.NAME", "ViT-B/16"),
                *("LOSS.NAME", "prograd"),
            ),
            host_fork=True,
        ),
    ],
    "trainers/promptsrc.py": [
        Method(
            "PromptSRC",
            "configs/trainers/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml",
            deep("PROMPTSRC"),
        ),
    ],
    "trainers/maple.py": [
        Method(
            "MaPLe",
            "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
            ("TRAINER.MAPLE.PROMPT_DEPTH", 3),
        ),
        Method("IVLP", "configs/trainers/IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml", deep("IVLP")),
        Method(
            "VPT",
            "configs/trainers/VPT/vit_b16_c2_ep5_batch4_4.yaml",
        ),
    ],
    "trainers/cocoop.py": [
        Method("CoOp", "configs/trainers/CoOp/vit_b16.yaml", ("TRAINER.COOP.PREC", "fp32")),
        Method(
            "CoOp",
            "configs/trainers/CoOp/vit_b16.yaml",
            ("TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.CSC", True),
        ),
        Method(
            "CoOp",
            "configs/trainers/CoOp/vit_b16.yaml",
            ("TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
        ),
        Method(
            "CoCoOp",
            "configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
            ("TRAINER.COCOOP.PREC", "fp32"),
        ),
    ],
}


def recognise(folder: Path) -> list[tuple[Path, list[Method]]]:
    """The folders with a train.py of a host, `folder` or those in it, and the host's trainers."""
    inside = sorted(x.parent for x in folder.glob("*/train.py"))
    for places in ([folder], inside):
        found = [(place, methods) for place in places if (methods := _methods(place))]
        if found:
            return found
    return []


def _methods(place: Path) -> list[Method]:
    if not (place / "train.py").is_file():
        return []
    return next((methods for file, methods in HOSTS.items() if (place / file).is_file()), [])
