"""Hub names, which files are fetched, and what is said when there is no network. The hub here is a small real server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from maasdam.errors import InvalidInput, NotFound, UnsafeModel, Unsupported
from maasdam.sources import hub
from tests import hostile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class SmallHub:
    """Answers the calls that a download makes: what a repository is, the tree of its files, and each file."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.fetched: list[str] = []
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                path = self.path.split("?")[0]
                for name, files in this.repositories.items():
                    if path.startswith(f"/api/models/{name}/tree/"):
                        tree = [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in files.items()]
                        return self._send(json.dumps(tree).encode(), {}, with_body)
                    if path.startswith(f"/api/models/{name}"):
                        listed = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                        return self._send(json.dumps(listed).encode(), {}, with_body)
                    if path.startswith(f"/{name}/resolve/"):
                        file = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                        if with_body:
                            this.fetched.append(file)
                        tag = hashlib.sha256(files[file]).hexdigest()
                        return self._send(files[file], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, with_body)
                return self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, with_body, status=404)

            def _send(self, data: bytes, headers: dict[str, str], with_body: bool, status: int = 200) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if with_body:
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def small_hub(tmp_path: Path) -> Iterator[SmallHub]:
    """A hub with one good model and one that is only a pickle."""
    folder = tmp_path / "net"
    folder.mkdir()
    hostile.huggingface(folder)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    good |= {"pytorch_model.bin": b"pickle", "modeling_net.py": b"raise SystemExit", "README.md": b"#"}
    server = SmallHub({"org/net": good, "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}})
    yield server
    server.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go to a cache of the test's own."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:org/name", ("org/name", None)),
        ("hf:gpt2", ("gpt2", None)),
        ("hf:org/name@v1.0", ("org/name", "v1.0")),
        ("hf:org/name@refs/pr/3", ("org/name", "refs/pr/3")),
    ],
)
def test_hub_names_are_split(source: str, expected: tuple[str, str | None]) -> None:
    assert hub.split(source) == expected


@pytest.mark.parametrize(
    "source", ["hf:", "hf:a/b/c", "hf:../x", "hf:org/na me", "hf:org/name@", "hf:org/name@../x", "hf:/etc"]
)
def test_bad_hub_names_are_refused(source: str) -> None:
    with pytest.raises(InvalidInput, match="hf:org/name"):
        hub.split(source)


def test_safetensors_are_preferred_and_pickles_never_fetched() -> None:
    names = [
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "config.json",
        "tokenizer.json",
        "run.py",
        "onnx/model.onnx",
    ]
    assert hub.wanted(names, "org/net") == ["config.json", "model.safetensors", "tokenizer.json"]


def test_shards_come_with_their_index() -> None:
    names = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "x.bin"]
    assert hub.wanted(names, "org/net") == sorted(names[:3])


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(small_hub: SmallHub) -> None:
    with pytest.raises(UnsafeModel, match="never loaded"):
        hub.fetch("hf:org/pickled", small_hub.endpoint)
    assert small_hub.fetched == []


def test_a_repository_without_a_model_is_not_supported() -> None:
    with pytest.raises(Unsupported):
        hub.wanted(["README.md", "data.csv"], "org/data")


def test_a_model_is_fetched_once_and_is_here_when_the_hub_is_gone(small_hub: SmallHub) -> None:
    from maasdam.sources import inspect

    folder = hub.fetch("hf:org/net", small_hub.endpoint)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert inspect(str(folder)).task == "image-classification"
    fetched = list(small_hub.fetched)
    assert hub.fetch("hf:org/net", small_hub.endpoint) == folder
    assert small_hub.fetched == fetched
    small_hub.close()
    assert hub.fetch("hf:org/net", small_hub.endpoint) == folder


def test_an_unknown_repository_is_not_found(small_hub: SmallHub) -> None:
    with pytest.raises(NotFound, match="hf:org/nothing"):
        hub.fetch("hf:org/nothing", small_hub.endpoint)


def test_without_network_the_error_says_what_to_do() -> None:
    with pytest.raises(NotFound, match=r"can't reach the hub.*give the path of a folder"):
        hub.fetch("hf:org/net", "http://127.0.0.1:9")


def test_offline_mode_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="can't reach the hub"):
        hub.fetch("hf:org/net")
