"""A durable queue in SQLite (WAL, synchronous=FULL): what loom's mailbox is compared with.

    sqlite_queue.py DIR work N [BATCH] [NAME]     take N requests, answer each, in transactions of BATCH
    sqlite_queue.py DIR ask N [BATCH] [NAME]      put N requests, BATCH in flight, and wait for their answers

NAME is a queue of its own, a table in the same database. Three commits a message: the request, the claim, and answer
with acknowledgement. Prints "ready", then seconds.
"""

import sqlite3
import sys
import time

place, role, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
batch = int(sys.argv[4]) if len(sys.argv) > 4 else 1
name = sys.argv[5] if len(sys.argv) > 5 else "queue"
db = sqlite3.connect(f"{place}/queue.db", isolation_level=None, timeout=60)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=FULL")
db.execute(f"CREATE TABLE IF NOT EXISTS {name} (id INTEGER PRIMARY KEY, body TEXT, state INTEGER, reply TEXT)")
db.execute(f"CREATE INDEX IF NOT EXISTS states_{name} ON {name} (state, id)")
BODY = "x" * 1024
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
done = 0
while done < count:
    if role == "ask":
        db.execute("BEGIN IMMEDIATE")
        rows = [db.execute(f"INSERT INTO {name} (body, state) VALUES (?, 0)", (BODY,)).lastrowid for _ in range(batch)]
        db.execute("COMMIT")
        while db.execute(f"SELECT min(state) FROM {name} WHERE id >= ?", (rows[0],)).fetchone()[0] < 2:
            time.sleep(0.0002)
        done += batch
        continue
    found = db.execute(f"SELECT id FROM {name} WHERE state = 0 ORDER BY id LIMIT ?", (batch,)).fetchall()
    if not found:
        time.sleep(0.0002)
        continue
    db.execute("BEGIN IMMEDIATE")
    db.executemany(f"UPDATE {name} SET state = 1 WHERE id = ?", found)
    db.execute("COMMIT")
    db.execute("BEGIN IMMEDIATE")
    db.executemany(f"UPDATE {name} SET state = 2, reply = ? WHERE id = ?", [(BODY, row[0]) for row in found])
    db.execute("COMMIT")
    done += len(found)
print(time.perf_counter() - began, flush=True)
