"""cohere's client: documents in the order of their relevance."""

import os

import cohere

base = os.environ["OPENAI_BASE_URL"].removesuffix("/v1")
for client in (
    cohere.ClientV2(os.environ["OPENAI_API_KEY"], base_url=base),
    cohere.Client(os.environ["OPENAI_API_KEY"], base_url=base),
):
    told = client.rerank(model="reranker", query="the cat", documents=["the dog", "the cat", "a mat"], top_n=2).results
    assert len(told) == 2 and told[0].relevance_score >= told[1].relevance_score and {r.index for r in told} < {0, 1, 2}
