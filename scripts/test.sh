#!/usr/bin/env bash
# Linter, type checker and tests, on all cores.
#   bash scripts/test.sh [--fast | --long] [PYTEST ARGUMENTS ...]
# --fast skips the slow tests; --long adds those that take many minutes (faults, fuzzing).
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report,test
case "${1:-}" in
    --fast) shift && set -- -m "not slow and not long" "$@" ;;
    --long) shift ;;
    *) set -- -m "not long" "$@" ;;
esac
python -m ruff check .
python -m mypy
# Each test process uses one thread. --dist loadfile keeps the tests of a file, which share slow
# fixtures, in one process.
OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile "$@"
