"""Who may be held to a form: constraints are tried in a limited process before the engine sees them, one after another.

Knows limits, verdicts and how long they are kept. Refuses to know what a form is (`grammars`) and how it is tried (`trial`).

    admit ─ known verdict ──────────────────────────────► Future
        └── queue ─► thread ─► limited process ─ verdict ─► Future
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

from maasdam.children import Child, ChildLimits
from maasdam.core import Admitted, Constraint
from maasdam.engines import trial
from maasdam.errors import Crashed, EngineFailure, InvalidField, LimitExceeded, MaasdamError, Overloaded

SECONDS = 2.0
"""Of CPU for one constraint."""
WALL_SECONDS = 6.0
"""After which nothing is known of it: the machine was busy."""
OPENING_SECONDS = 60.0
"""For the process to read the model's vocabulary."""
MEMORY_BYTES = 3 * 2**30
"""Of the process. A vocabulary of 16,000 tokens takes 130 MB, and a megabyte for each grammar."""
FULL_BYTES = 2**30
"""A process that holds more is ended: the engine's library keeps every grammar that it has compiled."""
IDLE_SECONDS = 120.0
"""After which nobody needs the process."""
MOST_WAITING = 32
KEPT = 1024
"""Verdicts."""
KEPT_CHARACTERS = 32 * 2**20
"""Of the grammars among them."""
Verdict = Admitted | str


class FormGate:
    """One engine's. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the model's."""
        self._folder = str(folder)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._characters = 0
        self._asked: dict[bytes, list[tuple[Constraint, Future[Admitted]]]] = {}
        """By digest: those who wait for a verdict."""
        self._queue: queue.SimpleQueue[tuple[bytes, Constraint] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._child: Child | None = None
        self._is_closed = False

    def admit(self, constraint: Constraint) -> Future[Admitted]:
        """The grammar for a constraint, as soon as it is known. Its errors: InvalidField, EngineFailure. Raises Overloaded."""
        digest = hashlib.sha256(
            f"{constraint.kind}\0{constraint.thinking}\0{constraint.text}".encode(errors="surrogatepass")
        ).digest()
        answer: Future[Admitted] = Future()
        with self._lock:
            verdict = self._verdicts.get(digest)
            if verdict is not None:
                self._verdicts.move_to_end(digest)
                _tell(answer, constraint, verdict)
                return answer
            if self._is_closed:
                raise EngineFailure("the engine was closed")
            if digest not in self._asked:
                if len(self._asked) >= MOST_WAITING:
                    raise Overloaded(
                        f"{MOST_WAITING} forms that were never seen before wait to be compiled; try again in a second"
                    )
                self._asked[digest] = []
                self._queue.put((digest, constraint))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._live, name="grammars", daemon=True)
                    self._thread.start()
            self._asked[digest].append((constraint, answer))
        return answer

    def close(self) -> None:
        """End the process; who waits hears EngineFailure."""
        with self._lock:
            self._is_closed = True
            thread, child = self._thread, self._child
        self._queue.put(None)
        if child is not None:
            child.strike()
        if thread is not None:
            thread.join()

    def _live(self) -> None:
        while True:
            try:
                asked = self._queue.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                self._end_child()
                continue
            if asked is None or self._is_closed:
                break
            digest, constraint = asked
            if self._is_unwanted(digest):
                continue
            try:
                self._settle(digest, self._verdict(constraint))
            except BaseException as error:  # whoever waits must hear
                self._settle(digest, error if isinstance(error, MaasdamError) else EngineFailure(f"no verdict: {error}"))
        self._end_child()
        with self._lock:
            left = list(self._asked)
        for digest in left:
            self._settle(digest, EngineFailure("the engine was closed while a form was compiled"))

    def _is_unwanted(self, digest: bytes) -> bool:
        """Whether all who asked have gone; then nobody is told."""
        with self._lock:
            is_unwanted = all(answer.cancelled() for _, answer in self._asked[digest])
            if is_unwanted:
                del self._asked[digest]
        return is_unwanted

    def _verdict(self, constraint: Constraint) -> Verdict:
        """What the process says. Raises ServiceError where there is none."""
        child, began = self._opened(), time.monotonic()
        try:
            return child.call(trial.tried, (self._folder, constraint), {}, None)
        except InvalidField as error:
            return str(error)
        except LimitExceeded:
            self._end_child()
            self._check_open()
            if time.monotonic() - began > WALL_SECONDS:
                raise Overloaded("the machine is too busy to compile this form; try again in a second") from None
            return f"it takes more than {SECONDS:.0f} s, or more memory than is allowed, to compile; make it simpler"
        except Crashed:
            self._end_child()
            self._check_open()
            return "the engine's compiler gives up on it; make it simpler"
        finally:
            if self._child is not None and self._child.resident_bytes > FULL_BYTES:
                self._end_child()

    def _opened(self) -> Child:
        if self._child is not None and self._child.is_alive:
            return self._child
        self._end_child()
        child = Child(ChildLimits(OPENING_SECONDS, OPENING_SECONDS, MEMORY_BYTES), libraries=("openvino_genai",))
        with self._lock:
            if not self._is_closed:  # or `close` would wait until it has opened
                self._child = child
        if self._is_closed:
            child.kill()
        self._check_open()
        child.call(trial.ready, (self._folder,), {}, None)
        child.limits = ChildLimits(WALL_SECONDS, SECONDS, MEMORY_BYTES)
        return child

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineFailure("the engine was closed while a form was compiled")

    def _end_child(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _settle(self, digest: bytes, verdict: Verdict | MaasdamError) -> None:
        with self._lock:
            asked = self._asked.pop(digest, [])
            if not isinstance(verdict, MaasdamError):
                self._keep(digest, verdict)
        for constraint, answer in asked:
            _tell(answer, constraint, verdict)

    def _keep(self, digest: bytes, verdict: Verdict) -> None:
        self._verdicts[digest] = verdict
        self._characters += _characters(verdict)
        while len(self._verdicts) > KEPT or self._characters > KEPT_CHARACTERS:
            _, oldest = self._verdicts.popitem(last=False)
            self._characters -= _characters(oldest)


def _characters(verdict: Verdict) -> int:
    return len(verdict) if isinstance(verdict, str) else len(verdict.grammar)


def _tell(answer: Future[Admitted], constraint: Constraint, verdict: Verdict | MaasdamError) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    if isinstance(verdict, Admitted):
        answer.set_result(verdict)
    elif isinstance(verdict, str):
        answer.set_exception(InvalidField(f"'{constraint.field}': {verdict}", constraint.field))
    else:
        answer.set_exception(verdict)
