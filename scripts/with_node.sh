#!/usr/bin/env bash
# Runs a server in a container beside a Ray node that trains nothing: a program can speak to a
# cluster only from a machine that is a part of it.
#
#   scripts/with_node.sh HEAD:6379 uvicorn server.app:app --host 0.0.0.0 --port 8000
#
# The node ends with the head, and is started again until there is one. The server and its sessions
# stay, and when it ends the container does, with all that is in it.
set -euo pipefail
head=$1
shift

keep_a_node() {
    # States lie where they were made: this node holds those that are on their way, at most.
    while true; do
        ray start --address "$head" --num-cpus 0 --object-store-memory 100000000 --block || true
        sleep 2
    done
}

keep_a_node &
exec "$@"
