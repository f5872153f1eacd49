#!/usr/bin/env bash
# Linter, type checker and tests, on all cores.
#   bash scripts/test.sh [--fast] [PYTEST ARGUMENTS ...]      --fast skips the slow tests
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report,test
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
python -m ruff check .
python -m mypy
# Each test process uses one thread. --dist loadfile keeps the tests of a file, which share slow
# fixtures, in one process.
OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile "$@"
