"""pydantic-ai's agent, which keeps nothing on disk: milliseconds a tool step."""

import os
import sys
import time

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

steps = int(sys.argv[1])
provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key="x")


def run(count: int) -> float:
    agent = Agent(OpenAIChatModel(f"steps-{count}", provider=provider))

    @agent.tool_plain
    def note(n: int) -> str:
        """notes"""
        return "noted"

    began = time.perf_counter()
    agent.run_sync("go", usage_limits=UsageLimits(request_limit=None))
    return time.perf_counter() - began


run(1)
print((run(steps) - run(0)) / steps * 1000)
