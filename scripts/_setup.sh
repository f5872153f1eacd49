# Sourced by the other scripts. Changes to the root of the repository and defines
#   setup EXTRAS    installs the package in a Python environment, e.g. setup report,test
# If an environment is active, it is used; otherwise .venv is created. If the same setup.py was
# installed there with the same extras before, the installation is skipped.
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
        fail "this python3 has no venv or pip: install them (Debian, Ubuntu: python3-venv)"
    # --clear removes the files of an interrupted attempt
    python3 -m venv --clear "$1"
}

setup() { # EXTRAS
    if ! environment_active; then
        if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
            say "Creating a virtual environment in .venv"
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
