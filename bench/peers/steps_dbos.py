"""dbos: one durable step a model call in SQLite, without tools or a history: milliseconds a step, lighter work."""

import os
import sys
import time

import httpx
from dbos import DBOS, DBOSConfig

steps, place = int(sys.argv[1]), sys.argv[2]
config: DBOSConfig = {
    "name": "bench",
    "system_database_url": f"sqlite:///{place}/dbos-{steps}.db",
    "log_level": "ERROR",
}
DBOS(config=config)
client = httpx.Client()
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"


@DBOS.step()
def ask(n: int) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
    return client.post(url, json=body).json()["choices"][0]["message"]["content"]


@DBOS.workflow()
def run(count: int) -> int:
    for n in range(count):
        ask(n)
    return count


DBOS.launch()
run(1)
began = time.perf_counter()
run(0)
none = time.perf_counter() - began
began = time.perf_counter()
run(steps)
print((time.perf_counter() - began - none) / steps * 1000)
DBOS.destroy()
