#!/usr/bin/env bash
# Prepares the data sets in the user's cache folder (ML_TRAINER_DATA_DIR overrides it).
# Run scripts/setup.sh first. Quick when they are there already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec .venv/bin/python -m ml_trainer_env.server.datasets "$@"
