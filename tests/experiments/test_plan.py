import math
from pathlib import Path

import pytest
import yaml

from npt.config import find_config
from npt.errors import NPTError
from npt.experiments.plan import PROTOCOLS, merge
from npt.experiments.reading import Selection, check_part, load_experiment
from npt.flags import parse_args

MINIMAL = {"trainers": {"MaPLe": {"config": "maple.yaml"}}, "datasets": ["shapes"]}


def experiment(**fields):
    return check_part({**MINIMAL, **fields}, "here")


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


def test_untrained_methods_are_tested_once_for_all_seeds_and_ratios():
    trainers = {"Zero": {"config": "z.yaml", "train": False}, "A": {"config": "a.yaml"}}
    runs = experiment(trainers=trainers, seeds=[3, 4], ratios=[1.0, 0.1]).runs("out")
    assert [(r.ratio, r.seed) for r in runs if r.label == "Zero"] == [(1.0, 3)]
    assert len([r for r in runs if r.label == "A"]) == 4


def test_base_to_new_trains_on_base_and_tests_both():
    run = experiment(ratios=[0.01], opts={"OPTIM.MAX_EPOCH": 2}).runs("out")[0]
    assert run.folder.parent.parent == Path("out/shapes/base/shots_16/tau_0.01")
    assert run.folder.parent.name.startswith("MaPLe-maple-") and run.folder.name == "seed1"
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
    assert len({run.folder for run in runs}) == 5
    assert pairs(runs[1].argv(runs[1].evaluations[0]))["TRAINER.NPT.W1"] == "0.1"
    assert dict(runs[4].params) == {"TRAINER.NPT.REDUCTION": "sum", "TRAINER.NPT.W1": 3.0}


def test_a_label_may_be_another_name_for_a_trainer_with_opts():
    spec = {"config": "a.yaml", "trainer": "MaPLeNPT", "opts": {"TRAINER.NPT.W1": 0}}
    run = experiment(trainers={"only MI": spec}).runs("out")[0]
    assert (run.label, run.trainer, run.opts) == ("only MI", "MaPLeNPT", (("TRAINER.NPT.W1", 0),))


def test_every_shipped_experiment_expands(repository):
    beside = {"methods.yaml", "costs.yaml"}
    files = sorted((repository / "configs" / "experiments").glob("*/*.yaml"))
    files = [file for file in files if file.name not in beside]
    assert {"demo.yaml", "all_methods.yaml", "reduction.yaml", "table1.yaml"} <= {
        f.name for f in files
    }
    for file in files:
        shipped = load_experiment(file)
        for part in shipped.parts.values():
            points = math.prod(len(values) for values in part.grid.values())
            trained = len(part.seeds) * len(part.ratios)
            below = len(part.seeds) * sum(ratio < 1 for ratio in part.ratios) * part.control
            expected = 0
            for spec in part.trainers.values():
                alone = not (part.grid and spec.get("grid", True))
                learns = spec.get("train", True)
                expected += (1 if alone else points) * (trained if learns else 1)
                expected += below if alone and learns else 0
            runs = part.runs("out")
            assert len(runs) == len(part.datasets) * expected, file.name
            for run in runs:
                assert find_config(run.config).is_file()


def test_the_command_line_changes_fields_and_adds_options(tmp_path):
    file = tmp_path / "x.yaml"
    trainers = {"A": {"config": "a.yaml"}, "B": {"config": "b.yaml"}}
    file.write_text(yaml.safe_dump({"trainers": trainers, "datasets": ["d"], "opts": {"A.B": 1}}))
    overrides = "seeds 1,2 datasets e trainers B ratios 0.5 shots 4 OPTIM.LR 0.1"
    (changed,) = load_experiment(file, overrides.split()).parts.values()
    assert (changed.seeds, changed.datasets, changed.ratios) == ((1, 2), ("e",), (0.5,))
    assert changed.shots == 4
    assert list(changed.trainers) == ["B"]
    assert changed.opts == {"A.B": 1, "OPTIM.LR": "0.1"}


# --------------------------------------------------------------------------- types of imbalance
TYPE = "DATASET.IMBALANCE_TYPE"
TINY = {
    "Zero": {
        "trainer": "ZeroshotCLIP",
        "config": "configs/trainers/ZeroshotCLIP/tiny.yaml",
        "train": False,
    },
    "MaPLe": {"config": "configs/trainers/MaPLe/tiny.yaml"},
    "MaPLe+NPT": {"trainer": "MaPLeNPT", "config": "configs/trainers/MaPLe/tiny.yaml"},
}


def tiny(**fields):
    return experiment(trainers=TINY, datasets=["mini_land"], **fields)


def labels(runs):
    return [(run.label, run.ratio) for run in runs]


def test_a_control_is_a_run_of_each_trained_method_below_tau_1():
    plain, both = (tiny(control=x, ratios=[1, 0.05]).runs("out") for x in (False, True))
    added = [run for run in both if run not in plain]
    assert labels(added) == [("MaPLe (same budget)", 0.05), ("MaPLe+NPT (same budget)", 0.05)]
    assert [run for run in both if run in plain] == plain  # in the same folders
    for run in added:
        (own,) = [x for x in plain if x.label + " (same budget)" == run.label and x.ratio < 1]
        assert (run.position, run.setting, run.folder.parents[1]) == (
            *(own.position, own.setting),
            own.folder.parents[1],
        )
        for old, new in zip(own.evaluations, run.evaluations, strict=True):
            changed = pairs(run.argv(new)).items() - pairs(own.argv(old)).items()
            assert changed == {(TYPE, "balanced_budget")}


def test_the_points_of_a_grid_have_no_control():
    trainers = {"MaPLe+NPT": TINY["MaPLe+NPT"], "MaPLe": {**TINY["MaPLe"], "grid": False}}
    fields = {"trainers": trainers, "grid": {"TRAINER.NPT.W1": [0.1, 3.0]}, "ratios": [0.05]}
    found = labels(experiment(control=True, **fields).runs("out"))
    assert set(found) - set(labels(experiment(**fields).runs("out"))) == {
        ("MaPLe (same budget)", 0.05)
    }
    assert len(found) == 4


def test_the_type_of_every_run_is_in_its_label_where_it_matters():
    runs = tiny(opts={TYPE: "step"}, ratios=[1, 0.05]).runs("out")
    expected = [("Zero", 1.0), ("MaPLe", 1.0), ("MaPLe+NPT", 1.0)]
    assert labels(runs) == [*expected, ("MaPLe (step)", 0.05), ("MaPLe+NPT (step)", 0.05)]
    # Without training and at tau 1 there is one run for all types.
    plain = {run.folder for run in tiny(ratios=[1, 0.05]).runs("out")}
    assert [run.folder in plain for run in runs] == [True] * 3 + [False] * 2
    natural = tiny(opts={TYPE: "natural"}).runs("out")
    assert labels(natural) == [
        ("Zero", 1.0), ("MaPLe (natural)", 1.0), ("MaPLe+NPT (natural)", 1.0)
    ]  # fmt: skip
    assert [run.folder in plain for run in natural] == [True, False, False]


@pytest.mark.parametrize("types", [["exp", "step", "balanced_budget"], ["step", "exp"]])
def test_types_in_a_grid_are_one_run_at_tau_1(types):
    runs = tiny(grid={TYPE: types}, ratios=[1, 0.05]).runs("out")
    assert len({run.folder for run in runs}) == len(runs)
    below = [label for label, ratio in labels(runs) if ratio < 1]
    assert below == [f"{x} {kind}".replace("balanced_budget", "balanced_budget (same budget)")
                     for x in ("MaPLe", "MaPLe+NPT") for kind in types]  # fmt: skip
    assert [x for x in labels(runs) if x[1] == 1] == [
        ("Zero", 1.0), ("MaPLe", 1.0), ("MaPLe+NPT", 1.0)
    ]  # fmt: skip


def test_a_trainer_with_a_type_of_its_own_stands_beside_the_same_without():
    step = {**TINY["MaPLe"], "trainer": "MaPLe", "opts": {TYPE: "step"}}
    for trainers in ({"S": step, "MaPLe": TINY["MaPLe"]}, {"MaPLe": TINY["MaPLe"], "S": step}):
        runs = experiment(trainers=trainers, datasets=["mini_land"], ratios=[1, 0.1]).runs("out")
        assert sorted(labels(runs)) == [("MaPLe", 0.1), ("MaPLe", 1.0), ("S (step)", 0.1)]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"control": "yes"}, "control in here must be true or false"),
        ({"control": True, "opts": {TYPE: "step"}}, "leave out DATASET.IMBALANCE_TYPE"),
        ({"control": True, "grid": {TYPE: ["exp", "step"]}}, "leave out DATASET.IMBALANCE_TYPE"),
        ({"opts": {TYPE: "natural"}, "ratios": [1, 0.05]}, "set ratios to 1, not 0.05"),
        ({"grid": {TYPE: ["exp", "natural"]}, "ratios": [0.1]}, "set ratios to 1, not 0.1"),
    ],
)
def test_what_does_not_go_together(fields, words):
    with pytest.raises(NPTError, match=words):
        experiment(**fields)


SHARED = """
seeds: [1]
parts:
  one: {protocol: cross_dataset, datasets: [mini_net], targets: [mini_land, mini_flags]}
  two: {protocol: domain_generalisation, datasets: [mini_net], targets: [mini_net_a, mini_land]}
  three: {datasets: [mini_land], ratios: [0.5], trainers: [MaPLe]}
trainers: [Zero, MaPLe, NPT]
ratios: [1.0, 0.1]
"""
METHODS = """
Zero: {trainer: ZeroshotCLIP, train: false, config: configs/trainers/ZeroshotCLIP/tiny.yaml}
CoOp: {config: configs/trainers/CoOp/tiny.yaml}
MaPLe:
  config: configs/trainers/MaPLe/tiny.yaml
  published: configs/trainers/CoOp/tiny.yaml
  transfer: {published: configs/trainers/CoCoOp/tiny.yaml}
NPT: {trainer: MaPLeNPT, config: configs/trainers/MaPLe/tiny.yaml}
"""


@pytest.fixture
def shared(tmp_path):
    (tmp_path / "methods.yaml").write_text(METHODS)
    (tmp_path / "shared.yaml").write_text(SHARED)
    return tmp_path / "shared.yaml"


def test_parts_that_need_the_same_training_share_a_run(shared):
    experiment = load_experiment(shared)
    assert list(experiment.parts) == ["one", "two", "three"]
    runs = experiment.runs("out")
    # of mini_net: Zero, and MaPLe and NPT at two ratios; of mini_land: MaPLe
    assert len(runs) == len({run.folder for run in runs}) == 6
    (run,) = [r for r in runs if (r.method, r.ratio, r.dataset) == ("NPT", 0.1, "mini_net")]
    names = [evaluation.name for evaluation in run.evaluations]
    assert names == ["source", "mini_land", "mini_flags", "mini_net_a"]


def test_a_run_in_two_experiments_has_one_folder(shared):
    (shared.parent / "other.yaml").write_text(
        "trainers: {Other name: {trainer: MaPLeNPT, config: configs/trainers/MaPLe/tiny.yaml}}\n"
        "datasets: [mini_land]\nratios: [0.5]\ngrid: {TRAINER.NPT.W1: [0.3, 0.1]}\n"
    )
    selected = Selection(methods=("NPT",), ratios=(0.5,), datasets=("mini_land",))
    (first,) = load_experiment(shared, (), selected).parts["one"].runs("out")
    default, other = load_experiment(shared.parent / "other.yaml").runs("out")
    assert default.label == "Other name w1=0.3" and first.dataset == "mini_net"
    (same,) = check_part(
        {"trainers": {"NPT": {"trainer": "MaPLeNPT", "config": "configs/trainers/MaPLe/tiny.yaml"}},
         "datasets": ["mini_land"], "ratios": [0.5]}, "here"
    ).runs("out")  # fmt: skip
    assert default.folder == same.folder != other.folder  # 0.3 is the default of W1
    assert merge([default, same, other]) == [default, other]


def test_keys_that_change_no_figure_change_no_folder(shared):
    def folder(*opts):
        return (
            experiment(
                trainers={"CoOp": {"config": "configs/trainers/CoOp/tiny.yaml"}},
                datasets=["mini_land"],
                opts=dict(opts),
            )
            .runs("out")[0]
            .folder
        )

    assert folder() == folder(("DATASET.ROOT", "elsewhere")) == folder(("TRAIN.PRINT_FREQ", 7))
    assert folder() != folder(("OPTIM.LR", 0.5)) == folder(("OPTIM.LR", "0.5"))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ("", {(1.0, "one"): "CoCoOp", (0.1, "one"): "MaPLe", (0.5, "three"): "MaPLe"}),
        ("paper", {(1.0, "one"): "MaPLe", (0.1, "one"): "MaPLe", (0.5, "three"): "MaPLe"}),
        ("published", {(1.0, "one"): "CoCoOp", (0.1, "one"): "CoCoOp", (0.5, "three"): "CoOp"}),
    ],
)
def test_whose_settings_a_method_is_trained_with(shared, settings, expected):
    parts = load_experiment(shared, (), Selection(settings=settings)).parts
    found = {
        (run.ratio, part): (run.config.split("/")[2], run.setting)
        for part in ("one", "three")
        for run in parts[part].runs("out")
        if run.method == "MaPLe"
    }
    assert {key: config for key, (config, _) in found.items()} == expected
    for config, setting in found.values():
        assert setting == ("paper" if config == "MaPLe" else "published")
    npt = [r for r in parts["one"].runs("out") if r.method == "NPT"]
    assert {(r.config, r.setting) for r in npt} == {("configs/trainers/MaPLe/tiny.yaml", "paper")}


def test_a_selection_keeps_what_each_part_has_of_it(shared):
    def select(**what):
        return load_experiment(shared, (), Selection(**what)).parts

    parts = select(datasets=("mini_land",))
    assert parts["one"].targets == ("mini_land",) and parts["one"].datasets == ("mini_net",)
    assert parts["three"].datasets == ("mini_land",)
    assert list(select(datasets=("mini_net_a",))) == ["two"]
    assert [list(p.trainers) for p in select(methods=("NPT",)).values()] == [["NPT"]] * 2
    parts = select(methods=("NPT",), added=("CoOp",))
    assert [list(p.trainers) for p in parts.values()] == [["NPT", "CoOp"]] * 2 + [["CoOp"]]
    parts = select(ratios=(0.25,), seeds=(4, 5))
    assert [p.ratios for p in parts.values()] == [(0.25,), (0.25,), (0.5,)]
    assert all(p.seeds == (4, 5) for p in parts.values())
    assert not any(p.control for p in parts.values())
    assert all(p.control for p in select(control=True).values())
    shared.write_text(SHARED + "control: false\n")
    assert not any(p.control for p in select(control=True).values())
    with pytest.raises(NPTError, match=r"--methods MaPLee: .* did you mean MaPLe"):
        select(added=("MaPLee",))


@pytest.mark.parametrize(
    "text, words",
    [
        ("parts: 3", "parts in"),
        ("parts: {a: 3}", r"parts\.a in"),
        ("parts: {a: {seads: 3}}", "seads"),
        ("report: [1]", "report in"),
        ("settings: ours", "paper or published"),
        ("opts: {SEED: 3}", "SEED is not an option of .*: set seeds"),
        ("grid: {DATASET.IMBALANCE_RATIO: [0.1]}", "set ratios"),
        ("trainers: {A: {config: a, opts: {TRAINER.NAME: B}}}", "set trainers"),
        ("trainers: [MaPLe, Mapel]", "'Mapel', which is not in the methods.yaml"),
        ("trainers: {A: {config: a, transfer: 3}}", r"trainers\.A\.transfer"),
        ("trainers: {A: {config: a, transfer: {confg: b}}}", r"trainers\.A\.transfer\.confg"),
    ],
)
def test_messages_of_files_with_parts(shared, text, words):
    fields = {**yaml.safe_load(SHARED), **yaml.safe_load(text)}
    shared.write_text(yaml.safe_dump(fields))
    with pytest.raises(NPTError, match=words):
        load_experiment(shared).runs("out")


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
