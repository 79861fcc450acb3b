"""Brings journals into the ledger while a service runs. Knows when; what and how is the ledger's."""

from __future__ import annotations

import logging
import threading

from maasdam.accounts.ledger import Ledger
from maasdam.errors import StorageFailure

log = logging.getLogger("maasdam.ledger")

SECONDS = 0.5
"""Between two looks: what was answered is in the database within a second."""


class Importer:
    """A thread. A database that is away is tried again and again; meanwhile the journals grow."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="importer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with all taken in if that is possible; what is not is taken in by whoever looks next."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._take_in(is_ending=True)

    def _work(self) -> None:
        while not self._is_over.wait(SECONDS):
            self._take_in()

    def _take_in(self, is_ending: bool = False) -> None:
        try:
            self._ledger.take_in(is_ending)
        except StorageFailure as error:  # said already by who looks after the database
            log.debug("the journals wait: %s", error)
        except Exception:  # whatever it is, the next look must come
            log.exception("the journals can't be taken in")
