#!/usr/bin/env bash
# Writes requirements.lock (what the server needs), requirements-ray.lock (what many machines add to
# that), requirements-dev.lock (both, what an evaluation needs, and the tools) and
# requirements-llm.lock (what a local language model adds to the last): exact versions and hashes for
# every platform of pyproject.toml, and no addresses.
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

extras=(--extra evaluate --extra inference --extra gymnasium --extra inspect --extra ray --extra sb3 --extra skyrl --extra trl)
compile --output-file "$root/requirements-dev.lock" "${extras[@]}" --group dev "$@"
compile --output-file "$root/requirements.lock" --constraints "$root/requirements-dev.lock" "$@"
# Only what Ray adds to the server's lock, and the language model to the development lock.
without() { sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' "$root/$1"; }
compile --output-file "$root/requirements-ray.lock" --constraints "$root/requirements-dev.lock" \
    --extra ray $(without requirements.lock) "$@"
compile --output-file "$root/requirements-llm.lock" --constraints "$root/requirements-dev.lock" \
    "${extras[@]}" --extra llm --group dev $(without requirements-dev.lock) "$@"
# A package of its own, which cannot be installed beside this one.
verifiers=$root/integrations/verifiers
"$root/.venv/bin/uv" pip compile --quiet --universal --generate-hashes --no-annotate \
    --custom-compile-command "make lock" --output-file "$verifiers/requirements.lock" "$@" \
    "$verifiers/pyproject.toml" >/dev/null
