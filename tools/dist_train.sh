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
case $2 in
    '' | *[!0-9]*) echo "error: GPUS must be a number, got $2" >&2; exit 2 ;;
esac
TRAIN=("$(dirname "$0")/train.py" "$1" "${@:3}")
PYTHON=${PYTHON:-python}

# torchrun would say it in a traceback.
if [ "${NNODES:-1}${PORT:-}" != 1 ] && [ "${NODE_RANK:-0}" = 0 ] && ! "$PYTHON" -c '
import socket, sys
socket.create_server(("", int(sys.argv[1])))' "${PORT:-29500}" 2> /dev/null; then
    echo "error: PORT is ${PORT:-29500}, which is no free port of this machine; set another, or" \
        "none on a single machine" >&2
    exit 2
fi

# Report a mistake in the config once, here, rather than in every process.
TAS_LORA_PROCESSES=$(($2 * ${NNODES:-1})) "$PYTHON" "${TRAIN[@]}" --check-only || exit

# A single machine without a PORT uses a free one.
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    RENDEZVOUS=(--standalone)
else
    RENDEZVOUS=(
        --nnodes="${NNODES:-1}"
        --node-rank="${NODE_RANK:-0}"
        --master-addr="${MASTER_ADDR:-127.0.0.1}"
        --master-port="${PORT:-29500}"
    )
fi
exec "$PYTHON" -m torch.distributed.run "${RENDEZVOUS[@]}" --nproc-per-node="$2" \
    "${TRAIN[@]}" --launcher pytorch
