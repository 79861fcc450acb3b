"""Every route whose models read texts instead of continuing them. Knows the list."""

from __future__ import annotations

from fastapi import APIRouter

from maasdam.api import embeddings, moderations, rerank, texts, tokens
from maasdam.operations.service import Service


def routes(service: Service) -> APIRouter:
    """The routes of all of them."""
    router = APIRouter()
    for door in (embeddings, rerank, moderations, texts, tokens):
        router.include_router(door.routes(service))
    return router
