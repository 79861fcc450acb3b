// Vercel's AI SDK by @ai-sdk/openai-compatible: text whole and streamed, an object, a tool, embeddings.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "maasdam",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true,
});
const model = provider("tiny");
const asked = { model, prompt: "the cat sat", temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
const whole = await generateText(asked);
assert.equal(whole.usage.outputTokens, 12);
let text = "";
for await (const piece of streamText(asked).textStream) text += piece;
assert.equal(text, whole.text);

const schema = jsonSchema({ type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false });
const { object } = await generateObject({ ...asked, maxOutputTokens: 60, schema });
assert.equal(typeof object.on, "boolean");

let ran = null;
const light = tool({ description: "Switch a light", inputSchema: schema, execute: async ({ on }) => ((ran = on), "done") });
const called = await generateText({ ...asked, maxOutputTokens: 80, tools: { light }, toolChoice: "required", providerOptions: { maasdam: { parallel_tool_calls: false } } });
assert.equal(called.finishReason, "tool-calls");
assert.equal(typeof ran, "boolean");
assert.equal(called.toolResults[0].output, "done");

const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("embedder"), values: ["the cat", "the dog", "the cat"], maxRetries: 0 });
assert.deepEqual(embeddings[0], embeddings[2]);
assert.notDeepEqual(embeddings[0], embeddings[1]);
