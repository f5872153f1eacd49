"""scripts/parse_test_res.py, which averages results over seeds."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "parse_test_res.py"


@pytest.fixture(scope="module")
def parse():
    spec = importlib.util.spec_from_file_location("parse_test_res", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(accuracy, f1=50.0):
    return (
        f"=> result\n* total: 1,234\n* correct: 1,100\n* accuracy: {accuracy:.1f}%\n"
        f"* error: {100 - accuracy:.1f}%\n* macro_f1: {f1:.1f}%\n"
    )


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.fixture
def run(tmp_path):
    """Three seeds with 80, 82 and 84 percent, after validation results."""
    folder = tmp_path / "runs" / "one"
    for seed, end, accuracy in [
        (1, "Finish training", 80),
        (2, "Finished training", 82),
        (10, "Finish training", 84),
    ]:
        text = result(11) + f"{end}\nDeploy the last-epoch model\n" + result(accuracy, accuracy - 9)
        write(folder / f"seed{seed}", "log.txt", text)
    return folder


def test_mean_and_population_std(parse, run, capsys):
    assert parse.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Parsing files in {run}"
    assert [line.rsplit("accuracy: ")[1] for line in lines[1:4]] == ["80.00%", "82.00%", "84.00%"]
    assert lines[-2] == "* accuracy: 82.00% +- 1.63%"


def test_ci95(parse, run, capsys):
    parse.main([str(run), "--ci95"])
    assert "* accuracy: 82.00% +- 1.85%" in capsys.readouterr().out


def test_keyword(parse, run, capsys):
    parse.main([str(run), "--keyword", "macro_f1"])
    assert "* macro_f1: 73.00% +- 1.63%" in capsys.readouterr().out


def test_test_log(parse, tmp_path, capsys):
    write(tmp_path / "seed1", "log.txt", "* accuracy: 1.0%\n" + result(70))
    assert parse.main([str(tmp_path)]) == 2
    assert "--test-log" in capsys.readouterr().err
    assert parse.main([str(tmp_path), "--test-log"]) == 0
    assert "* accuracy: 70.00% +- 0.00%" in capsys.readouterr().out


def test_multi_exp(parse, run, capsys):
    write(run.parent / "two" / "seed1", "log.txt", "Finish training\n" + result(60))
    assert parse.main([str(run.parent), "--multi-exp"]) == 0
    out = capsys.readouterr().out
    assert "* accuracy: 82.00% +- 1.63%" in out and "* accuracy: 60.00% +- 0.00%" in out
    assert out.endswith("Average performance\n* accuracy: 71.00%\n")


def test_the_result_of_a_resumed_seed_is_in_a_later_log(parse, tmp_path, capsys):
    write(tmp_path / "seed1", "log.txt", "epoch [1/5] ...\n")
    write(tmp_path / "seed1", "log.txt-2024-01-01-00-00-00", "Finish training\n" + result(10))
    write(tmp_path / "seed1", "log.txt-2024-01-02-00-00-00", "Finish training\n" + result(90))
    write(tmp_path / "seed2", "log.txt", "epoch [1/5] ...\n")
    assert parse.main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "* accuracy: 90.00% +- 0.00%" in captured.out
    assert "seed2" in captured.err and "no result" in captured.err


def test_the_last_result_counts(parse, tmp_path, capsys):
    """A training may be started again after its end, and then anew."""
    seed = tmp_path / "seed1"
    write(seed, "log.txt", "Finish training\n" + result(10))
    write(seed, "log.txt-2024-01-01-00-00-00", "Finish training\n" + result(20))
    write(seed, "log.txt-2024-01-02-00-00-00", "Finish training\n")  # killed in its test
    write(seed, "log.txt-2024-01-03-00-00-00", result(30))  # --eval-only
    assert parse.main([str(tmp_path)]) == 0
    assert "* accuracy: 20.00%" in capsys.readouterr().out
    write(seed, "log.txt-2024-01-04-00-00-00", "epoch [1/5] batch [1/2]\n" + result(40))
    assert parse.main([str(tmp_path)]) == 2


def test_an_evaluation_in_the_folder_of_its_training(parse, tmp_path, capsys):
    seed = tmp_path / "seed1"
    write(seed, "log.txt", "eval_only: False\n" + result(10))  # killed after a first epoch
    write(seed, "log.txt-2024-01-01-00-00-00", result(11) + "Finish training\n" + result(20))
    assert parse.main([str(tmp_path), "--test-log"]) == 0
    assert "* accuracy: 20.00%" in capsys.readouterr().out
    write(seed, "log.txt-2024-01-02-00-00-00", "eval_only: True\n" + result(30))
    write(seed, "log.txt-2024-01-02-00-00-01", "epoch [1/5] batch [1/2]\n" + result(40))
    assert parse.main([str(tmp_path), "--test-log"]) == 0
    assert "* accuracy: 30.00%" in capsys.readouterr().out


def test_errors(parse, tmp_path, capsys):
    assert parse.main([str(tmp_path / "gone")]) == 2
    assert "error: there is no folder" in capsys.readouterr().err
    assert parse.main([str(tmp_path)]) == 2
    assert "check the folder and --keyword" in capsys.readouterr().err
    assert parse.main([str(tmp_path), "--multi-exp"]) == 2


def test_other_errors_keep_their_traceback(parse, run, monkeypatch):
    def fail(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(parse, "read_result", fail)
    with pytest.raises(ValueError, match="a bug"):
        parse.main([str(run)])


def test_reads_what_the_evaluator_prints(parse, tmp_path, capsys):
    import torch

    from dassl.config import get_cfg_default
    from dassl.evaluation import build_evaluator

    evaluator = build_evaluator(get_cfg_default(), lab2cname={0: "a", 1: "b"})
    evaluator.process(torch.eye(2), torch.tensor([0, 0]))
    evaluator.evaluate()
    write(tmp_path / "seed1", "log.txt", "Finish training\n" + capsys.readouterr().out)
    parse.main([str(tmp_path)])
    assert "* accuracy: 50.00% +- 0.00%" in capsys.readouterr().out
