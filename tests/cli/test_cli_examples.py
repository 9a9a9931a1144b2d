"""The examples that recur, started as their first lines say, and looked at until they have done their work."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cli_user import ROOT, Loom
from support import wait_until

ENTRY = "<item><guid>{n}</guid><title>Entry {n}.</title><description>The river rose by {n} metres.</description></item>"


def write_feed(path: Path, count: int) -> None:
    items = "".join(ENTRY.format(n=n) for n in range(1, count + 1))
    new = path.with_suffix(".new")
    new.write_text(f"<rss><channel><title>Rivers</title>{items}</channel></rss>")
    new.rename(path)


def test_the_news_watcher_tells_each_new_entry_once(loom: Loom):
    feed = loom.place / "feed.xml"
    write_feed(feed, 2)
    said = loom.shell(f"sh {ROOT}/examples/news.sh builtin/echo {feed} 1s")
    assert said.status == 0 and "news-driver → news" in said.out, said
    slots = loom.home / "schedules" / "news" / "slots.json"
    wait_until(lambda: slots.exists() and json.loads(slots.read_text())["state"] == {"seen": ["1", "2"]})
    for count in (3, 5):
        write_feed(feed, count)
        wait_until(lambda n=count: len(json.loads(slots.read_text())["state"]["seen"]) == n)  # type: ignore[misc]
    sent = loom.home / "agents" / "news" / "outbox" / ".sent"
    answers = wait_until(lambda: len(found := sorted(sent.rglob("*.msg"))) == 3 and found)
    bodies = [json.loads(path.read_text())["body"] for path in answers]
    assert [body.split("\n")[0] for body in bodies] == ["Entry 3.", "Entry 4.", "Entry 5."]
    wait_until(lambda: loom("schedule", "rm", "news").status == 0)


def test_the_nightly_digest_is_started_by_whoever_looks_when_it_is_due(loom: Loom):
    notes = loom.place / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("Rivers flow to the sea. The sea is large.\n")
    said = loom.shell(f"sh {ROOT}/examples/nightly.sh notes builtin '* * * * *'")
    assert said.out.startswith("nightly: next at "), said
    slots = loom.home / "schedules" / "nightly" / "slots.json"
    slots.write_text(json.dumps(json.loads(slots.read_text()) | {"after": int(time.time()) - 120}))  # nobody has looked
    loom("schedule", "run-due")
    wait_until((notes / "DIGEST.md").exists, 60.0)
    wait_until(lambda: loom("schedule", "rm", "nightly").status == 0)
