"""Which errors are printed as one sentence, and which keep their traceback."""

import json
import warnings
from urllib.error import URLError

import pytest
import yaml
from PIL import UnidentifiedImageError

import npt  # noqa: F401  lets dassl be imported
from dassl.utils.errors import InvalidValue, MissingFile, UnknownName
from npt.errors import FOREIGN, InvalidArgument, NPTError, report, sentence
from npt.losses import language_collapse_loss

SAID = "the key is wrong: set another"


@pytest.mark.parametrize(
    "kind", [NPTError, InvalidArgument, InvalidValue, MissingFile, UnknownName]
)
def test_errors_for_users_are_their_message_in_one_line(kind):
    assert sentence(kind(SAID)) == SAID
    assert sentence(kind("two\n  lines")) == "two lines"


def test_files_images_addresses_and_yaml_are_the_users(tmp_path):
    def caught(function):
        with pytest.raises(Exception) as info:
            function()
        return sentence(info.value)

    missing = tmp_path / "none" / "x"
    assert caught(missing.read_text) == f"No such file or directory: '{missing}'"
    assert caught(lambda: yaml.safe_load("a: [1"))
    assert sentence(UnidentifiedImageError("cannot identify image file 'a.png'"))
    assert sentence(URLError("no route")) is not None


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        ValueError("a bug of ours"),
        TypeError("x"),
        AssertionError("x"),
        RuntimeError("CUDA error"),
        OSError("no file is named"),
        json.JSONDecodeError("x", "", 0),
    ],
)
def test_any_other_error_is_a_bug_and_is_raised(error):
    assert sentence(error) is None
    with pytest.raises(type(error)):
        report(error)


def test_the_sentence_says_how_to_see_the_traceback(capsys, monkeypatch):
    monkeypatch.delenv("NPT_TRACEBACK", raising=False)
    assert report(NPTError(SAID)) == 2
    assert capsys.readouterr().err == f"error: {SAID} (NPT_TRACEBACK=1 shows the traceback)\n"
    monkeypatch.setenv("NPT_TRACEBACK", "1")
    with pytest.raises(NPTError):
        report(NPTError(SAID))


def test_the_names_of_foreign_errors_are_right():
    """They are compared by name, so that a name that has moved would go unnoticed."""
    kinds = (InvalidValue, UnidentifiedImageError, URLError, yaml.YAMLError)
    found = {f"{c.__module__}.{c.__qualname__}" for kind in kinds for c in kind.__mro__}
    assert found >= FOREIGN


def test_wrong_arguments_of_public_functions_are_value_errors_and_sentences():
    import torch

    with pytest.raises(ValueError) as info:
        language_collapse_loss(torch.ones(1, 4))
    assert "at least two classes" in (sentence(info.value) or "")


def test_errors_of_data_loading_processes_are_judged_alike():
    """torch raises the error of a worker again, under its type, with its traceback as text."""
    traceback = (
        "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/x/torch/worker.py", line 1, in loop\n    data = fetch()\n'
        '  File "/x/data.py", line 9, in read\n    raise it\n{1}\n'
    )

    def said(kind, last):
        return sentence(kind(traceback.format(kind.__name__, last)))

    assert said(MissingFile, "dassl.utils.errors.MissingFile: a.png is gone") == "a.png is gone"
    assert said(NPTError, "npt.errors.NPTError: no\n  good") == "no good"
    errno = "FileNotFoundError: [Errno 2] No such file or directory: 'a.png'"
    assert said(FileNotFoundError, errno) == "No such file or directory: 'a.png'"
    assert said(KeyError, "KeyError: 'img'") is None
    assert said(ValueError, "ValueError: a bug") is None


def test_errors_of_real_data_loading_processes():
    from torch.utils.data import DataLoader

    def first(kind):
        class Broken(list):
            def __getitem__(self, i):
                raise kind(SAID)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return next(iter(DataLoader(Broken([1]), num_workers=1)))

    for kind in (NPTError, MissingFile):
        with pytest.raises(kind) as info:
            first(kind)
        assert sentence(info.value) == SAID
    with pytest.raises(ZeroDivisionError) as bug:
        first(ZeroDivisionError)
    assert sentence(bug.value) is None
