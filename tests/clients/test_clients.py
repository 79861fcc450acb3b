"""The field's own clients, each in its own process and an environment apart, against a real service of two workers.

What a client needs is in `python/requirements.txt` (versions: `requirements.in`) and `node/package-lock.json`; a script for
each says by assertions what it saw. They know the service by its address and a key, and nothing of this package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.clients.models import deployed
from tests.served import Process, open_home, serving

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("MAASDAM_CLIENTS", Path(tempfile.gettempdir()) / f"maasdam-clients-{os.getuid()}"))
"""Where they are kept between runs."""
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
"""No client asks anybody else."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    deployed(workspace, tmp_path_factory.mktemp("models"))
    _, key = workspace.keys.create("clients", ["infer"])
    workspace.close()
    with serving(home, key, "--workers", "2") as running:
        yield running


def environment(kind: str) -> Path:
    """The folder with the clients of "python" or "node", installed if it is not there."""
    files = [
        HERE / kind / name for name in (("requirements.txt",) if kind == "python" else ("package.json", "package-lock.json"))
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{kind}-{digest}"
    ENVIRONMENTS.mkdir(mode=0o700, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = Path(tempfile.mkdtemp(dir=ENVIRONMENTS))
            if kind == "python":
                uv = [sys.executable, "-m", "uv", "--no-config"]
                install([*uv, "venv", "--relocatable", "--python", sys.executable, "--clear", begun])
                install([*uv, "pip", "install", "--python", begun / "bin" / "python", "-r", files[0]])
            else:
                if shutil.which("npm") is None:
                    pytest.skip("Node.js is not installed")
                for file in files:
                    shutil.copy(file, begun)
                install(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", begun])
            begun.rename(folder)
    return folder


def install(command: list[str | Path]) -> None:
    """Skips where it does not work: a machine without a registry, or behind one that lacks a package, is no fault of ours."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("the clients can't be installed here: the registry is too slow")
    if done.returncode:
        pytest.skip(f"the clients can't be installed here: {done.stderr[-500:]}")


SCRIPTS = sorted(path.relative_to(HERE) for kind in ("python/*.py", "node/*.mjs") for path in HERE.glob(kind))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_what_it_asks_for_is_what_it_gets(served: Process, script: Path, tmp_path: Path) -> None:
    kind = script.parts[0]
    folder = environment(kind)
    told = {
        "OPENAI_BASE_URL": f"{served.url}/v1",
        "OPENAI_API_KEY": served.key,
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
        **QUIET,
    }
    path = HERE / script
    if kind == "node":  # it looks for packages beside itself
        path = Path(shutil.copy(path, folder))
        command = ["node", str(path)]
    else:
        command = [str(folder / "bin" / "python"), "-P", str(path)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL", "MAASDAM"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=kept | told, cwd=tmp_path)
    assert done.returncode == 0, f"{script}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
