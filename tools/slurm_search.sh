#!/usr/bin/env bash
# Search under Slurm, on one machine or several; `ray symmetric-run` makes them a Ray cluster.
#
#   tools/slurm_search.sh PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [options of tools/search.py]
#
# Optional environment variables: NODES (1), GPUS_PER_NODE (8), CPUS_PER_NODE (64), PORT (6379),
# SRUN_ARGS.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "usage: ${TAS_LORA_COMMAND:-tools/slurm_search.sh} PARTITION JOB_NAME CONFIG CHECKPOINT WORK_DIR [options]" >&2
    exit 2
fi
export PYTHON=${PYTHON:-python} PORT=${PORT:-6379}
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH  # Ray calls `ray` by its name
export PATH
SEARCH=("$(dirname "$0")/search.py" "$3" "$4" --work-dir "$5" "${@:6}")

# Runs on each machine; Ray runs the search on the first of them.
ON_EACH='
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$PORT
exec "$PYTHON" -m ray.scripts.scripts symmetric-run --address "$HEAD" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" -- "$PYTHON" "$@" --address "$HEAD"
'
# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun -p "$1" \
    --job-name="$2" \
    --nodes="${NODES:-1}" \
    --ntasks-per-node=1 \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_NODE:-64}" \
    --no-kill \
    ${SRUN_ARGS:-} \
    bash -c "$ON_EACH" slurm_search "${SEARCH[@]}"
