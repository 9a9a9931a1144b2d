"""The floor of a filter: twenty lines that stream one answer with the standard library."""

import http.client
import json
import os
import sys

host = os.environ["OPENAI_BASE_URL"].split("//")[1].split("/")[0]
body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": sys.stdin.read()}]}
connection = http.client.HTTPConnection(host)
headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
for line in connection.getresponse():
    if line.startswith(b"data: {"):
        choices = json.loads(line[6:])["choices"]
        if choices and choices[0]["delta"].get("content"):
            sys.stdout.write(choices[0]["delta"]["content"])
            sys.stdout.flush()
print()
