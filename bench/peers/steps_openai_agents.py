"""The openai-agents package with its SQLite session: milliseconds a tool step."""

import asyncio
import sys
import time

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

steps, place = int(sys.argv[1]), sys.argv[2]
set_tracing_disabled(True)


@function_tool
def note(n: int) -> str:
    """notes"""
    return "noted"


async def run(count: int) -> float:
    model = OpenAIChatCompletionsModel(model=f"steps-{count}", openai_client=AsyncOpenAI())
    session = SQLiteSession(f"{time.time()}", f"{place}/openai-agents-{steps}.db")
    agent = Agent(name="a", model=model, tools=[note])
    began = time.perf_counter()
    await Runner.run(agent, "go", session=session, max_turns=1000)
    return time.perf_counter() - began


async def main() -> None:
    await run(1)
    print((await run(steps) - await run(0)) / steps * 1000)


asyncio.run(main())
