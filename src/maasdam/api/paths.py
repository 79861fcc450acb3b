"""How a model's name stands in a path: NAME or OWNER/NAME, then what the protocol says of it. Knows text; no routes.

/v2/models/acme/photos/versions/3/infer: the part behind the first slash is the name's unless the protocol claims it.
"""

from __future__ import annotations

import re

from starlette.convertors import StringConvertor, register_url_convertor

from maasdam.core import NOT_IN_NAMES
from maasdam.tasks import TASKS

MODEL = rf"[^/]+(?:/(?!(?:{'|'.join(NOT_IN_NAMES)})(?:/|$))[^/]+)?"
MODELS = "/models/{model:model}"
"""A route's path of one model."""
CLASSIFIES = {
    door: task
    for task in reversed(TASKS.values())  # of two at one door the first says what it takes
    if task.data and task.field
    for door in task.doors
    if door.startswith(("/v1/images/", "/v1/audio/"))
}
"""Routes of ours that say what is in a file, each with its task. They take it in a form, or in JSON in base64."""
CUSTOM_DOOR = "/v1/custom"
INFER = re.compile(rf"/v2/models/(?P<model>{MODEL})(?:/versions/(?P<version>[^/]*))?/infer")


class _Model(StringConvertor):
    regex = MODEL


register_url_convertor("model", _Model())
