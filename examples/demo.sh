#!/bin/sh
# The main job, offline: a goal over real documents with the built-in models (make demo).
#
#   sh examples/demo.sh [DIR]     DIR: a folder of Markdown and text; without it this repository's adrs/ and docs/
#
# Works in .demo/: home/ is its own LOOM_HOME, out/ holds copies of the documents and gets DIGEST.md. Nothing else
# is touched, and no process is left.
set -eu

cd "$(dirname "$0")/.."
given=${1:-}
demo=$PWD/.demo
LOOM_HOME=$demo/home
export LOOM_HOME
loom=${LOOM:-loom}

if [ -n "$given" ] && [ ! -d "$given" ]; then
    echo "demo: $given is not a directory; name a folder of Markdown or text files: make demo DIR=…" >&2
    exit 66
fi

stop() { "$loom" -q supervisor stop >/dev/null 2>&1 || :; }
[ ! -d "$LOOM_HOME" ] || stop # one that an interrupted demo left
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

rm -rf "$demo"
mkdir -p "$demo/out"
copy() { # folder, and what it is called in out/
    (cd "$1" && find . -type f \( -name '*.md' -o -name '*.txt' -o -name '*.markdown' -o -name '*.rst' \) \
        ! -path '*/.*/*' -print) | while IFS= read -r file; do
        mkdir -p "$demo/out/$2/$(dirname "$file")"
        cp "$1/$file" "$demo/out/$2/$file"
    done
}
if [ -n "$given" ]; then
    copy "$given" .
else
    copy adrs adrs
    copy docs docs
fi
if [ -z "$(find "$demo/out" -type f -print | head -n 1)" ]; then
    echo "demo: no Markdown or text file in $given" >&2
    exit 66
fi

status=0
"$loom" run "Write a digest of these documents." -w "$demo/out" --model builtin --land >/dev/null || status=$?
if [ "$status" -ne 0 ]; then
    echo "demo: the goal did not succeed (status $status); see: LOOM_HOME=.demo/home $loom goal ps -a" >&2
    exit "$status"
fi
goal=$(find "$LOOM_HOME/goals" -mindepth 1 -maxdepth 1 -type d -name '2*' -print | head -n 1)

cat <<END

The digest is in .demo/out/DIGEST.md. To look at what happened:

  cat .demo/out/DIGEST.md
  tail -n 3 .demo/home/agents/*/logs/*.ndjson
  LOOM_HOME=.demo/home ${LOOM_SHOWN:-$loom} goal log ${goal##*/}
END
