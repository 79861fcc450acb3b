"""What a model took in memory is known the next time, of this machine and these settings alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maasdam.core import Artifact
from maasdam.errors import NotFound
from maasdam.serving.hosts.sizes import OWN_BYTES, PER_FILE_BYTE, HostSizes

ARTIFACT = Artifact("sha256:a", Path(), "onnx", "onnx", None, "onnxruntime", None, 1_000_000)
GUESS = (0, OWN_BYTES + round(1_000_000 * PER_FILE_BYTE))


def sizes(home: Path, artifact: Artifact = ARTIFACT, threads: int = 1) -> HostSizes:
    def get(digest: str) -> Artifact:
        if digest != artifact.digest:
            raise NotFound(digest)
        return artifact

    return HostSizes(home, get, threads=threads)


def test_a_guess_until_it_was_measured(tmp_path: Path) -> None:
    here = sizes(tmp_path)
    assert here.expected("sha256:a") == GUESS
    here.keep("sha256:a", 123, 456)
    assert sizes(tmp_path).expected("sha256:a") == (123, 456)
    assert sizes(tmp_path, threads=2).expected("sha256:a") == GUESS
    assert sizes(tmp_path, replace(ARTIFACT, digest="sha256:b")).expected("sha256:b") == GUESS
    with pytest.raises(NotFound):
        here.expected("sha256:c")


def test_what_was_half_written_is_a_guess(tmp_path: Path) -> None:
    here = sizes(tmp_path)
    here.keep("sha256:a", 123, 123)
    for text, expected in (('{"bytes"', GUESS), ("[]", GUESS), ('{"bytes": 456}', (0, 456))):  # the last an earlier version's
        for file in (tmp_path / "memory").iterdir():
            file.write_text(text)
        assert here.expected("sha256:a") == expected
