// openai for Node: chat whole and streamed, a schema, a tool, responses, embeddings (base64 by default).
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "the cat sat" }];
const asked = { model: "tiny", messages, temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create(asked);
assert.equal(whole.usage.completion_tokens, 12);
let text = "";
for await (const piece of await client.chat.completions.create({ ...asked, stream: true })) text += piece.choices[0]?.delta?.content ?? "";
assert.equal(text, whole.choices[0].message.content);

const schema = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false };
const held = await client.chat.completions.create({
  ...asked,
  max_tokens: 60,
  response_format: { type: "json_schema", json_schema: { name: "lamp", schema, strict: true } },
});
assert.equal(typeof JSON.parse(held.choices[0].message.content).on, "boolean");

const tools = [{ type: "function", function: { name: "light", description: "Switch a light", parameters: schema, strict: true } }];
const forced = { ...asked, max_tokens: 80, tools, tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create(forced);
const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(
  streamed.choices[0].message.tool_calls.map((call) => call.function.arguments),
  called.choices[0].message.tool_calls.map((call) => call.function.arguments),
);

const answered = await client.responses.create({ model: "tiny", input: "the cat sat", max_output_tokens: 16, temperature: 0 });
assert.equal(answered.usage.output_tokens, 16);
let told = "";
for await (const event of await client.responses.create({ model: "tiny", input: "the cat sat", max_output_tokens: 16, temperature: 0, stream: true }))
  if (event.type === "response.output_text.delta") told += event.delta;
assert.equal(told, answered.output_text);

const vectors = await client.embeddings.create({ model: "embedder", input: ["the cat", "the dog"] });
const plain = await client.embeddings.create({ model: "embedder", input: ["the cat", "the dog"], encoding_format: "float" });
assert.equal(vectors.data.length, 2);
vectors.data[1].embedding.forEach((value, place) => assert.ok(Math.abs(value - plain.data[1].embedding[place]) < 1e-6));
await assert.rejects(client.chat.completions.create({ ...asked, model: "nobody" }), OpenAI.NotFoundError);
