"""pydantic-ai: plain text, an output type by a tool and by a schema, a stream."""

import asyncio
import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Lamp(BaseModel):
    """A lamp."""

    on: bool
    colour: str = Field(max_length=4)


provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
model = OpenAIChatModel("tiny", provider=provider)
settings = {"max_tokens": 90, "temperature": 0.0}
assert Agent(model, model_settings=settings).run_sync("the cat sat").output
assert isinstance(Agent(model, output_type=Lamp, model_settings=settings).run_sync("a lamp").output, Lamp)
assert isinstance(Agent(model, output_type=NativeOutput(Lamp), model_settings=settings).run_sync("a lamp").output, Lamp)


async def streamed() -> str:
    async with Agent(model, model_settings=settings).run_stream("the cat sat") as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])


assert asyncio.run(streamed()) == Agent(model, model_settings=settings).run_sync("the cat sat").output
