# Sourced by the scripts here. Goes to the root of the repository and defines
#   setup EXTRAS    a Python environment with the package installed in it, e.g. setup report,test
# An active environment is used as it is; otherwise .venv is made. Installing is skipped where the
# same setup.py was installed with the same extras before.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

environment_active() {
    [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ] && return 0
    [ -n "${CONDA_DEFAULT_ENV:-}" ] && [ "$CONDA_DEFAULT_ENV" != base ]
}

check_python() { # PROGRAM
    command -v "$1" >/dev/null 2>&1 ||
        fail "there is no $1 on the PATH: install Python 3.10 or newer"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$1 is $("$1" --version 2>&1): Python 3.10 or newer is needed"
}

make_environment() { # FOLDER
    check_python python3
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        fail "this python3 lacks venv or pip: install them (Debian, Ubuntu: python3-venv)"
    # --clear: what a cut-short attempt left behind must not count as an environment
    python3 -m venv --clear "$1"
}

setup() { # EXTRAS
    if ! environment_active; then
        if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
            say "Making a virtual environment in .venv"
            make_environment .venv
        fi
        # shellcheck disable=SC1091
        . .venv/bin/activate
    fi
    check_python python
    local prefix stamp
    prefix=$(python -c 'import sys; print(sys.prefix)')
    stamp="$prefix/.npt-$(printf '%s %s ' "$PWD" "$1" | cat - setup.py | cksum | tr ' ' '-')"
    if [ ! -e "$stamp" ]; then
        say "Installing the package with [$1] into $prefix (torch is large: minutes the first time)"
        python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
        touch "$stamp"
    fi
}
