"""Simon Willison's llm: a prompt, a schema, a tool, from its command line."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

home = Path(tempfile.mkdtemp())
(home / "extra-openai-models.yaml").write_text(
    f"""
- model_id: tiny
  model_name: tiny
  api_base: {os.environ["OPENAI_BASE_URL"]}
  api_key_name: maasdam
  supports_schema: true
  supports_tools: true
"""
)


def llm(*words: str) -> str:
    command = [str(Path(sys.executable).with_name("llm")), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LLM_USER_PATH": str(home)})
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


llm("keys", "set", "maasdam", "--value", os.environ["OPENAI_API_KEY"])
options = ("-m", "tiny", "-o", "max_tokens", "80", "-o", "temperature", "0")
assert llm(*options, "the cat sat").strip()
assert llm(*options, "--no-stream", "the cat sat").strip() == llm(*options, "the cat sat").strip()
lamp = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
assert isinstance(json.loads(llm(*options, "--schema", json.dumps(lamp), "a lamp"))["on"], bool)
llm(*options, "-T", "llm_version", "which version?")  # that one may be called is all that a model of no training can show
