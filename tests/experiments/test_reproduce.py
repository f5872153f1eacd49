"""`reproduce`, its dry run, its console and its report, with runs that only write figures."""

import json
import random

import fake_runs
import pandas as pd
import pytest

from npt.errors import NPTError
from npt.experiments import reproduce, state, status
from npt.experiments.__main__ import main
from npt.experiments.frame import frame_of
from npt.experiments.plan import merge
from npt.experiments.reading import Selection
from npt.experiments.report import page
from npt.experiments.running import pool, validation
from npt.files import locked

COUNTS = {1.0: [16, 16, 16], 0.05: [16, 3, 1], 0.01: [16, 1, 1]}


def write(run):
    """Figures that differ from run to run and are always the same of one run."""
    label = random.Random(f"{run.folder.relative_to(run.out)}")
    fake_runs.write(run, 50 + 20 * label.random())
    for path in run.folder.rglob("result.json"):
        content = json.loads(path.read_text())
        if content["task"] == "training":
            content |= {"train_counts": COUNTS.get(run.ratio), "train_seconds": 10.0}
        for figures in content["results"].values():
            figures |= {"seconds": 2.0, "many": 60.0, "medium": None, "few": 40.0}
            figures["accuracy"] += label.random()
        path.write_text(json.dumps(content))


@pytest.fixture
def fake(monkeypatch):
    """Runs are written at once; `fake.problems` and `fake.failing` say what goes wrong."""

    class Fake:
        def __init__(self):
            self.problems: dict[str, str] = {}
            self.failing: tuple[str, ...] = ()

        def execute(self, runs, jobs, report):
            outcomes = []
            for run in runs:
                if state.is_complete(run):
                    continue
                error = log = None
                if run.method in self.failing:
                    error, log = "a failure", run.folder / "base" / "log.txt"
                    log.parent.mkdir(parents=True)
                    log.write_text("".join(f"line {k}\n" for k in range(20)))
                else:
                    write(run)
                outcomes.append(pool.Outcome(run, 1.0, error, log))
                report(outcomes[-1])
            return outcomes

    it = Fake()
    monkeypatch.setattr(validation, "validate", lambda runs: it.problems)
    monkeypatch.setattr(pool, "execute", it.execute)
    monkeypatch.setattr(page.figures, "fig1", _no_features)  # which need real models
    return it


def _no_features(frame):
    raise NPTError("there are no features")


def reproduced(tmp_path, *arguments):
    return main(["reproduce", *arguments, "--suite", "mini", "--out", str(tmp_path / "out")])


def loaded(name, **selection):
    (request,) = reproduce.load([name], "mini", Selection(**selection))
    return request.experiment


def text(tmp_path) -> str:
    return (tmp_path / "out/report/README.md").read_text()


def test_all_tables_and_figures(fake, tmp_path):
    assert reproduced(tmp_path, "all", "--seeds", "1,2") == 0
    report = text(tmp_path)
    for name in range(1, 5):
        assert f"## Table {name}: " in report
    for name in (2, 4, 5):
        assert f"(fig{name}.png)" in report
    assert "Not drawn: there are no features" in report and "What is missing" not in report
    files = {path.name for path in (tmp_path / "out/report").iterdir()}
    expected = {f"table{k}.{kind}" for k in range(1, 5) for kind in ("tex", "csv")}
    expected |= {f"fig{k}.{kind}" for k in (2, 4, 5) for kind in ("png", "pdf", "csv")}
    assert expected <= files
    assert not any(".tmp" in name for name in files)


def test_two_places_give_the_same_report(fake, tmp_path):
    reports = []
    for where in ("here", "there"):
        assert reproduced(tmp_path / where, "table1,fig4,fig5", "--seeds", "1") == 0
        folder = tmp_path / where / "out/report"
        reports.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert reports[0] == reports[1] and len(reports[0]) > 10


def test_runs_that_tables_share_are_run_once(fake, tmp_path, capsys):
    assert reproduced(tmp_path, "table1", "--seeds", "1") == 0
    capsys.readouterr()
    assert reproduced(tmp_path, "fig4,table1_appendix", "--seeds", "1") == 0
    assert "78 runs, 78 of them complete" in capsys.readouterr().out
    assert reproduced(tmp_path, "table3", "--seeds", "1") == 0
    # Of its 4 methods, base-to-new has two of Table 1; the transfers are one training each.
    assert f"{4 * 6 + 4} runs, {2 * 6} of them complete" in capsys.readouterr().out
    assert reproduced(tmp_path, "table2,table4", "--seeds", "1") == 0
    # The two of Table 3 have all evaluations of both already.
    assert "13 runs, 2 of them complete" in capsys.readouterr().out
    report = text(tmp_path)
    for name in ("Table 1: ", "Table 1 in full", "Table 2", "Table 3", "Table 4", "Figure 4"):
        assert f"## {name}" in report


def test_zero_shot_stands_at_every_ratio(fake, tmp_path):
    reproduced(tmp_path, "table1", "--seeds", "1", "--ratios", "1,0.25,0.0625")
    cells = pd.read_csv(tmp_path / "out/report/table1.csv")
    clip = cells[cells["method"] == "CLIP"]
    assert sorted(clip["ratio"].unique()) == [0.0625, 0.25, 1.0]
    assert clip.groupby("column")["mean"].nunique().eq(1).all()


def test_one_data_set_missing(fake, tmp_path, capsys):
    fake.problems = {"mini_flags": "MiniFlags is not there: get it"}
    assert reproduced(tmp_path, "table1,table2", "--seeds", "1") == 1
    error = capsys.readouterr().err
    assert error == "not run: mini_flags: MiniFlags is not there: get it\n"
    report = text(tmp_path)
    assert "- mini_flags: MiniFlags is not there: get it" in report
    assert "Table 1: base-to-new generalisation" in report
    cells = pd.read_csv(tmp_path / "out/report/table1.csv")
    missing = cells[cells["mean"].isna()]["column"].unique()
    assert "mini_flags" in missing and any("mean" in column for column in missing)
    target = pd.read_csv(tmp_path / "out/report/table2.csv")
    of_flags = target[target["column"] == "mini_flags"]
    assert of_flags["mean"].isna().all() and target["mean"].notna().any()
    fake.problems = {}
    assert reproduced(tmp_path, "table1,table2", "--seeds", "1") == 0
    assert "missing" not in text(tmp_path)


def test_nothing_to_run_is_an_error(fake, tmp_path, capsys):
    fake.problems = {"mini_land": "it is not there"}
    assert reproduced(tmp_path, "table1", "--datasets", "mini_land") == 2
    assert "error: it is not there" in capsys.readouterr().err


def test_a_failing_run_stops_no_other(fake, tmp_path, capsys):
    fake.failing = ("MaPLe",)
    assert reproduced(tmp_path, "table1", "--seeds", "1", "--datasets", "mini_land") == 1
    error = capsys.readouterr().err
    assert error.count("failed: mini_land tau") == 3 and error.count("    line 19") == 3
    assert "line 14" not in error
    report = text(tmp_path)
    assert "3 of 26 evaluations are missing" not in report and "6 of 30 eval" in report
    assert "- mini_land tau 1 MaPLe seed 1: a failure" in report
    fake.failing = ()
    assert reproduced(tmp_path, "table1", "--seeds", "1", "--datasets", "mini_land") == 0
    assert "What is missing" not in text(tmp_path)


def test_the_dry_run_lists_states_times_and_disk(fake, tmp_path, capsys):
    arguments = ["table1", "--seeds", "1,2", "--datasets", "mini_land"]
    assert reproduced(tmp_path, *arguments, "--dry-run") == 0
    before = capsys.readouterr().out
    assert before.count("to do") == 25 and "25 runs, 0 complete" in before
    assert not (tmp_path / "out").exists()
    reproduced(tmp_path, *arguments[:1], "--seeds", "1", "--datasets", "mini_land")
    (run,) = [
        run
        for part in loaded("table1", seeds=(1,)).parts.values()
        for run in part.runs(tmp_path / "out")
        if (run.method, run.ratio, run.dataset) == ("MaPLe", 1.0, "mini_land")
    ]
    (run.folder / "new/result.json").unlink()
    capsys.readouterr()
    assert reproduced(tmp_path, *arguments, "--dry-run") == 0
    after = capsys.readouterr().out
    assert "25 runs, 12 complete" in after and "1 of 2 tests to do" in after
    line = next(x for x in after.splitlines() if "MaPLe seed 2" in x and "tau 0.05" in x)
    assert line.split()[:5] == ["to", "do", "14", "s", "1.2"]  # as the complete run of seed 1


def test_paper_data_sets_that_are_not_there_are_named(tmp_path, capsys):
    (tmp_path / "data/eurosat").mkdir(parents=True)
    argv = ["reproduce", "table1", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*argv, "--seeds", "1", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(x.startswith("to do") for x in lines if " eurosat tau" in x)
    assert all(x.startswith("no data: dtd ") for x in lines if " dtd tau" in x)
    assert "143 runs" in lines[-1] and "estimated" in lines[-1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["table7"], "there is no table7; there are table1,"),
        (["table1", "--seeds", "one"], "'one' must be different whole numbers"),
        (["table1", "--seeds", "1,1"], "'1,1' must be different"),
        (["table1", "--seeds", "-1"], "-1"),
        (["table1", "--seeds", ""], "must be different"),
        (["table1", "--ratios", "0.1,x"], "'0.1,x' must be different numbers"),
        (["table1", "--datasets", "mini_lnd"], "did you mean mini_land?"),
        (["table1", "--datasets", "mini_net"], "has no run with these"),
        (["table1", "--methods", "Maple"], "did you mean MaPLe?"),
        (["table1", "--suite", "big"], "invalid choice"),
        (["table1", "--settings", "mine"], "invalid choice"),
        (["table1", "--jobs", "0"], "--jobs"),
        (["table1", "seeds", "1"], "seeds is not a config key"),
        (["table1", "OPTIM.LR"], "has no value"),
        (["table1", "--sedes", "1"], "--sedes"),
        (["table1", "DATASET.IMBALANCE_RATIO", "0.5"], "set ratios"),
        (["table1", "DATASET.NUM_SHOTS", "many"], "shots"),
        (["table1", "--methods", ","], "--methods: it is empty"),
        (["table1", "--out", ""], "--out: it is empty"),
        (["table1", "--out", __file__], "is not a folder"),
        (["table1", "DATASET.NUM_SHOTS", "0"], "at least 1"),
        (["table3", "TRAINER.NPT.W2", "0.8"], "methods differ in it"),
        (["fig5", "TRAINER.NPT.W1", "0.3"], "methods differ in it"),
        (["table1", "OPTIM.LRR", "1"], "OPTIM.LRR"),
        (["table1", "--ratios", "2", "--datasets", "mini_land"], "IMBALANCE_RATIO"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, words):
    out = ["--out", str(tmp_path / "out")]
    suite = [] if "--suite" in arguments else ["--suite", "mini"]
    try:
        code = main(["reproduce", arguments[0], *suite, *out, *arguments[1:]])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and words in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("result.json"))


def test_two_runners_on_one_folder(fake, tmp_path, capsys):
    with locked(tmp_path / "out/.lock", "here"):
        assert reproduced(tmp_path, "table1") == 2
    assert "another process is running an experiment" in capsys.readouterr().err


def test_a_result_cut_short_is_missing_and_named(fake, tmp_path, capsys):
    reproduced(tmp_path, "table1", "--seeds", "1", "--datasets", "mini_land")
    path = next(p for p in (tmp_path / "out").rglob("new/result.json") if "MaPLeNPT" in str(p))
    path.write_bytes(path.read_bytes()[:50])
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "1 of 30 evaluations are missing" in text(tmp_path)
    capsys.readouterr()
    assert reproduced(tmp_path, "table1", "--seeds", "1", "--datasets", "mini_land") == 0
    assert str(path) in capsys.readouterr().err
    assert "missing" not in text(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"suite": "mini", "selection": {"a": 1}}'])
def test_a_damaged_request_is_named(fake, tmp_path, capsys, content):
    reproduced(tmp_path, "table1", "--seeds", "1", "--datasets", "mini_land")
    (tmp_path / "out/asked/table1.json").write_text(content)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 2
    assert "asked/table1.json" in capsys.readouterr().err


def test_a_report_of_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and error.count("\n") == 1


def test_methods_and_keys_of_the_command_line(fake, tmp_path):
    more = ["--methods", "CoOp,CoOp+NPT", "--datasets", "mini_land", "OPTIM.MAX_EPOCH", "2"]
    more += ["DATASET.NUM_SHOTS", "4"]
    assert reproduced(tmp_path, "table1", "--seeds", "1", *more) == 0
    assert "CoOp+NPT against CoOp" in text(tmp_path)
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("run.json")]
    assert {r["trainer"] for r in records} == {"CoOp", "CoOpNPT"}
    assert {r["shots"] for r in records} == {4} and list((tmp_path / "out").rglob("shots_4"))
    assert all("OPTIM.MAX_EPOCH 2" in c for r in records for c in r["commands"].values())


def test_the_frame_has_every_evaluation_that_should_be_there(fake, tmp_path):
    (part,) = loaded("table2", seeds=(1, 2)).parts.values()
    empty = frame_of(part, tmp_path)
    assert len(empty) == (4 * 3 * 2 + 1 * 3) * 7 and empty["accuracy"].isna().all()
    for run in part.runs(tmp_path):
        if run.method != "MaPLe":
            write(run)
    frame = frame_of(part, tmp_path)
    assert set(frame[frame["accuracy"].isna()]["method"]) == {"MaPLe"}
    assert list(frame["method"].unique()) == list(part.trainers)
    assert list(frame["part"].unique()) == ["source", *part.targets]
    counts = frame[(frame["method"] == "CoCoOp") & (frame["ratio"] == 0.05)]["train_counts"]
    assert all(x == COUNTS[0.05] for x in counts)
    assert frame[~frame["trained"]]["setting"].eq("").all()


def test_every_run_of_all_scripts_is_in_one_list(tmp_path):
    """The dry run of all.sh counts shared runs once."""
    experiments = [x.experiment for x in reproduce.load(["all"], "mini", Selection())]
    single = [run.folder for x in experiments for run in x.runs(tmp_path)]
    assert len(merge(r for x in experiments for r in x.runs(tmp_path))) == len(set(single))
    assert len(set(single)) < len(single) / 2
    assert [x.name for x in experiments] == list(reproduce.NAMES)


def test_a_failure_without_a_log_has_one_line(tmp_path):
    words = status.failure("a run", "a failure", tmp_path / "no.txt")
    assert words == "failed: a run: a failure"


SMALL = ("--seeds", "1", "--datasets", "mini_land")


def test_a_refused_call_does_not_change_what_was_asked_for(fake, tmp_path, capsys):
    assert reproduced(tmp_path, "table1", *SMALL) == 0
    before = text(tmp_path)
    with locked(tmp_path / "out/.lock", "here"):
        assert reproduced(tmp_path, "table1", "--seeds", "9") == 2
    assert reproduced(tmp_path, "table1", *SMALL, "--jobs", "0") == 2
    fake.problems = {"mini_flags": "it is not there"}
    assert reproduced(tmp_path, "table1", "--datasets", "mini_flags") == 2
    assert main(["report", str(tmp_path / "out")]) == 0
    assert text(tmp_path) == before


def test_the_report_expects_what_was_asked_for(fake, tmp_path):
    """A method that one table names is not added to the others, in the report either."""
    methods = ["--methods", "CLIP,CoOp,MaPLe", "--datasets", "mini_land,mini_net_a"]
    assert reproduced(tmp_path, "all", "--seeds", "1", *methods) == 0
    assert "missing" not in text(tmp_path)
    assert "| CoOp" not in text(tmp_path).split("## Table 2")[0]


def test_a_figure_without_its_runs_is_not_drawn(fake, tmp_path):
    for methods in ("CoCoOp,CoCoOp+NPT", "CoCoOp+NPT", "MaPLe", "MaPLe,CoCoOp,CoCoOp+NPT"):
        assert reproduced(tmp_path, "fig5", *SMALL, "--methods", methods) == 0
        assert "Not drawn: " in text(tmp_path)


def test_the_report_says_which_keys_were_changed(fake, tmp_path):
    assert reproduced(tmp_path, "table1", *SMALL) == 0
    assert "Every run with" not in text(tmp_path)
    assert reproduced(tmp_path, "table1", *SMALL, "OPTIM.LR", "0.1", "TRAIN.PRINT_FREQ", "3") == 0
    assert "Every run with `OPTIM.LR 0.1`, which is not in the configs" in text(tmp_path)
    (part,) = loaded("table1", opts={"OPTIM.LR": "0.1"}).parts.values()
    assert {r.setting for r in part.runs("o")} == {"", "paper, with changed keys"}


def test_reasons_of_other_calls_are_kept(fake, tmp_path):
    fake.problems = {"mini_flags": "it is not there"}
    assert reproduced(tmp_path, "table1", "--seeds", "1") == 1
    fake.problems = {}
    assert reproduced(tmp_path, "fig1", "--seeds", "1") == 0
    assert "- mini_flags: it is not there" in text(tmp_path)
    assert reproduced(tmp_path, "table1", "--seeds", "1") == 0
    assert "it is not there" not in text(tmp_path)


def test_the_report_names_records_that_do_not_count(fake, tmp_path, capsys):
    reproduced(tmp_path, "table1", *SMALL)
    path = next(p for p in (tmp_path / "out").rglob("new/result.json") if "MaPLeNPT" in str(p))
    path.write_bytes(path.read_bytes()[:50])
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {path} ") and error.count("\n") == 1


def test_a_damaged_request_beside_others_is_named(fake, tmp_path, capsys):
    reproduced(tmp_path, "table1", *SMALL)
    (tmp_path / "out/asked/table1.json").write_text("{")
    capsys.readouterr()
    assert reproduced(tmp_path, "fig4", *SMALL) == 0
    assert "asked/table1.json" in capsys.readouterr().err
    assert "## Figure 4" in text(tmp_path) and "## Table 1" not in text(tmp_path)


def test_one_folder_is_for_one_suite(fake, tmp_path, capsys):
    reproduced(tmp_path, "table1", *SMALL)
    out = str(tmp_path / "out")
    assert main(["reproduce", "table1", "--suite", "paper", "--out", out]) == 2
    assert "has tables of the suite mini" in capsys.readouterr().err


def test_fields_of_parts_are_not_overridden_in_silence(tmp_path, capsys):
    file = "configs/experiments/mini/table3.yaml"
    assert main(["run", file, "--out", str(tmp_path), "datasets", "mini_land"]) == 2
    assert "datasets is set by the part base_to_new" in capsys.readouterr().err


# --------------------------------------------------------------------------- controls of imbalance
CONTROL = " (same budget)"
TYPE = "DATASET.IMBALANCE_TYPE"


def report_csv(tmp_path, name):
    return pd.read_csv(tmp_path / f"out/report/{name}.csv")


def test_controls_are_rows_of_every_table(fake, tmp_path, capsys):
    names = "table1,table1_appendix,table2,table3,table4"
    small = ["--seeds", "1", "--datasets", "mini_land,mini_net_a", "--ratios", "1,0.05"]
    small += ["--control"]
    assert reproduced(tmp_path, names, *small) == 0
    for name in ("table1", "table1_base", "table2", "table3", "table4"):
        cells = report_csv(tmp_path, name)
        control = cells["method"].str.endswith(CONTROL)
        trained = set(cells["method"][~control]) - {"CLIP"}
        assert set(cells["method"][control]) == {method + CONTROL for method in trained}
        assert cells["ratio"][control].max() < 1 and cells["mean"][control].notna().all()
        assert cells["ratio"][control].nunique() == cells["ratio"][cells["ratio"] < 1].nunique()
    for name in ("table1", "table2", "table4"):
        cells = report_csv(tmp_path, f"{name}_imbalance")
        assert any(cells["method"].str.startswith(f"MaPLe+NPT against MaPLe+NPT{CONTROL}, "))
    report = text(tmp_path)
    assert "What is missing" not in report
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("run.json")]
    controls = [r for r in records if r["label"].endswith(CONTROL)]
    assert controls and all(r["ratio"] < 1 for r in controls)
    assert all(f"{TYPE} balanced_budget" in c for r in controls for c in r["commands"].values())
    # What was asked for is remembered, and a request without controls has them no more.
    assert main(["report", str(tmp_path / "out")]) == 0
    assert text(tmp_path) == report
    capsys.readouterr()
    assert reproduced(tmp_path, names, *small[:-1]) == 0
    done = capsys.readouterr().out
    assert f"{len(records) - len(controls)} runs, {len(records) - len(controls)} of" in done
    assert CONTROL not in text(tmp_path)


def test_figures_have_no_controls(tmp_path, capsys):
    for name in ("fig1", "fig2", "fig4", "fig5"):
        plain, more = loaded(name), loaded(name, control=True)
        assert plain.runs("o") == more.runs("o") and plain.parts == more.parts
    arguments = ["table1", "--seeds", "1", "--datasets", "mini_land", "--control", "--dry-run"]
    assert reproduced(tmp_path, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [x for x in lines if f"mini_land tau 0.05 MaPLe{CONTROL} seed 1" in x]
    (own,) = [x for x in lines if "mini_land tau 0.05 MaPLe seed 1" in x]
    assert line.split()[:5] == own.split()[:5]  # as many images, as much time
    assert f"{1 + 4 * 3 + 4 * 2} runs" in lines[-1]


def test_a_request_of_an_earlier_version_has_no_controls(fake, tmp_path):
    assert reproduced(tmp_path, "table1", *SMALL, "--control") == 0
    path = tmp_path / "out/asked/table1.json"
    record = json.loads(path.read_text())
    assert record["selection"].pop("control") is True
    path.write_text(json.dumps({key: record[key] for key in ("suite", "selection")}))
    assert main(["report", str(tmp_path / "out")]) == 0
    assert CONTROL not in text(tmp_path) and "| MaPLe " in text(tmp_path)


def test_the_papers_figures_are_of_its_own_type_of_imbalance(fake, tmp_path, capsys):
    argv = ["reproduce", "table1", "--out", str(tmp_path / "out"), "--datasets", "eurosat,dtd"]
    assert main([*argv, "--seeds", "1"]) == 0
    assert "| paper " in text(tmp_path) and "imbalance of type" not in text(tmp_path)
    assert main([*argv, "--seeds", "1", TYPE, "step"]) == 0
    assert f"Every run with `{TYPE} step`" in text(tmp_path)
    assert "| paper " not in text(tmp_path)
    assert ", imbalance of type step" in (tmp_path / "out/report/table1.tex").read_text()
    capsys.readouterr()
    assert main([*argv, TYPE, "natural"]) == 2
    assert "set ratios to 1, not 0.05" in capsys.readouterr().err
    assert main([*argv, "--control", TYPE, "step"]) == 2
    assert "leave out" in capsys.readouterr().err


def test_every_table_says_what_was_trained_on(fake, tmp_path):
    names = ("table1", "table1_appendix", "table2", "table3", "table4")
    small = ["--seeds", "1", "--ratios", "1,0.05", "--methods", "MaPLe,MaPLe+NPT"]
    assert reproduced(tmp_path, ",".join(names), *small) == 0
    for name in names:
        cells = report_csv(tmp_path, f"{name}_train_counts")
        found = cells[cells["ratio"] == 0.05].groupby("column")["mean"].unique()
        for column, value in {
            "largest class": 16,
            "smallest class": 1,
            "classes with one image": 1,
            "ratio obtained": 1 / 16,
        }.items():
            assert list(found[column]) == [value], (name, column)


def test_exact_ratios_go_through_all_tables_and_figures(fake, tmp_path):
    small = ["--seeds", "1", "--datasets", "mini_land,mini_net_a", "--methods", "MaPLe,MaPLe+NPT"]
    assert reproduced(tmp_path, "all", *small, "--ratios", "1,0.25,0.0625") == 0
    assert "What is missing" not in text(tmp_path)
    assert {path.name for path in (tmp_path / "out").rglob("tau_*")} == {
        *("tau_1", "tau_0.25", "tau_0.0625")
    }
    for name in ("table1", "table2", "table3", "table4", "fig2", "fig4", "fig5"):
        assert set(report_csv(tmp_path, name)["ratio"].dropna()) == {1.0, 0.25, 0.0625}, name


def test_an_experiment_of_ones_own_may_have_controls(fake, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text(
        "trainers: {MaPLe: {config: configs/trainers/MaPLe/tiny.yaml}}\n"
        "datasets: [mini_land]\nratios: [1, 0.0625]\ncontrol: true\n"
    )
    out = str(tmp_path / "out")
    assert main(["run", str(file), "--out", out]) == 0
    assert main(["table", out]) == 0
    blocks = capsys.readouterr().out.split(", tau ")
    assert [x.count("MaPLe (same budget)") for x in blocks[1:]] == [0, 1]
    capsys.readouterr()
    assert main(["run", str(file), "--out", out, "control", "false"]) == 0
    assert "2 runs, 2 of them complete" in capsys.readouterr().out


def test_new_figures_of_records_become_columns(fake, tmp_path):
    (part,) = loaded("table1", seeds=(1,), datasets=("mini_land",)).parts.values()
    for run in part.runs(tmp_path):
        write(run)
        for path in run.folder.rglob("result.json"):
            content = json.loads(path.read_text())
            content["results"]["test"] |= {"worst_class": 3.0, "ece": None}
            content["per_class"] = {"test": [[1, 2], [3, 4]]}
            path.write_text(json.dumps(content))
    frame = frame_of(part, tmp_path)
    assert frame["worst_class"].eq(3).all() and frame["ece"].isna().all()
    assert main(["table", str(tmp_path), "--csv", str(tmp_path / "all.csv")]) == 0
    assert pd.read_csv(tmp_path / "all.csv")["worst_class"].eq(3).all()
