"""acme/photos is a name like any other: in every path, with real clients, and where it can't be told apart it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tests.served import add_mlp, open_home, serving

from maasdam.api.paths import INFER
from maasdam.artifacts.names import check_name
from maasdam.errors import InvalidInput

NAME = "acme/photos"


def test_every_path_takes_the_name(tmp_path: Path) -> None:
    workspace = open_home(tmp_path)
    add_mlp(workspace, NAME)
    add_mlp(workspace, "plain")
    _, key = workspace.keys.create("tests", ["infer", "deploy"])
    with serving(tmp_path, key) as running, running.client() as http:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [0.5] * 8}]}
        answers = [
            http.post(f"/v2/models/{path}/infer", json=body)
            for path in (NAME, f"{NAME}/versions/1", NAME.replace("/", "%2F"), "plain", "plain/versions/1")
        ]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert answers[0].json()["model_name"] == NAME
        assert len({str(answer.json()["outputs"][0]["data"]) for answer in answers}) == 1
        for path in ("", "/ready", "/versions/1", "/versions/1/ready"):
            assert http.get(f"/v2/models/{NAME}{path}").status_code == 200, path
            assert http.get(f"/v2/models/plain{path}").status_code == 200, path
        assert http.get("/v2/models/acme/other/ready").status_code == 404
        assert http.get(f"/admin/models/{NAME}").json()["model"] == NAME
        assert http.get("/admin/models/plain").json()["model"] == "plain"
        client = triton.InferenceServerClient(running.url.removeprefix("http://"))
        given = triton.InferInput("x", [1, 8], "FP32")
        given.set_data_from_numpy(np.full((1, 8), 0.5, np.float32))
        headers = running.headers
        got = client.infer(NAME, [given], headers=headers).as_numpy("y")
        assert np.allclose(got.ravel(), answers[0].json()["outputs"][0]["data"])
        assert client.is_model_ready(NAME, headers=headers) and client.is_model_ready(NAME, "1", headers=headers)
        client.unload_model(NAME, headers=headers)
        assert http.get(f"/v2/models/{NAME}").status_code == 404
        client.load_model(NAME, headers=headers)
        gpt = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key)
        assert gpt.models.retrieve(NAME).id == NAME and NAME in {model.id for model in gpt.models.list()}
        assert http.delete(f"/admin/deployments/{NAME}").status_code == 204
        assert http.put(f"/admin/deployments/{NAME}", json={"version": 1}).status_code == 200
    workspace.close()


@pytest.mark.parametrize(
    "name", ["acme/infer", "acme/ready", "a/versions", "a/b/c", "a/", "/a", "a//b", "a/../b", "a/" + "b" * 96]
)
def test_what_the_protocols_paths_say_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="acme/photos"):
        check_name(name)


@pytest.mark.parametrize(
    "path", ["/v2/models//infer", "/v2/models/a/b/c/infer", "/v2/models/a/versions/1/x/infer", "/v2/models/"]
)
def test_other_paths_are_none(path: str) -> None:
    assert INFER.fullmatch(path) is None
