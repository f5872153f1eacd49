"""Writing, records, locks."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.errors import NPTError, UnwritableFile
from npt.files import atomic_write, check_zip, locked, read_record, write_json, write_record


def test_records_round_trip(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "d"}}
    write_record(tmp_path / "r.json", content)
    assert read_record(tmp_path / "r.json") == content
    write_json(tmp_path / "r.json", content)  # of an earlier version
    assert read_record(tmp_path / "r.json") == content


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path_factory, place, bit):
    path = tmp_path_factory.getbasetemp() / "flip.json"
    content = {"results": {"test": {"accuracy": 57.5, "lcd": None}}, "seed": 1}
    write_record(path, content)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read_record(path)
    except NPTError as error:
        assert "flip.json" in str(error)
    else:
        found = {key: value for key, value in found.items() if len(key) != len("sha256")}
        assert found == {key: content[key] for key in found}


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 9, b"[]", b"\xff\xfe", b'{"a": 1', b"[" * 200_000, b"[NaN]"]
)
def test_damaged_records_are_named(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(NPTError, match=r"r\.json"):
        read_record(tmp_path / "r.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_a_record_is_named(tmp_path):
    os.mkfifo(tmp_path / "r.json")
    with pytest.raises(NPTError, match=r"r\.json cannot be read"):
        read_record(tmp_path / "r.json")


def test_a_folder_in_place_of_a_record_is_named(tmp_path):
    with pytest.raises(NPTError, match=r"cannot be read.*delete it"):
        read_record(tmp_path)


def test_threads_do_not_share_a_temporary_file(tmp_path):
    path, failed = tmp_path / "r.json", []

    def write(number):
        try:
            for _ in range(20):
                write_record(path, {"text": str(number) * 5000})
                read_record(path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failed
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "r.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UnwritableFile, match=rf"r\.json cannot be written \({os.strerror(number)}"):
        write_json(path, {})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError):  # also for hosts that catch this
        write_json(path, {})


def test_an_error_inside_keeps_the_old_content(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------- locks
HOLDS = """
import os, sys, time
from pathlib import Path
from npt.files import locked
with locked(Path(sys.argv[1]), "testing"):
    child = os.fork()
    print(child or "", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, lock]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(next(line for line in holder.stdout if line.strip()))
    try:
        with pytest.raises(NPTError, match="another process is testing"), locked(lock, "testing"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # it lives on
        with locked(lock, "testing"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_one_process_takes_a_lock_once(tmp_path):
    lock = tmp_path / "lock"
    busy = pytest.raises(NPTError, match="another process is testing")
    with locked(lock, "testing"), busy, locked(lock, "testing"):
        pass
    with locked(tmp_path / "lock", "testing"):
        pass


def _try_lock(path, answers):
    try:
        with locked(path, "testing"):
            answers.put("held")
            time.sleep(0.5)
    except NPTError:
        answers.put("refused")


def test_of_many_processes_one_gets_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=_try_lock, args=(tmp_path / "l", answers)) for _ in range(5)
    ]
    [p.start() for p in processes]
    got = sorted(answers.get() for _ in processes)
    [p.join() for p in processes]
    assert got == ["held", *["refused"] * 4]


# --------------------------------------------------------------------------- archives
def test_archives_are_verified(tmp_path):
    import torch

    path = tmp_path / "model.pth.tar-1"
    torch.save({"a": torch.arange(1000)}, path)
    check_zip(path)
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(1000).numpy().tobytes()[:200])
    data[place + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(NPTError, match=r"model\.pth\.tar-1.*damaged"):
        check_zip(path)
    path.write_text(json.dumps({}))
    check_zip(path)  # not an archive
