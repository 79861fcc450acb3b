"""openai-agents: a forced tool runs, by chat completions and by responses."""

import agents
import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from pydantic import BaseModel, Field

agents.set_tracing_disabled(True)
ran = []


class Lamp(BaseModel):
    """A lamp."""

    on: bool
    colour: str = Field(max_length=4)


@function_tool
def light(on: bool) -> str:
    """Switch a light."""
    ran.append(on)
    return "done"


client = openai.AsyncOpenAI(max_retries=0)
for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    model = kind(model="tiny", openai_client=client)
    plain = Agent(
        name="plain", instructions="brief", model=model, output_type=Lamp, model_settings=ModelSettings(max_tokens=90)
    )
    assert isinstance(Runner.run_sync(plain, "a lamp").final_output, Lamp), kind
    agent = Agent(
        name="lights",
        instructions="brief",
        model=model,
        tools=[light],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required", max_tokens=80, temperature=0, parallel_tool_calls=False),
    )
    assert Runner.run_sync(agent, "light, please").final_output == "done" and isinstance(ran.pop(), bool), kind
