"""NPT in real host repositories, in those whose checkouts are at hand.

NPT_HOSTS names folders of checkouts, separated as in PATH (`NPT_HOSTS=~/CoOp:~/KgCoOp`); each is
recognised by its files, and real_hosts.py says how its trainers are run. With DASSL_REPO, each also
runs on that Dassl, and so does the host repository of these tests; a host that needs the Dassl it
brings along runs on that one only. CLIP has ViT-B/16's widths and random weights, and images are
small: the tests check that every step works and that results agree.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import layouts
import pytest
import torch
from clip.model import CLIP
from hosts_kit import PATTERNS, Run
from real_hosts import Method, recognise

BOOT = Path(__file__).with_name("boot.py")
REPO = Path(__file__).with_name("repo")
SMALL = (
    *("INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 2),
    *("DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ", 1),
)
OFF = ("TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)
REMEDIES = ("TRAINER.NPT.CLASS_WEIGHT", "balanced", "TRAINER.NPT.LOGIT_ADJUST", 1)
TAIL = ("DATASET.NUM_SHOTS", 4, "DATASET.IMBALANCE_RATIO", 0.25)
CLIPS = {  # name -> arguments of CLIP: the real widths, but few layers and small images
    "ViT-B-16": (512, 32, 3, 768, 16, 77, 49408, 512, 8, 3),
    "ViT-L-14": (768, 32, 3, 1024, 16, 77, 49408, 768, 12, 3),
    "ViT-B-32": (512, 224, 1, 768, 16, 77, 49408, 512, 8, 1),  # stands for large images
    "RN50": (1024, 32, (1, 1, 1, 1), 64, None, 77, 49408, 512, 8, 1),
}

FOLDERS = [Path(x).expanduser() for x in os.environ.get("NPT_HOSTS", "").split(os.pathsep) if x]
DASSL = os.environ.get("DASSL_REPO", "")
if not FOLDERS and not DASSL:
    pytest.skip("neither NPT_HOSTS nor DASSL_REPO is set", allow_module_level=True)


class Case(NamedTuple):
    """A trainer of a checkout, on one engine."""

    place: Path  # the folder with train.py
    method: Method
    engine: str  # embedded, dassl (that of DASSL_REPO) or fork (that of the host)

    @property
    def name(self) -> str:
        return self.method.trainer

    def skip_if_it_fails(self, *whats: str) -> None:
        for what in ("trains", "npt", *whats):
            if what in self.method.fails:
                pytest.skip(f"{what}: {self.method.fails[what]}")

    def __str__(self) -> str:
        return f"{self.place.name}-{self.name}-{self.engine}"


def cases() -> list[Case]:
    found = [case for folder in FOLDERS if folder.is_dir() for case in recognise(folder)]
    return [
        Case(place.resolve(), method, engine)
        for place, methods in found
        for method in methods
        for engine in (["fork"] if method.host_fork else ["embedded", *["dassl"] * bool(DASSL)])
    ]


class RealRun(Run):
    """A finished run of a host, whose trainer may have several models."""

    @property
    def log(self) -> str:
        return (self.output / "log.txt").read_text()

    @property
    def accuracies(self) -> list[str]:
        return re.findall(r"(?:\* accuracy: |acc_test )([\d.]+)", self.log)

    @property
    def epoch(self) -> int:
        return max(int(x.name.rpartition("-")[2]) for x in self.output.glob("*/model.pth.tar-*"))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{file.parent.name}.{key}": x
            for file in sorted(self.output.glob(f"*/model.pth.tar-{self.epoch}"))
            for key, x in torch.load(file, weights_only=False)["state_dict"].items()
        }


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of CLIPs with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clips")
    for name, arguments in CLIPS.items():
        state = CLIP(*arguments).state_dict()
        torch.save({key: x.half() for key, x in state.items()}, folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="session")
def eurosat(tmp_path_factory):
    """The data of a host: hosts store their few shots beside it, each in its own way."""

    @cache
    def root(place: Path) -> Path:
        folder = tmp_path_factory.mktemp("data")
        layouts.put_split("EuroSAT", folder, layouts.build("EuroSAT", folder))
        return folder

    return root


@pytest.fixture(scope="module")
def started(request, python, clips, eurosat):
    """Start a host's train.py with these settings."""

    def run(
        case: Case,
        suffix: str,
        output: Path,
        *pairs: object,
        more: tuple[object, ...] = (),
    ) -> RealRun:
        method, environment = case.method, {"NPT_ENGINE": "embedded"}
        flags = ["--root", eurosat(case.place), "--seed", 1, "--output-dir", output]
        flags += ["--trainer", case.name + suffix, *method.flags, *more]
        flags += ["--dataset-config-file", "configs/datasets/eurosat.yaml"]
        flags += ["--config-file", method.config]
        if case.engine == "fork":
            environment = {"NPT_ENGINE": ""}
        if case.engine == "dassl":
            environment = dict(request.getfixturevalue("on_dassl"))
        adapter = method.adapter if suffix else ""
        program = (BOOT, clips, adapter, "train.py")
        opts = (*SMALL, *method.settings, *pairs)
        environment["PYTHONHASHSEED"] = "0"  # LASP takes the order of a set of class names
        done = python(*program, *flags, *opts, cwd=case.place, **environment)
        return RealRun(done, output)

    return run


@pytest.fixture(scope="module")
def trained(started, tmp_path_factory):
    """A finished training, run once for all tests."""

    @cache
    def run(case: Case, suffix: str, *pairs: object) -> RealRun:
        folder = tmp_path_factory.mktemp(case.name + suffix)
        found = started(case, suffix, folder / "seed1", *pairs)
        assert found.done.returncode == 0, found.done.stderr[-3000:]
        return found

    return run


@pytest.fixture(scope="module")
def on_dassl():
    """The environment of runs on the Dassl that DASSL_REPO names."""
    if not DASSL:
        pytest.skip("DASSL_REPO does not name a checkout of Dassl")
    paths = [str(Path(DASSL).resolve()), os.environ.get("PYTHONPATH", "")]
    return {"NPT_ENGINE": "installed", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(params=cases(), ids=str)
def case(request) -> Case:
    return request.param


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_its_folder_is_that_of_a_host(folder):
    assert folder.is_dir(), f"there is no folder {folder}"
    assert recognise(folder), (
        f"{folder} is not a host that this file knows; run it by hand: docs/plugin.md"
    )


@pytest.mark.parametrize("trainer", PATTERNS)
def test_every_pattern_trains_on_dassl(python, on_dassl, host_clip, dots, tmp_path, trainer):
    flags = ["--root", dots, "--output-dir", tmp_path, "--trainer", f"{trainer}NPT", "--seed", 1]
    flags += ["--dataset-config-file", "configs/dots.yaml", "--config-file", "configs/short.yaml"]
    program = (BOOT, tmp_path, "", "train.py")  # for packages that Dassl imports
    pairs = ("DATASET.NUM_SHOTS", 2)
    done = python(*program, *flags, *pairs, cwd=REPO, HOST_CLIP=host_clip, **on_dassl)
    assert done.returncode == 0, done.stderr[-3000:]
    found = Run(done, tmp_path).result
    assert found["versions"]["engine"].startswith("installed")
    assert found["results"]["test"]["lcd"] is not None


def test_it_trains_with_npt(trained, started, tmp_path, case):
    if "trains" in case.method.fails:
        done = started(case, "", tmp_path / "seed1").done  # the host's own trainer
        assert done.returncode and case.method.fails["trains"] in done.stderr
        return
    if "npt" in case.method.fails:
        done = started(case, "NPT", tmp_path / "seed1").done
        assert done.returncode == 2 and case.method.fails["npt"] in done.stderr
        return
    run = trained(case, "NPT")
    assert "loss_lc" in run.log
    # a host that calls no test in its training has the figures of the last epoch alone
    measures = next(iter(run.result["results"].values()), run.result["training"])
    assert measures["lcd"] is not None and measures["mid"] is not None
    engine = "embedded" if case.engine == "embedded" else "installed"
    assert run.result["versions"]["engine"].startswith(engine)
    assert run.result["trainer"] == f"{case.name}NPT"


def test_without_weights_it_is_the_host_s_trainer(trained, case):
    case.skip_if_it_fails()
    alone, wrapped = trained(case, ""), trained(case, "NPT", *OFF)
    assert alone.accuracies == wrapped.accuracies
    assert alone.weights.keys() == wrapped.weights.keys()
    for key, x in alone.weights.items():
        assert torch.equal(wrapped.weights[key], x), key


def test_checkpoints_go_both_ways(trained, started, tmp_path, case):
    case.skip_if_it_fails("checkpoints")
    for maker, reader in (("", "NPT"), ("NPT", "")):
        made = trained(case, maker)
        flags = ("--eval-only", "--model-dir", made.output, "--load-epoch", made.epoch)
        read = started(case, reader, tmp_path / reader, more=flags)
        assert read.done.returncode == 0, read.done.stderr[-3000:]
        assert float(read.accuracies[-1]) == float(made.accuracies[-1])


def test_checkpoints_of_our_own_trainers(
    trained, started, python, repository, eurosat, clips, tmp_path, case
):
    if case.engine != "embedded" or case.name not in ("CoOp", "CoCoOp"):
        pytest.skip("the others' code runs in half precision, which ours refuses on a CPU")

    def ours(output: Path, *flags: object) -> RealRun:
        root = eurosat(case.place)
        usual = ["--root", root, "--seed", 1, "--trainer", case.name, "--output-dir", output]
        usual += ["--dataset-config-file", "configs/datasets/eurosat.yaml"]
        usual += ["--config-file", case.place / case.method.config]
        pairs = ("MODEL.BACKBONE.NAME", clips / "ViT-B-16.pt", *SMALL, *case.method.settings)
        done = python("train.py", *usual, *flags, *pairs, cwd=repository, NPT_ENGINE="embedded")
        assert done.returncode == 0, done.stderr[-3000:]
        return RealRun(done, output)

    def of(model: Path) -> tuple[object, ...]:
        return ("--eval-only", "--model-dir", model, "--load-epoch", 2)

    made = ours(tmp_path / "ours")
    read = started(case, "", tmp_path / "read", more=of(made.output))
    assert read.done.returncode == 0, read.done.stderr[-3000:]
    assert float(read.accuracies[-1]) == float(made.accuracies[-1])
    theirs = trained(case, "")
    assert ours(tmp_path / "by ours", *of(theirs.output)).accuracies[-1] == theirs.accuracies[-1]


def test_it_is_accelerated_or_says_why_not(trained, case):
    case.skip_if_it_fails()
    plain, fast = trained(case, "NPT"), trained(case, "NPT", "MODEL.ACCELERATE", True)
    reason = case.method.fails.get("accelerated")
    assert ("accelerated" in fast.done.stderr) == (reason is not None)
    assert (reason or "") in fast.done.stderr
    for key, x in plain.weights.items():
        scale = float(x.float().abs().max())
        torch.testing.assert_close(
            fast.weights[key].float(), x.float(), rtol=2e-2, atol=2e-2 * scale
        )


def test_its_data_are_thinned(trained, case):
    case.skip_if_it_fails("thinned")
    run = trained(case, "NPT", *TAIL)
    assert run.result["train_counts"][0] == 4 and run.result["train_counts"][-1] == 1


def test_remedies_change_what_it_learns(trained, started, tmp_path, case):
    case.skip_if_it_fails("thinned")
    if "remedies" in case.method.fails:
        done = started(case, "NPT", tmp_path / "seed1", *OFF, *TAIL, *REMEDIES).done
        assert done.returncode == 2 and case.method.fails["remedies"] in done.stderr
        return
    assert learn_otherwise(trained(case, "", *TAIL), trained(case, "NPT", *OFF, *TAIL, *REMEDIES))


def test_a_sampler_changes_what_it_learns(trained, case):
    case.skip_if_it_fails("thinned", "sampler")
    balanced = ("DATALOADER.TRAIN_X.SAMPLER", "ClassBalancedSampler")
    assert learn_otherwise(trained(case, "", *TAIL), trained(case, "NPT", *OFF, *TAIL, *balanced))


def learn_otherwise(one: RealRun, other: RealRun) -> bool:
    learned = {key: x for key, x in one.weights.items() if x.is_floating_point()}
    return any(not torch.equal(other.weights[key], x) for key, x in learned.items())


def test_a_remedy_for_its_own_trainer_is_refused(started, case, tmp_path):
    case.skip_if_it_fails()
    done = started(case, "", tmp_path / "seed1", *REMEDIES).done
    assert done.returncode == 2 and f"name {case.name}NPT" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_own_tool_reads_the_log(trained, python, case):
    case.skip_if_it_fails()
    if not (case.place / "parse_test_res.py").is_file():
        pytest.skip("it has no parse_test_res.py")
    run = trained(case, "NPT")
    program = ("-m", "npt.run", "parse_test_res.py")  # it imports dassl
    done = python(*program, run.output.parent, cwd=case.place, NPT_ENGINE="embedded")
    assert f"accuracy: {float(run.accuracies[-1]):.2f}%" in done.stdout
