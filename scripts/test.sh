#!/usr/bin/env bash
# Linter, type checker and tests, on all cores.
#   bash scripts/test.sh [--fast] [PYTEST ARGUMENTS ...]      --fast leaves the slow tests out
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report,test
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
python -m ruff check .
python -m mypy
# Tests use one thread each. Files stay whole, since tests of one file share what is slow to make.
OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile "$@"
