"""The same filter with the official package."""

import sys

from openai import OpenAI

messages = [{"role": "user", "content": sys.stdin.read()}]
for chunk in OpenAI().chat.completions.create(model="m", messages=messages, stream=True):
    if chunk.choices and chunk.choices[0].delta.content:
        sys.stdout.write(chunk.choices[0].delta.content)
        sys.stdout.flush()
print()
