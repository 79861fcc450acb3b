"""litellm's proxy before the service, and its Anthropic door: /v1/messages whole, streamed, with a tool."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

KEY = f"sk-{secrets.token_hex(16)}"
folder = Path(tempfile.mkdtemp())
(folder / "config.yaml").write_text(
    f"""
model_list:
  - model_name: tiny
    litellm_params:
      model: hosted_vllm/tiny
      api_base: {os.environ["OPENAI_BASE_URL"]}
      api_key: {os.environ["OPENAI_API_KEY"]}
general_settings:
  master_key: {KEY}
"""
)
with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
with (folder / "log").open("wb") as log:
    proxy = subprocess.Popen(
        [
            Path(sys.executable).with_name("litellm"),
            "--config",
            folder / "config.yaml",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
        stdout=log,
        stderr=log,
        env=environment,
    )
TOOL = {
    "name": "light",
    "description": "Switch a light",
    "input_schema": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
}
MESSAGE = {"model": "tiny", "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "the cat sat"}]}
try:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers={"x-api-key": KEY}) as client:
        until = time.monotonic() + 120
        while True:
            try:
                if client.get("/health/liveliness").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < until and proxy.poll() is None, (folder / "log").read_text()[-4000:]
            time.sleep(0.2)
        whole = client.post("/v1/messages", json=MESSAGE)
        assert whole.status_code == 200, whole.text
        text = "".join(part["text"] for part in whole.json()["content"] if part["type"] == "text")
        assert text and whole.json()["stop_reason"] == "max_tokens" and whole.json()["usage"]["output_tokens"] == 12, whole.text
        told = []
        with client.stream("POST", "/v1/messages", json=MESSAGE | {"stream": True}) as stream:
            told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        pieces = [event["delta"].get("text", "") for event in told if event["type"] == "content_block_delta"]
        assert "".join(pieces) == text and told[-1]["type"] == "message_stop", told
        forced = MESSAGE | {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 120}
        called = client.post("/v1/messages", json=forced).json()
        use = next(part for part in called["content"] if part["type"] == "tool_use")  # this model goes on calling
        assert use["name"] == "light" and isinstance(use["input"]["on"], bool), called
finally:
    proxy.terminate()
    proxy.wait(20)
