"""A model that this home's service runs already, asked there: nothing is loaded twice. Knows its doors; never scheduling.

    engine.run(tensors)   -> /v2/models/NAME/versions/V/infer, in binary
    engine.submit(tokens) -> /v1/completions, as a stream of token ids

What comes before and after an engine (pictures, templates, labels) is done in this process, so that an answer is its own.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_GENERATION, Artifact, SequenceRequest, Signature, Tensors, Tokens
from maasdam.errors import EngineFailure, InvalidPayload, Overloaded
from maasdam.operations.address import Address, reaching, whereabouts

if TYPE_CHECKING:
    import httpx

    from maasdam.core import type_array

DATATYPES = {
    "bool": "BOOL",
    **{f"{kind}int{bits}": f"{kind.upper()}INT{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
"""What is carried in binary; a model of other tensors is not asked there."""
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
BUSY = (429, 503)
MOST_BUSY_SECONDS = 120.0
"""For so long a service that is busy is asked again."""
HEADER_LENGTH = "Inference-Header-Content-Length"


def asked(home: Path, model: str, version: int, artifact: Artifact) -> AskedTensors | AskedTexts | None:
    """What asks the service of `home` in an engine's place; None where none runs this version, or it can't be carried there."""
    address, signature = whereabouts(home), artifact.signature
    if address is None:
        return None
    engine: AskedTensors | AskedTexts
    if signature is None:
        if artifact.task != TEXT_GENERATION:
            return None
        engine = AskedTexts(address, model, version)
    elif all(spec.dtype in DATATYPES for spec in (*signature.inputs, *signature.outputs)):
        engine = AskedTensors(address, model, version, signature)
    else:
        return None
    if _has(address, model, version):
        return engine
    engine.close()
    return None


def _has(address: Address, model: str, version: int) -> bool:
    import httpx

    try:
        with httpx.Client(**reaching(address), timeout=5) as client:
            return client.get(f"/v2/models/{model}/versions/{version}/ready").status_code == 200
    except (OSError, ValueError, httpx.HTTPError):
        return False


class AskedTensors:
    """A TensorEngine. Thread-safe."""

    def __init__(self, address: Address, model: str, version: int, signature: Signature) -> None:
        import httpx

        self.signature = signature
        self.url = address.url
        self._path = f"/v2/models/{model}/versions/{version}/infer"
        self._client = httpx.Client(**reaching(address), timeout=None)
        self._is_left = threading.Event()

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """See `TensorEngine`. Raises InvalidTensor, InvalidPayload, Overloaded."""
        import httpx
        import numpy as np

        self.signature.check(batch)
        inputs, parts = [], []
        for name, array in batch.items():
            data = np.ascontiguousarray(array)
            parts.append(data.tobytes())
            beside = {"binary_data_size": len(parts[-1])}
            inputs.append({"name": name, "shape": data.shape, "datatype": DATATYPES[data.dtype.name], "parameters": beside})
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        headers, until = {HEADER_LENGTH: str(len(head))}, time.monotonic() + MOST_BUSY_SECONDS
        try:
            while (
                answer := self._client.post(self._path, content=head + b"".join(parts), headers=headers)
            ).status_code in BUSY:
                if self._is_left.wait(_pause(answer, until)):
                    raise EngineFailure("broken off while the service was busy")
        except httpx.HTTPError as error:
            raise EngineFailure(f"the service at {self.url} went away ({type(error).__name__}); start it and go on") from error
        if answer.status_code != 200:
            raise _refused(answer.status_code, answer.content)
        size = int(answer.headers.get(HEADER_LENGTH, len(answer.content)))
        outputs, place = {}, size
        for told in json.loads(answer.content[:size])["outputs"]:
            end = place + told["parameters"]["binary_data_size"]
            outputs[told["name"]] = np.frombuffer(answer.content[place:end], NUMPY[told["datatype"]]).reshape(told["shape"])
            place = end
        return outputs

    def precisions(self) -> dict[str, int]:
        """The service does not tell."""
        return {}

    def close(self) -> None:
        """Leave it; who waits for a busy service waits no longer."""
        self._is_left.set()
        self._client.close()


class AskedTexts:
    """What `run` needs of a SequenceEngine: texts, several at once."""

    def __init__(self, address: Address, model: str, version: int) -> None:
        self.url = address.url
        self._address = address
        self._model = f"{model}:{version}"

    async def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """See `SequenceEngine`. Raises InvalidPayload, Overloaded, EngineFailure."""
        import httpx

        sampling = request.sampling
        body = {
            "model": self._model,
            "prompt": request.inputs["input_ids"][0].tolist(),
            "stream": True,
            "return_token_ids": True,
        }
        body |= {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": sampling.seed}
        until = time.monotonic() + MOST_BUSY_SECONDS
        try:
            async with httpx.AsyncClient(**reaching(self._address, True), timeout=None) as client:
                while True:
                    async with client.stream("POST", "/v1/completions", json=body) as answer:
                        if answer.status_code not in BUSY:
                            if answer.status_code != 200:
                                raise _refused(answer.status_code, await answer.aread())
                            async for line in answer.aiter_lines():
                                if line.startswith("data: {"):
                                    yield _tokens(json.loads(line[6:]))
                            return
                    await asyncio.sleep(_pause(answer, until))
        except httpx.HTTPError as error:
            raise EngineFailure(f"the service at {self.url} went away ({type(error).__name__}); start it and go on") from error

    def close(self) -> None:
        """Each text has a connection of its own."""


def _tokens(event: dict[str, Any]) -> Tokens:
    if "error" in event:
        raise EngineFailure(f"the service said: {event['error'].get('message')}")
    choice = event["choices"][0]
    return Tokens(tuple(choice.get("token_ids") or ()), finish_reason=choice.get("finish_reason"))


def _pause(answer: httpx.Response, until: float) -> float:
    """Seconds until it is to be asked again. Raises Overloaded where it was busy for long."""
    if time.monotonic() > until:
        raise Overloaded("the service was busy for minutes; go on later, or ask fewer at once")
    told = answer.headers.get("Retry-After", "")
    return min(float(told) if told.isdigit() else 1.0, 10.0)


def _refused(status: int, body: bytes) -> Exception:
    try:
        told = json.loads(body)
        error = told.get("error")
        message = error["message"] if isinstance(error, dict) else error or told["detail"]
    except (ValueError, LookupError, TypeError, AttributeError):
        message = f"status {status}"
    kind = InvalidPayload if status in (400, 413, 422) else EngineFailure
    return kind(f"the service said: {message}" if kind is EngineFailure else str(message))
