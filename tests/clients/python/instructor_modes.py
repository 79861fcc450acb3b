"""instructor: one model read out of answers by tools, JSON and schemas."""

import instructor
import openai
from pydantic import BaseModel, Field


class Lamp(BaseModel):
    """A lamp."""

    on: bool
    colour: str = Field(max_length=4)


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    asked = [{"role": "user", "content": "a lamp"}]
    lamp = client.chat.completions.create(
        model="tiny", response_model=Lamp, messages=asked, max_retries=0, max_tokens=90, temperature=0
    )
    assert isinstance(lamp, Lamp), (mode, lamp)
