"""The command `npt`, also `python -m npt`: a verb, then that program's own flags."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from npt.errors import EXIT_BAD_INPUT, HINT, discard_output, report
from npt.stopping import EXIT_INTERRUPTED
from npt.version import __version__

VERBS = {  # verb -> (module with main(argv) -> exit code, what it does)
    "train": ("npt.commands.train", "train on a folder of your own images"),
    "test": ("npt.commands.test", "test a run's model again, also on other images"),
    "predict": ("npt.commands.predict", "classify images by the model of a run"),
    "view": ("npt.commands.view", "a page of a run: classes, confusions, mistakes, features"),
    "export": ("npt.commands.export", "write the model of a run for other programs (ONNX, ...)"),
    "compare": ("npt.commands.compare", "the figures of runs side by side"),
    "completion": ("npt.commands.completion", "print the script for a shell's completion"),
    "data": ("npt.data.__main__", "check, download and show data sets"),
    "experiments": ("npt.experiments.__main__", "run experiments, make tables and figures"),
    "run": ("npt.host.run", "run the train.py of another repository with NPT"),
    "doctor": ("npt.engine.__main__", "report what is installed and whether it works"),
}
EXIT_PIPE = 141  # as a shell says of programs that SIGPIPE has ended
USAGE = "usage: npt VERB ... (npt VERB --help)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; a reader of the output that has enough (`| head`) and Ctrl-C end it quietly."""
    _open_streams()
    try:
        code = verb(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return EXIT_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:  # such as a full disk below the output
        return report(error)
    return code


def _open_streams() -> None:
    """Give this process the standard streams that it was started without, as `npt ... <&-`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def verb(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        rows = "\n".join(f"  {verb:<12} {what}" for verb, (_, what) in VERBS.items())
        print(f"{USAGE}\n\n{rows}\n\nErrors are one sentence, exit code 2; {HINT}.")
        return 0
    if words == ["--version"]:
        print(f"npt {__version__}")
        return 0
    if not words or words[0] not in VERBS:
        said = f"unknown verb {words[0]}" if words else "a verb is missing"
        print(f"error: {said}; there are {', '.join(VERBS)}; {USAGE}", file=sys.stderr)
        return EXIT_BAD_INPUT
    module = importlib.import_module(VERBS[words[0]][0])
    return module.main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
