"""LangGraph's ready-made agent with a SQLite checkpointer: milliseconds a tool step."""

import sys
import time

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.prebuilt import create_react_agent

steps, place = int(sys.argv[1]), sys.argv[2]


@tool
def note(n: int) -> str:
    """notes"""
    return "noted"


def run(count: int, thread: str) -> float:
    model = ChatOpenAI(model=f"steps-{count}", streaming=True)
    with SqliteSaver.from_conn_string(f"{place}/langgraph-{steps}.db") as saver:
        agent = create_react_agent(model, [note], checkpointer=saver)
        began = time.perf_counter()
        agent.invoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": thread}, "recursion_limit": 1000})
        return time.perf_counter() - began


run(1, "warm")
key = str(time.time())
print((run(steps, key) - run(0, key + "0")) / steps * 1000)
