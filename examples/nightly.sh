#!/bin/sh
# A goal that cron starts: each night a digest of the documents in DIR, landed there as DIGEST.md.
#
#   sh examples/nightly.sh DIR [MODEL] [LINE]      e.g. ~/notes ollama/qwen3:8b '30 2 * * *'
#
# The supervisor starts it. Where none shall run all day, or as well, let the machine's cron look each minute:
#
#   * * * * * loom -q schedule run-due
set -eu

loom=${LOOM:-loom}
[ $# -ge 1 ] || {
    echo "usage: sh examples/nightly.sh DIR [MODEL] [LINE]" >&2
    exit 2
}
"$loom" schedule add nightly --cron "${3:-30 2 * * *}" --goal "Write a digest of these documents." \
    -w "$1" --model "${2:-builtin}" --land --replace
