"""dbos: so many workflows of one model call each at once, in SQLite: seconds."""

import os
import sys
import time

import httpx
from dbos import DBOS, DBOSConfig

count, place = int(sys.argv[1]), sys.argv[2]
config: DBOSConfig = {
    "name": "bench",
    "system_database_url": f"sqlite:///{place}/dbos-fanout.db",
    "log_level": "ERROR",
    "max_executor_threads": count + 8,
}
DBOS(config=config)
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))


@DBOS.step()
def ask(n: int) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
    return client.post(url, json=body).json()["choices"][0]["message"]["content"]


@DBOS.workflow()
def one(n: int) -> str:
    return ask(n)


DBOS.launch()
one(0)
began = time.perf_counter()
handles = [DBOS.start_workflow(one, n) for n in range(count)]
for handle in handles:
    handle.get_result()
print(time.perf_counter() - began)
DBOS.destroy()
