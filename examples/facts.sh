#!/bin/sh
# One line of JSON for each document, all of the same form, ready for jq, a table or a database.
#
#   sh examples/facts.sh MODEL FILE…      MODEL e.g. ollama/qwen3:8b, openai/gpt-4o-mini, exec/./mine
#
# The form is examples/facts.json, a JSON Schema. A document about which the model finds no answer of that form is named
# on stderr, the others go on; the exit status is then 1. Documents are worked on one after the other; any number of
# filters may run under one name, so `xargs -P 4` makes it four at a time.
set -u

here=$(dirname "$0")
loom=${LOOM:-loom}
[ $# -ge 2 ] || {
    echo "usage: sh examples/facts.sh MODEL FILE…" >&2
    exit 2
}
model=$1
shift

status=0
for file in "$@"; do
    "$loom" agent start facts --model "$model" --schema "$here/facts.json" \
        --system "Say what this document is about. Invent nothing." <"$file" || {
        echo "facts: nothing about $file" >&2
        status=1
    }
done
exit $status
