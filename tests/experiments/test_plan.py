import math
from pathlib import Path

import pytest
import yaml

from npt.config import find_config
from npt.errors import NPTError
from npt.experiments.plan import PROTOCOLS, check_experiment, load_experiment
from npt.flags import parse_args

MINIMAL = {"trainers": {"MaPLe": {"config": "maple.yaml"}}, "datasets": ["shapes"]}


def experiment(**fields):
    return check_experiment({**MINIMAL, **fields}, "here")


def pairs(argv: list[str]) -> dict[str, str]:
    opts = parse_args(argv).opts
    return dict(zip(opts[::2], opts[1::2], strict=True))


def test_one_run_for_each_combination():
    trainers = {"A": {"config": "a.yaml"}, "B": {"config": "b.yaml"}}
    runs = experiment(
        trainers=trainers, datasets=["d", "e"], ratios=[1, 0.05, 0.01], seeds=[1, 2]
    ).runs("out")
    assert len(runs) == 2 * 2 * 3 * 2
    assert len({(r.label, r.dataset, r.ratio, r.seed) for r in runs}) == len(runs)


def test_untrained_methods_are_tested_once_for_all_seeds():
    trainers = {"Zero": {"config": "z.yaml", "train": False}, "A": {"config": "a.yaml"}}
    runs = experiment(trainers=trainers, seeds=[3, 4], ratios=[1.0, 0.1]).runs("out")
    assert [(r.ratio, r.seed) for r in runs if r.label == "Zero"] == [(1.0, 3), (0.1, 3)]
    assert len([r for r in runs if r.label == "A"]) == 4


def test_base_to_new_trains_on_base_and_tests_both():
    run = experiment(ratios=[0.01], opts={"OPTIM.MAX_EPOCH": 2}).runs("out")[0]
    assert run.folder == Path("out/shapes/shots_16/tau_0.01/MaPLe/seed1")
    assert [run.output(e).name for e in run.evaluations] == ["base", "new"]
    args = parse_args(run.argv(run.evaluations[1]))
    assert (args.trainer, args.config_file, args.seed) == ("MaPLe", "maple.yaml", 1)
    assert args.dataset_config_file == "configs/datasets/shapes.yaml"
    assert args.output_dir == str(run.folder / "new")
    assert args.eval_only and args.model_dir == str(run.folder / "base")
    assert not parse_args(run.argv(run.evaluations[0])).eval_only
    assert pairs(run.argv(run.evaluations[1])) == {
        "DATASET.NUM_SHOTS": "16",
        "DATASET.SUBSAMPLE_CLASSES": "new",
        "DATASET.IMBALANCE_RATIO": "0.01",
        "OPTIM.MAX_EPOCH": "2",
    }


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalisation"])
def test_transfer_trains_on_all_classes_and_tests_every_target(protocol):
    run = experiment(protocol=protocol, targets=["x", "y"], evaluate=["val", "test"]).runs("o")[0]
    seen = [(e.name, e.dataset, e.classes, e.splits) for e in run.evaluations]
    assert seen == [
        ("source", "shapes", "all", ("val", "test")),
        ("x", "x", "all", ("test",)),
        ("y", "y", "all", ("test",)),
    ]


def test_a_protocol_may_be_a_list_of_evaluations():
    runs = experiment(protocol=[dict(e) for e in PROTOCOLS["base_to_new"]]).runs("out")
    assert runs == experiment().runs("out")


def test_grid_expands_trainers_without_grid_false():
    trainers = {"Plain": {"config": "a.yaml", "grid": False}, "NPT": {"config": "a.yaml"}}
    grid = {"TRAINER.NPT.REDUCTION": ["mean", "sum"], "TRAINER.NPT.W1": [0.1, 3.0]}
    runs = experiment(trainers=trainers, grid=grid).runs("out")
    labels = [r.label for r in runs]
    expected = ["Plain", "NPT mean w1=0.1", "NPT mean w1=3", "NPT sum w1=0.1", "NPT sum w1=3"]
    assert labels == expected
    assert [r.position for r in runs] == [0, 1, 2, 3, 4]
    assert runs[1].folder.parent.name == "NPT_mean_w1=0.1"
    assert pairs(runs[1].argv(runs[1].evaluations[0]))["TRAINER.NPT.W1"] == "0.1"
    assert dict(runs[4].params) == {"TRAINER.NPT.REDUCTION": "sum", "TRAINER.NPT.W1": 3.0}


def test_a_label_may_be_another_name_for_a_trainer_with_opts():
    spec = {"config": "a.yaml", "trainer": "MaPLeNPT", "opts": {"TRAINER.NPT.W1": 0}}
    run = experiment(trainers={"only MI": spec}).runs("out")[0]
    assert (run.label, run.trainer, run.opts) == ("only MI", "MaPLeNPT", (("TRAINER.NPT.W1", 0),))


def test_every_shipped_experiment_expands(repository):
    files = sorted((repository / "configs" / "experiments").glob("*.yaml"))
    assert {"demo.yaml", "mini.yaml", "reduction.yaml"} <= {f.name for f in files}
    for file in files:
        shipped = load_experiment(file)
        points = math.prod(len(values) for values in shipped.grid.values())
        expected = sum(
            (points if spec.get("grid", True) else 1)
            * (len(shipped.seeds) if spec.get("train", True) else 1)
            for spec in shipped.trainers.values()
        )
        settings = len(shipped.datasets) * len(shipped.ratios)
        assert len(shipped.runs("out")) == settings * expected, file.name
        for spec in shipped.trainers.values():
            assert find_config(spec["config"]).is_file()


def test_the_command_line_changes_fields_and_adds_options(tmp_path):
    file = tmp_path / "x.yaml"
    trainers = {"A": {"config": "a.yaml"}, "B": {"config": "b.yaml"}}
    file.write_text(yaml.safe_dump({"trainers": trainers, "datasets": ["d"], "opts": {"A.B": 1}}))
    overrides = "seeds 1,2 datasets e trainers B ratios 0.5 shots 4 OPTIM.LR 0.1"
    changed = load_experiment(file, overrides.split())
    assert (changed.seeds, changed.datasets, changed.ratios) == ((1, 2), ("e",), (0.5,))
    assert changed.shots == 4
    assert list(changed.trainers) == ["B"]
    assert changed.opts == {"A.B": 1, "OPTIM.LR": "0.1"}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sedes": [1]}, ["sedes", "seeds"]),
        ({"datasets": []}, ["datasets"]),
        ({"trainers": {}}, ["trainers"]),
        ({"trainers": {"A": {}}}, ["trainers.A", "config"]),
        ({"trainers": {"A": {"config": "a", "lr": 1}}}, ["trainers.A.lr"]),
        ({"trainers": {"A": {"config": "a", "train": "no"}}}, ["trainers.A.train"]),
        ({"seeds": ["one"]}, ["seeds", "one"]),
        ({"seeds": [1, 1]}, ["share a folder"]),
        ({"grid": {"A.B": 3}}, ["grid.A.B"]),
        ({"evaluate": ["tset"]}, ["evaluate", "tset"]),
        ({"protocol": "base2new"}, ["base2new", "base_to_new"]),
        ({"protocol": [{"name": "x"}]}, ["protocol"]),
        ({"protocol": "cross_dataset"}, ["targets"]),
        ({"opts": [1]}, ["opts"]),
    ],
)
def test_messages_name_the_wrong_field(fields, words):
    with pytest.raises(NPTError) as error:
        experiment(**fields).runs("out")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "overrides", [["seeds"], ["trainers", "C"], ["seed", "3"], ["--jobs", "3"]]
)
def test_wrong_overrides_are_refused(tmp_path, overrides):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(NPTError):
        load_experiment(file, overrides)
