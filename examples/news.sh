#!/bin/sh
# A news watcher: each new entry of a feed becomes a message to an agent, once.
#
#   sh examples/news.sh MODEL FEED [EVERY]      e.g. builtin/extract ~/feed.xml 10m
#
# The job is a file that you could have written with an editor. What the agent answered is in its outbox/.sent/, what
# became of each slot in schedules/news/logs/. To end it: loom schedule rm news; loom agent rm --force news
set -eu

here=$(cd "$(dirname "$0")" && pwd)
loom=${LOOM:-loom}
[ $# -ge 2 ] || {
    echo "usage: sh examples/news.sh MODEL FEED [EVERY]" >&2
    exit 2
}
feed=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
home=${LOOM_HOME:-$HOME/.loom}

"$loom" agent start news --model "$1" --detach --system "Say in one sentence what is new." >/dev/null
umask 077
mkdir -p "$home/schedules"
cat >"$home/schedules/news.yml" <<END
every: ${3:-10m}
to: news
driver: ["$here/news-driver", "$feed"]
timeout: 30s
END
"$loom" supervisor reload
"$loom" schedule ls
