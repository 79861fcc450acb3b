"""What a person with a browser meets: "/" and /docs lead somewhere, and no key is given away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.served import open_home, serving

from maasdam import settings
from maasdam.errors import InvalidInput

HTML = {"accept": "text/html,application/xhtml+xml"}


def test_root_and_docs_lead_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_home(tmp_path)
    _, key = workspace.keys.create("tests", ["infer"])
    with serving(tmp_path, key) as running:
        page = httpx.get(running.url, headers=HTML)
        assert page.status_code == 200 and "/docs" in page.text and "public_docs" in page.text
        assert httpx.get(running.url).json()["docs"] == "/docs"
        refused = httpx.get(f"{running.url}/docs", headers=HTML)
        assert refused.status_code == 401 and refused.headers["content-type"].startswith("text/html")
        assert "public_docs" in refused.text and "Bearer" in refused.text
        assert httpx.get(f"{running.url}/docs").headers["content-type"] == "application/problem+json"
        assert httpx.get(f"{running.url}/docs", headers=running.headers).status_code == 200
        assert httpx.get(f"{running.url}/openapi.json").status_code == 401
    monkeypatch.setenv("MAASDAM_PUBLIC_DOCS", "true")
    with serving(tmp_path, key) as running:
        docs = httpx.get(f"{running.url}/docs", headers=HTML)
        assert docs.status_code == 200 and "/v1/chat/completions" in docs.text
        assert httpx.get(f"{running.url}/openapi.json").status_code == 200
        assert '<a href="/docs">' in httpx.get(running.url, headers=HTML).text
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
    workspace.close()


def test_a_switch_takes_true_or_false(tmp_path: Path) -> None:
    assert settings.load({"home": tmp_path}, environ={"MAASDAM_PUBLIC_DOCS": "On"}).public_docs
    assert not settings.load({"home": tmp_path}, environ={"MAASDAM_PUBLIC_DOCS": "0"}).public_docs
    with pytest.raises(InvalidInput, match="true or false"):
        settings.load({"home": tmp_path}, environ={"MAASDAM_PUBLIC_DOCS": "perhaps"})
