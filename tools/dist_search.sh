#!/usr/bin/env bash
# Search on the GPUs of this machine, or in several CPU processes; each evaluates other subnets.
#
#   tools/dist_search.sh CONFIG CHECKPOINT GPUS [options of tools/search.py]
#
# The same as tools/search.py CONFIG CHECKPOINT --workers GPUS.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: ${TAS_LORA_COMMAND:-tools/dist_search.sh} CONFIG CHECKPOINT GPUS [options of tools/search.py]" >&2
    exit 2
fi
case $3 in
    '' | *[!0-9]*) echo "error: GPUS must be a number, got $3" >&2; exit 2 ;;
esac
exec "${PYTHON:-python}" "$(dirname "$0")/search.py" "$1" "$2" --workers "$3" "${@:4}"
