#!/usr/bin/env bash
# Train on several GPUs, or in several CPU processes if there is no GPU.
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: ${TAS_LORA_COMMAND:-tools/dist_train.sh} CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/launch.sh" train.py "$2" "$1" "${@:3}"
