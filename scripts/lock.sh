#!/usr/bin/env bash
# Writes requirements.lock (what the server needs) and requirements-dev.lock (that and the tools):
# exact versions and hashes for every platform of pyproject.toml, and no addresses.
#
#   scripts/lock.sh                    keep the versions that are locked, add what is missing
#   scripts/lock.sh --upgrade          take the newest of everything
#   scripts/lock.sh --upgrade-package NAME
#
# torch is left out: it is pinned in pyproject.toml, and its CPU build is another file with another
# hash on every index, so scripts/setup.sh installs it by itself. What torch needs is in the lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# `environments` is for uv's own resolver; here it would put a long marker on every line.
root=$PWD
stripped=$(mktemp -d)
trap 'rm -rf "$stripped"' EXIT
sed '/^environments = \[/,/^\]/d' pyproject.toml >"$stripped/pyproject.toml"
cd "$stripped"

compile() {
    "$root/.venv/bin/uv" pip compile --quiet --universal --no-sources --generate-hashes --no-annotate \
        --no-emit-package torch --custom-compile-command "make lock" "$@" pyproject.toml >/dev/null
}

compile --output-file "$root/requirements-dev.lock" --group dev "$@"
compile --output-file "$root/requirements.lock" --constraints "$root/requirements-dev.lock" "$@"
