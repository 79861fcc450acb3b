"""What the fork server imports for all workers. Importing this does it; no engine is opened, and no thread is started."""

from __future__ import annotations

import gc

import uvicorn.protocols.http.httptools_impl
import uvloop
from sqlalchemy.orm import configure_mappers

import maasdam.api.http
import maasdam.api.oip_grpc
import maasdam.workers.worker
from maasdam.tasks.torchless import without_torch

configure_mappers()
__all__ = ["maasdam", "uvicorn", "uvloop"]

without_torch()  # before anything imports transformers; engines that need torch ask for it
gc.collect()
gc.freeze()  # or a worker's first collection would write to all of it, and have it for itself
