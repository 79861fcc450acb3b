"""Models that another server runs: any that speaks the OpenAI API is a replica like those that run here.

    place    where it is, what it calls the model, and where its key is found: all that is kept of it
    client   requests over HTTP and what may come back: bounded, never followed elsewhere, errors as ours
    calls    of tools, put together from pieces and checked
    words    payloads and answers in OpenAI's JSON, believed as far as they hold together
    replica  both behind `Replica`, and a look every few seconds whether it is there

Its key is read from the environment when it is sent, and is kept nowhere.
"""

from __future__ import annotations
