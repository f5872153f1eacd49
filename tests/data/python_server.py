"""Programs in processes of their own that need not import torch, which takes half of their time.

`Server` starts one Python that has imported it, and forks that for each program. What a program
sees is what Python would give it: arguments, folder, environment, streams, `__main__`, exit code.
Where that cannot be said (options and variables of Python itself, no fork), it is started anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

STARTED_ANEW = ("PYTHON", "OMP_", "MKL_", "KMP_", "LD_")  # variables that are read at the start
TIMEOUT = 900  # seconds


class Server:
    """Runs Python's command lines as `subprocess.run` does; start it with a `with` block."""

    def __enter__(self) -> Server:
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.communicate()  # the end of its input ends it

    def run(self, args: list[str], cwd: Path, env: dict[str, str]):
        """The program with these arguments of Python, and what it wrote; env: added variables."""
        everything = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        plain = args[:1] in (["-m"], ["-c"]) or args[0].endswith(".py")
        anew = any(name.startswith(STARTED_ANEW) for name in env)
        if not plain or anew or not hasattr(os, "fork"):
            return subprocess.run(
                [sys.executable, *args], cwd=cwd, env=everything, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=TIMEOUT,
            )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            request = {"args": args, "cwd": str(cwd), "env": everything, "folder": folder}
            code = self._ask(json.dumps(request))
            out, err = ((Path(folder) / x).read_text(encoding="utf-8") for x in ("out", "err"))
        return subprocess.CompletedProcess([sys.executable, *args], code, out, err)

    def _ask(self, request: str) -> int:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        print(request, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


# --------------------------------------------------------------------------- in the server
def serve() -> None:
    import torch._dynamo  # noqa: F401  of every optimizer, and of torchvision
    import torchvision  # noqa: F401

    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        child = os.fork()
        if not child:
            requests.close()
            answers.close()
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    os._exit(0)


def _become(args: list[str], cwd: str, env: dict[str, str], folder: str) -> None:
    """Be the program, and end."""
    import atexit
    import random
    import runpy
    import signal
    import threading
    import traceback

    import numpy as np

    signal.alarm(TIMEOUT)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sources = (os.devnull, f"{folder}/out", f"{folder}/err")
    for number, (path, mode) in enumerate(zip(sources, (os.O_RDONLY, *2 * [577]), strict=True)):
        file = os.open(path, mode, 0o600)  # 577: write, create, truncate
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    random.seed()
    np.random.seed()
    code: object = 0
    try:
        if args[0] == "-m":
            sys.path[0], sys.argv = cwd, args[1:]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        elif args[0] == "-c":
            sys.path[0], sys.argv = "", ["-c", *args[2:]]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(args[1], "<string>", "exec"), vars(main))
        else:
            sys.path[0], sys.argv = str(Path(args[0]).resolve().parent), args
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        frames = error.__traceback__
        while frames is not None and "runpy" not in frames.tb_frame.f_code.co_filename:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames or error.__traceback__)
        code = 1
    if not isinstance(code, (int, type(None))):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 255)


if __name__ == "__main__":
    serve()
