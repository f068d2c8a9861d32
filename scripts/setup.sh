#!/usr/bin/env bash
# Builds .venv: the locked packages, a CPU build of torch, and this checkout as `ml_trainer_env`.
#
#   scripts/setup.sh                 everything, development tools included
#   scripts/setup.sh --runtime       only what the server needs (the Docker image)
#   scripts/setup.sh --runtime --ray    and what it needs to be part of a Ray cluster
#   scripts/setup.sh --deps-only     leave out this checkout (an image layer that rarely changes)
#
# Needs Python 3.11 or newer (PYTHON=... picks one) and a package registry; neither root nor uv.
# Runs again only when the lock, pyproject.toml, this file, the interpreter or the place changes.
# The installer is pip, so whatever mirror, proxy or certificate pip is configured for is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly STAMP=$VENV/setup.stamp
readonly PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 to 3.14; install one, or name it: PYTHON=/path/to/python3 make setup"
}

# One number for everything that the environment is made from.
fingerprint() {
    { "$python" -VV; pwd; echo "${locks[*]} $project"; cat "${locks[@]}" pyproject.toml scripts/setup.sh; } |
        cksum
}

# -qq keeps errors and drops pip's notes about mirrors that lack a package.
pip() { "$VENV/bin/python" -m pip -qq "$@"; }

make_venv() {
    # Built anew: one without pip (uv makes such), with a dead interpreter, or moved or copied here
    # (its commands still start the interpreter of the old place).
    if grep -qs "^command = .*-m venv .*$(pwd -P)/$VENV\$" "$VENV/pyvenv.cfg" &&
        pip --version >/dev/null 2>&1; then return; fi
    say "Creating $VENV ($("$python" --version))"
    if "$python" -m venv --clear "$VENV" >/dev/null 2>&1; then return; fi
    # Debian splits ensurepip off into python3-venv. Without it, pip can still be had without root.
    "$python" -m venv --clear --without-pip "$VENV"
    pip_from_python >/dev/null 2>&1 || pip_from_debian >/dev/null 2>&1 ||
        fail "no pip for $("$python" --version); on Debian: apt-get install python3-venv"
}

pip_from_python() { "$python" -m pip --python "$VENV/bin/python" install pip; }

pip_from_debian() (
    venv_python=$PWD/$VENV/bin/python
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    if [ "$(id -u)" = 0 ]; then apt-get update; fi
    apt-get download python3-pip-whl || exit
    dpkg-deb -x python3-pip-whl_*.deb .
    for wheel in "$folder"/usr/share/python-wheels/pip-*.whl; do
        "$venv_python" "$wheel/pip" install --no-index "$wheel"
    done
)

# A CPU build calls itself "+cpu" everywhere but on macOS, where no other kind exists. A registry's
# default build for Linux is a CUDA build of gigabytes that can never satisfy "+cpu", so it is never
# downloaded by accident. Of the pinned version, any build that is installed already is kept.
install_torch() {
    local version installed wanted
    version=$(sed -n 's/^ *"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
    installed=$("$VENV/bin/python" -c \
        'from importlib.metadata import version as v; print(v("torch").split("+")[0])' 2>/dev/null || true)
    if [ "$installed" = "$version" ]; then return; fi
    wanted="torch==$version+cpu"
    if [ "$(uname -s)" = Darwin ]; then wanted="torch==$version"; fi
    say "Installing $wanted"
    # First where pip is configured to look (a mirror, a folder of wheels), then PyTorch's own index.
    pip install --no-deps "$wanted" 2>/dev/null && return
    pip install --no-deps --retries 2 --index-url "$PYTORCH_CPU_INDEX" "$wanted" && return
    fail "found no CPU build of torch $version for $("$python" --version) on $(uname -sm):
  neither where pip is configured to look, nor at $PYTORCH_CPU_INDEX.
  Install a build of that version yourself and repeat:
  $VENV/bin/python -m pip install torch==$version"
}

install_project() {
    say "Installing this checkout"
    pip install --no-deps --no-build-isolation --editable .
    # The root folder may have any name; type checkers find the package by this link. It lies inside
    # $VENV because `openenv validate` refuses links among a package's own files.
    mkdir -p "$VENV/typing"
    ln -sfn ../.. "$VENV/typing/ml_trainer_env"
}

locks=(requirements-dev.lock)
project=project
for argument in "$@"; do
    case $argument in
        --runtime) locks[0]=requirements.lock ;;
        --ray) locks[1]=requirements-ray.lock ;;
        --deps-only) project= ;;
        *) fail "unknown option $argument" ;;
    esac
done

python=$(find_python)
wanted=$(fingerprint)
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then exit; fi

rm -f "$STAMP"
make_venv
for lock in "${locks[@]}"; do
    say "Installing $(grep -c '^[a-z]' "$lock") packages of $lock (about a minute the first time)"
    pip install --no-deps --require-hashes --requirement "$lock"
done
install_torch
if [ -n "$project" ]; then install_project; fi
echo "$wanted" >"$STAMP"
