"""NPT in real host repositories, for those of which a checkout is at hand.

COOP_REPO, MAPLE_REPO, PROMPTSRC_REPO, KGCOOP_REPO, TCP_REPO and MMRL_REPO name checkouts. With
DASSL_REPO, each also runs on that Dassl, and so does the host repository of these tests. CLIP has
ViT-B/16's widths and random weights, and images are small: the tests check that every step works
and that results agree.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import layouts
import pytest
import torch
from clip.model import CLIP
from hosts_kit import PATTERNS, Run

from npt.engine import broken_on_this_torch

BOOT = Path(__file__).with_name("boot.py")
REPO = Path(__file__).with_name("repo")
SMALL = [
    *("INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 2),
    *("DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ", 1),
]


OFF = ("TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)
REMEDIES = ("TRAINER.NPT.CLASS_WEIGHT", "balanced", "TRAINER.NPT.LOGIT_ADJUST", 1)
TAIL = ("DATASET.NUM_SHOTS", 4, "DATASET.IMBALANCE_RATIO", 0.25)


class Host(NamedTuple):
    """How a trainer of a host is run.

    variable: of the environment, which names the checkout; config: its yaml; settings: KEY VALUE
    adapter: an expression of the text features, of `model`; accelerated: if npt.accelerate knows it
    clips: its modules that download CLIP
    named_late: its train.py takes its own names as --trainer, so the NPT trainer is TRAINER.NAME
    """

    variable: str
    trainer: str
    config: str
    settings: tuple[object, ...]
    adapter: str = ""
    accelerated: bool = True
    clips: str = "clip.clip"
    named_late: bool = False


HOSTS = [
    Host(
        "COOP_REPO",
        "CoOp",
        "CoOp/vit_b16.yaml",
        ("TRAINER.COOP.PREC", "fp32"),
    ),
    Host(
        "COOP_REPO",
        "CoOp",
        "CoOp/vit_b16.yaml",
        ("TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.CSC", True),
    ),
    Host(
        "COOP_REPO",
        "CoOp",
        "CoOp/vit_b16.yaml",
        ("TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    ),
    Host(
        "COOP_REPO",
        "CoCoOp",
        "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
        ("TRAINER.COCOOP.PREC", "fp32"),
    ),
    Host(
        "MAPLE_REPO",
        "MaPLe",
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        ("TRAINER.MAPLE.PROMPT_DEPTH", 3),
    ),
    Host(
        "MAPLE_REPO",
        "IVLP",
        "IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml",
        ("TRAINER.IVLP.PROMPT_DEPTH_VISION", 3, "TRAINER.IVLP.PROMPT_DEPTH_TEXT", 3),
    ),
    Host(
        "MAPLE_REPO",
        "VPT",
        "VPT/vit_b16_c2_ep5_batch4_4.yaml",
        (),
        adapter="model.embeddings.return_fixed_embeddings()",
        accelerated=False,
    ),
    Host(
        "PROMPTSRC_REPO",
        "PromptSRC",
        "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml",
        ("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 3),
    ),
    Host("KGCOOP_REPO", "KgCoOp", "KgCoOp/vit_b16_ep100_ctxv1.yaml", ()),
    Host(
        "TCP_REPO",
        "TCP",
        "TCP/vit_b16_ep100_ctxv1.yaml",
        ("TRAINER.COOP.PREC", "fp32"),
        accelerated=False,
        clips="clip.clip trainers.clip_text.clip",
    ),
    Host(
        "MMRL_REPO",
        "MMRL",
        "MMRL/vit_b16.yaml",
        ("TRAINER.MMRL.PREC", "fp32", "TRAINER.MMRL.REP_LAYERS", "[2, 3]", "TASK", "B2N"),
        accelerated=False,
        named_late=True,
    ),
]
THERE = [host for host in HOSTS if host.variable in os.environ]
ENGINES = ("embedded", "dassl") if "DASSL_REPO" in os.environ else ("embedded",)
if not THERE and len(ENGINES) == 1:
    variables = sorted({host.variable for host in HOSTS})
    pytest.skip(f"none of {', '.join(variables)}, DASSL_REPO is set", allow_module_level=True)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> str:
    """A CLIP of ViT-B/16's widths, three layers, for images of 32 pixels."""
    torch.manual_seed(0)
    model = CLIP(512, 32, 3, 768, 16, 77, 49408, 512, 8, 3)
    path = tmp_path_factory.mktemp("clip") / "random.pt"
    torch.save({name: x.half() for name, x in model.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def eurosat(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    truth = layouts.build("EuroSAT", root)
    layouts.put_split("EuroSAT", root, truth)
    return str(root)


@pytest.fixture(scope="module")
def started(request, python, clip_file, eurosat):
    """Start a host's train.py with these settings."""

    def run(
        host: Host,
        engine: str,
        trainer: str,
        output: Path,
        *pairs: object,
        more: tuple[object, ...] = (),
    ) -> Run:
        repo = Path(os.environ[host.variable]).resolve()
        named = host.trainer if host.named_late else trainer
        flags = ["--root", eurosat, "--seed", 1, "--trainer", named, "--output-dir", output]
        flags += ["--dataset-config-file", "configs/datasets/eurosat.yaml"]
        flags += ["--config-file", f"configs/trainers/{host.config}"]
        environment, settings = {"NPT_ENGINE": "embedded"}, SMALL
        if engine == "dassl":
            environment, more_settings = request.getfixturevalue("on_dassl")
            settings = [*SMALL, *more_settings]
        program = (BOOT, clip_file, host.clips, host.adapter, "train.py")
        opts = [*more, *settings, *host.settings, *pairs]
        opts += ["TRAINER.NAME", trainer] if host.named_late else []
        done = python(*program, *flags, *opts, cwd=repo, **environment)
        return Run(done, output)

    return run


@pytest.fixture(scope="module")
def trained(started, tmp_path_factory):
    """A finished training, run once for all tests."""

    @cache
    def run(host: Host, engine: str, trainer: str, *pairs: object) -> Run:
        found = started(host, engine, trainer, tmp_path_factory.mktemp(trainer) / "out", *pairs)
        assert found.done.returncode == 0, found.done.stderr[-3000:]
        return found

    return run


def name(case: object) -> str:
    if isinstance(case, Host):
        return "-".join(str(x) for x in (case.trainer, *case.settings[2:]))
    return str(case)


@pytest.fixture(params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture(params=THERE, ids=name)
def host(request) -> Host:
    return request.param


@pytest.fixture(scope="module")
def on_dassl(tmp_path_factory):
    """The environment, and KEY VALUE pairs, of runs on the Dassl that DASSL_REPO names."""
    if "DASSL_REPO" not in os.environ:
        pytest.skip("DASSL_REPO does not name a checkout of Dassl")
    dassl = Path(os.environ["DASSL_REPO"]).resolve()
    paths = [str(dassl), os.environ.get("PYTHONPATH", "")]
    # its warm-up does not run on newer torch
    broken = broken_on_this_torch(dassl / "dassl")
    settings = ("OPTIM.WARMUP_EPOCH", -1) if broken else ()
    return {"NPT_ENGINE": "installed", "PYTHONPATH": os.pathsep.join(paths)}, settings


@pytest.mark.parametrize("trainer", PATTERNS)
def test_every_pattern_trains_on_dassl(python, on_dassl, host_clip, dots, tmp_path, trainer):
    environment, settings = on_dassl
    flags = ["--root", dots, "--output-dir", tmp_path, "--trainer", f"{trainer}NPT", "--seed", 1]
    flags += ["--dataset-config-file", "configs/dots.yaml", "--config-file", "configs/short.yaml"]
    pairs = ("DATASET.NUM_SHOTS", 2, *settings)
    program = ("-m", "npt.run", "train.py")
    done = python(*program, *flags, *pairs, cwd=REPO, HOST_CLIP=host_clip, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = Run(done, tmp_path).result
    assert found["versions"]["engine"].startswith("installed")
    assert found["results"]["test"]["lcd"] is not None


def test_it_trains_with_npt(trained, host, engine):
    run = trained(host, engine, f"{host.trainer}NPT")
    assert "loss_lc" in run.done.stdout
    measures = run.result["results"]["test"]
    assert all(measures[name] is not None for name in ("lcd", "mid", "nc1"))
    wanted = "embedded" if engine == "embedded" else "installed"
    assert run.result["versions"]["engine"].startswith(wanted)


def test_without_weights_it_is_the_host_s_trainer(trained, host, engine):
    alone = trained(host, engine, host.trainer)
    wrapped = trained(host, engine, f"{host.trainer}NPT", *OFF)
    assert alone.accuracy == wrapped.accuracy
    assert alone.weights.keys() == wrapped.weights.keys()
    for key, x in alone.weights.items():
        assert torch.equal(wrapped.weights[key], x), key


def test_checkpoints_go_both_ways(trained, started, tmp_path, host, engine):
    for maker, reader in (("", "NPT"), ("NPT", "")):
        made = trained(host, engine, host.trainer + maker)
        flags = ("--eval-only", "--model-dir", made.output, "--load-epoch", 2)
        read = started(host, engine, host.trainer + reader, tmp_path / reader, more=flags)
        assert read.done.returncode == 0, read.done.stderr[-3000:]
        assert read.accuracy == made.accuracy


def test_checkpoints_of_our_own_trainers(
    trained, started, python, repository, clip_file, eurosat, tmp_path, host
):
    if host.variable != "COOP_REPO":
        pytest.skip("the others' code runs in half precision, which ours refuses on a CPU")

    def ours(output: Path, *flags: object) -> Run:
        repo = Path(os.environ[host.variable]).resolve()
        usual = ["--root", eurosat, "--seed", 1, "--trainer", host.trainer, "--output-dir", output]
        usual += ["--dataset-config-file", "configs/datasets/eurosat.yaml"]
        usual += ["--config-file", repo / "configs" / "trainers" / host.config]
        pairs = ("MODEL.BACKBONE.NAME", clip_file, *SMALL, *host.settings)
        done = python("train.py", *usual, *flags, *pairs, cwd=repository, NPT_ENGINE="embedded")
        assert done.returncode == 0, done.stderr[-3000:]
        return Run(done, output)

    def of(model: Path) -> tuple[object, ...]:
        return ("--eval-only", "--model-dir", model, "--load-epoch", 2)

    made = ours(tmp_path / "ours")
    more = of(made.output)
    read = started(host, "embedded", host.trainer, tmp_path / "read", more=more)
    assert read.done.returncode == 0, read.done.stderr[-3000:]
    assert read.accuracy == made.accuracy
    theirs = trained(host, "embedded", host.trainer)
    assert ours(tmp_path / "read by ours", *of(theirs.output)).accuracy == theirs.accuracy


def test_it_is_accelerated(trained, host, engine):
    if not host.accelerated:
        pytest.skip("of no kind that npt.accelerate knows")
    plain = trained(host, engine, f"{host.trainer}NPT")
    fast = trained(host, engine, f"{host.trainer}NPT", "MODEL.ACCELERATE", True)
    assert "accelerated" not in fast.done.stderr
    for key, x in plain.weights.items():
        scale = float(x.float().abs().max())
        torch.testing.assert_close(
            fast.weights[key].float(), x.float(), rtol=2e-2, atol=2e-2 * scale
        )


def test_its_data_are_thinned(trained, host, engine):
    run = trained(host, engine, f"{host.trainer}NPT", *TAIL)
    assert run.result["train_counts"][0] == 4 and run.result["train_counts"][-1] == 1


def test_remedies_change_what_it_learns(trained, host, engine):
    sampler = ("DATALOADER.TRAIN_X.SAMPLER", "ClassBalancedSampler")
    alone = trained(host, engine, host.trainer, *TAIL)
    for pairs in (REMEDIES, sampler):
        run = trained(host, engine, f"{host.trainer}NPT", *OFF, *TAIL, *pairs)
        measures = run.result["results"]["test"]
        assert measures["ece"] is not None
        own_test = host.trainer == "MMRL"  # whose scores no pass of ours gives
        assert (measures["temperature"] is None) == own_test
        assert len(run.result["per_class"]["test"]) == 5
        learned = {key: x for key, x in alone.weights.items() if x.is_floating_point()}
        assert any(not torch.equal(run.weights[key], x) for key, x in learned.items())


def test_a_remedy_for_its_own_trainer_is_refused(started, host, engine, tmp_path):
    done = started(host, engine, host.trainer, tmp_path, *REMEDIES).done
    assert done.returncode == 2 and f"name {host.trainer}NPT" in done.stderr
    assert "Traceback" not in done.stderr
