"""llama.cpp's own server in a process of its own. Started by `llama`; imports nothing of ours.

stdin: one line of JSON, what to open; then nothing, until whoever started it is gone, and with that this process.
stdout: one line of JSON, where it listens, or why it doesn't.
"""

from __future__ import annotations

import json
import os
import resource
import sys


def main() -> None:
    """Serve until stdin ends."""
    asked = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    if asked["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
    try:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.model_alias = asked["path"], {asked["name"]}
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [asked["key"]]
        params.n_ctx, params.n_parallel, params.kv_unified = asked["context"], asked["streams"], True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
        params.use_jinja, params.cache_prompt, params.warmup = True, False, True
        params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        params.ctx_shift = False  # a text that is too long ends, and does not lose its beginning
        server = xllamacpp.Server(params)
        said = {"url": str(server.listening_address), "error": None}
    except BaseException as error:
        said = {"url": None, "error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(said), file=out, flush=True)
    if said["error"] is None:
        sys.stdin.read()
    os._exit(0)  # its threads are not waited for


if __name__ == "__main__":
    main()
