"""litellm as a library: chat, streams with usage, tools, schemas, responses, embeddings, and its names for our errors."""

import os

import litellm
import pydantic

litellm.telemetry = False
WHERE = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"], "num_retries": 0}
CHAT = {"model": "hosted_vllm/tiny", "temperature": 0, "max_tokens": 12, **WHERE}
ASKED = [{"role": "user", "content": "the cat sat"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switch a light",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}


class Lamp(pydantic.BaseModel):
    """What is asked for."""

    on: bool
    colour: str = pydantic.Field(max_length=4)


whole = litellm.completion(messages=ASKED, **CHAT)
assert whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
pieces = list(litellm.completion(messages=ASKED, stream=True, stream_options={"include_usage": True}, **CHAT))
text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
assert text == whole.choices[0].message.content, (text, whole)
assert [piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)][-1] == 12

called = litellm.completion(
    messages=ASKED, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **CHAT | {"max_tokens": 80}
)
(call,) = called.choices[0].message.tool_calls
assert call.function.name == "light" and call.function.arguments in ('{"on": true}', '{"on": false}'), called
again = [*ASKED, called.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
assert litellm.completion(messages=again, tools=[TOOL], tool_choice="none", **CHAT).choices[0].message.content is not None

held = litellm.completion(messages=ASKED, response_format=Lamp, **CHAT | {"max_tokens": 100})
Lamp.model_validate_json(held.choices[0].message.content)

answered = litellm.responses(input="the cat", model="openai/tiny", max_output_tokens=16, temperature=0, **WHERE)
assert answered.status == "incomplete" and answered.usage.output_tokens == 16, answered

completed = litellm.text_completion(prompt="the cat", **CHAT | {"model": "text-completion-openai/tiny"})
assert completed.choices[0].text and completed.usage.completion_tokens == 12

vectors = litellm.embedding(model="openai/embedder", input=["the cat", "the dog"], **WHERE)
assert len(vectors.data) == 2 and len(vectors.data[0]["embedding"]) == len(vectors.data[1]["embedding"]) > 8

for asked, error in (
    ({"model": "hosted_vllm/nobody"}, litellm.NotFoundError),
    ({"api_key": "wrong"}, litellm.AuthenticationError),
    ({"messages": [{"role": "user", "content": "word " * 3000}]}, litellm.ContextWindowExceededError),
    ({"max_tokens": -1}, litellm.BadRequestError),
):
    try:
        litellm.completion(**{"messages": ASKED} | CHAT | asked)
    except error:
        continue
    raise AssertionError(f"{asked} was answered")
