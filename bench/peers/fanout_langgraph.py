"""LangGraph: so many nodes of one model call each at once, checkpointed in SQLite: seconds."""

import asyncio
import operator
import os
import sys
import time
from typing import Annotated, TypedDict

import httpx
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

count, place = int(sys.argv[1]), sys.argv[2]
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"


class State(TypedDict):
    said: Annotated[list[str], operator.add]


async def main() -> None:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:

        async def work(n: dict) -> State:
            body = {"model": "m", "messages": [{"role": "user", "content": str(n["n"])}]}
            answer = await client.post(url, json=body)
            return {"said": [answer.json()["choices"][0]["message"]["content"]]}

        graph = StateGraph(State)
        graph.add_node("work", work)
        graph.add_conditional_edges(START, lambda state: [Send("work", {"n": n}) for n in range(count)], ["work"])
        graph.add_edge("work", END)
        async with AsyncSqliteSaver.from_conn_string(f"{place}/langgraph-fanout.db") as saver:
            app = graph.compile(checkpointer=saver)
            began = time.perf_counter()
            thread = {"configurable": {"thread_id": str(began)}, "max_concurrency": count}
            assert len((await app.ainvoke({"said": []}, thread))["said"]) == count
            print(time.perf_counter() - began)


asyncio.run(main())
