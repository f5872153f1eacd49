#!/usr/bin/env bash
# Lint and tests.
#   bash scripts/test.sh [--fast] [PYTEST ARGUMENTS ...]      --fast leaves the slow tests out
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report,test
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
python -m ruff check .
python -m pytest "$@"
