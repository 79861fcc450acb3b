"""langchain-openai: chat, streams, batches, structured output in its three ways, tools, log-probabilities, embeddings."""

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field


class Lamp(BaseModel):
    """Switch a lamp."""

    on: bool
    colour: str = Field(max_length=4)


chat = ChatOpenAI(model="tiny", max_tokens=12, temperature=0, max_retries=0)
long = ChatOpenAI(model="tiny", max_tokens=100, temperature=0, max_retries=0)
whole = chat.invoke("the cat sat")
assert whole.content and whole.usage_metadata["output_tokens"] == 12
assert "".join(piece.content for piece in chat.stream("the cat sat")) == whole.content
told = [piece.usage_metadata for piece in chat.stream("the cat sat", stream_usage=True) if piece.usage_metadata]
assert [usage["output_tokens"] for usage in told] == [12]
assert [each.content for each in chat.batch(["the cat sat", "the cat sat"])] == [whole.content] * 2
for way in ("json_schema", "function_calling"):
    assert isinstance(long.with_structured_output(Lamp, method=way).invoke("a lamp"), Lamp), way
(call,) = long.bind_tools([Lamp], tool_choice="any", parallel_tool_calls=False).invoke("a lamp").tool_calls
assert call["name"] == "Lamp" and isinstance(call["args"]["on"], bool) and call["id"]
streamed = None
for piece in long.bind_tools([Lamp], tool_choice="any", parallel_tool_calls=False).stream("a lamp"):
    streamed = piece if streamed is None else streamed + piece
assert streamed is not None and [each["args"] for each in streamed.tool_calls] == [call["args"]], streamed
scores = chat.bind(logprobs=True).invoke("the cat sat").response_metadata["logprobs"]["content"]
assert len(scores) == 12 and all(each["logprob"] <= 0 for each in scores)
several = OpenAI(model="tiny", max_tokens=6, n=2, best_of=2, temperature=1, max_retries=0).generate(["the cat"])
assert len(several.generations[0]) == 2
vectors = OpenAIEmbeddings(model="embedder", max_retries=0, check_embedding_ctx_length=False).embed_documents(["a", "b", "a"])
assert vectors[0] == vectors[2] != vectors[1]
answered = ChatOpenAI(model="tiny", use_responses_api=True, max_tokens=16, temperature=0, max_retries=0).invoke("the cat sat")
assert answered.usage_metadata["output_tokens"] == 16
