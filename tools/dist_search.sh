#!/usr/bin/env bash
# Search on several GPUs, or in several CPU processes; each evaluates different subnets.
#
#   tools/dist_search.sh CONFIG CHECKPOINT GPUS [options of tools/search.py]
#
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: ${TAS_LORA_COMMAND:-tools/dist_search.sh} CONFIG CHECKPOINT GPUS [options of tools/search.py]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/launch.sh" search.py "$3" "$1" "$2" "${@:4}"
