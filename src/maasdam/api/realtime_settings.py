"""What a realtime session is asked to do, in OpenAI's words of two ages. Knows fields and what each may be; never sound.

    session.update                 {"type": "transcription", "audio": {"input": {"format", "transcription", "turn_detection"}}}
    transcription_session.update   {"input_audio_format", "input_audio_transcription", "turn_detection"}, the older words

What can't be done is refused by its name, and then nothing of the update is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from maasdam.errors import InvalidField
from maasdam.tasks.turns import TurnSettings

FORMATS = {"audio/pcm": ("pcm16", 24_000), "audio/pcmu": ("g711_ulaw", 8_000), "audio/pcma": ("g711_alaw", 8_000)}
"""By their names today: how they were called, and samples a second."""
MOST_TEXT = 200
"""Characters of a model's or a language's name."""
UNDONE = {
    "noise_reduction": "noise is not taken out of sound here",
    "prompt": "prompts are not taken in realtime sessions",
    "keywords": "keywords are not taken",
    "languages": "one language at most is taken, as 'language'",
    "delay": "text comes as soon as it is certain",
    "create_response": "a transcription session gives no responses",
    "interrupt_response": "a transcription session gives no responses",
    "idle_timeout_ms": "a transcription session gives no responses",
}
"""Fields of OpenAI's that are not done here, and why; null, false and nothing in them is what is done."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session is to do. Immutable: each stretch of speech keeps what held when it began."""

    model: str | None = None
    language: str | None = None
    format: str = "audio/pcm"
    turns: TurnSettings | None = field(default_factory=TurnSettings)
    """None: who speaks says where a turn ends."""

    @property
    def rate(self) -> int:
        """Samples a second."""
        return FORMATS[self.format][1]


def updated(wanted: SessionSettings, session: object) -> SessionSettings:
    """With what a `session.update` says. Raises InvalidField."""
    given = _object(session, "session", ("type", "audio", "include"))
    if given.get("type", "transcription") != "transcription":
        told = str(given["type"])[:40]
        raise InvalidField(f"'session.type' is '{told}'; only 'transcription' sessions are here", "session.type")
    _check_include(given.get("include"))
    audio = _object(given.get("audio"), "session.audio", ("input",))
    where = "session.audio.input"
    heard = _object(audio.get("input"), where, ("format", "noise_reduction", "transcription", "turn_detection"))
    _undone(heard, where)
    if heard.get("format") is not None:
        form = _object(heard["format"], f"{where}.format", ("type", "rate"))
        kind = form.get("type", "audio/pcm")
        if not isinstance(kind, str) or kind not in FORMATS:
            told = f"one of {', '.join(FORMATS)}"
            raise InvalidField(f"'{where}.format.type' is {kind!r:.40}; send {told}", f"{where}.format.type")
        rate = form.get("rate", FORMATS[kind][1])
        if isinstance(rate, bool) or rate != FORMATS[kind][1]:
            raise InvalidField(
                f"'{where}.format.rate' is {rate!r:.40}; {kind} has {FORMATS[kind][1]} samples a second here",
                f"{where}.format.rate",
            )
        wanted = replace(wanted, format=kind)
    return _heard(wanted, heard, "transcription", where)


def updated_of_old(wanted: SessionSettings, session: object) -> SessionSettings:
    """With what a `transcription_session.update` says. Raises InvalidField."""
    names = ("input_audio_format", "input_audio_transcription", "turn_detection", "input_audio_noise_reduction", "include")
    given = _object(session, "session", names)
    _check_include(given.get("include"))
    if given.get("input_audio_noise_reduction") is not None:
        name = "session.input_audio_noise_reduction"
        raise InvalidField(f"'{name}': {UNDONE['noise_reduction']}; leave it out", name, "unsupported_parameter")
    kind = given.get("input_audio_format")
    if kind is not None:
        known = {old: new for new, (old, _) in FORMATS.items()}
        if not isinstance(kind, str) or kind not in known:
            name = "session.input_audio_format"
            raise InvalidField(f"'{name}' is {kind!r:.40}; send one of {', '.join(known)}", name)
        wanted = replace(wanted, format=known[kind])
    return _heard(wanted, given, "input_audio_transcription", "session")


def shown(wanted: SessionSettings, session_id: str, expires_at: int) -> dict[str, Any]:
    """The session as it is now."""
    form: dict[str, Any] = {"type": wanted.format}
    if wanted.format == "audio/pcm":
        form["rate"] = wanted.rate
    heard = {
        "format": form,
        "transcription": _transcription(wanted),
        "noise_reduction": None,
        "turn_detection": _turns(wanted.turns),
    }
    return {
        "type": "transcription",
        "object": "realtime.transcription_session",
        "id": session_id,
        "expires_at": expires_at,
        "audio": {"input": heard},
        "include": None,
    }


def shown_of_old(wanted: SessionSettings, session_id: str, expires_at: int) -> dict[str, Any]:
    """The same in the older words."""
    return {
        "object": "realtime.transcription_session",
        "id": session_id,
        "expires_at": expires_at,
        "input_audio_format": FORMATS[wanted.format][0],
        "input_audio_transcription": _transcription(wanted),
        "turn_detection": _turns(wanted.turns),
        "input_audio_noise_reduction": None,
        "include": None,
    }


def _transcription(wanted: SessionSettings) -> dict[str, Any] | None:
    if wanted.model is None:
        return None
    return {"model": wanted.model, "language": wanted.language, "prompt": None}


def _turns(turns: TurnSettings | None) -> dict[str, Any] | None:
    if turns is None:
        return None
    return {
        "type": "server_vad",
        "threshold": turns.threshold,
        "prefix_padding_ms": turns.prefix_padding_ms,
        "silence_duration_ms": turns.silence_duration_ms,
    }


def _heard(wanted: SessionSettings, given: Mapping[str, Any], named: str, where: str) -> SessionSettings:
    """With how sound is written down, and where turns end."""
    if given.get(named) is not None:
        place = f"{where}.{named}"
        names = ("model", "language", "prompt", "keywords", "languages", "delay")
        how = _object(given[named], place, names)
        _undone(how, place)
        if how.get("model") is not None:
            wanted = replace(wanted, model=_text(how["model"], f"{place}.model"))
        if "language" in how:
            language = how["language"] or None
            wanted = replace(wanted, language=None if language is None else _text(language, f"{place}.language"))
    if "turn_detection" not in given:
        return wanted
    if given["turn_detection"] is None:
        return replace(wanted, turns=None)
    return replace(wanted, turns=_turn_detection(wanted.turns, given["turn_detection"], f"{where}.turn_detection"))


def _turn_detection(before: TurnSettings | None, given: object, where: str) -> TurnSettings:
    own = ("threshold", "prefix_padding_ms", "silence_duration_ms")
    more = ("create_response", "interrupt_response", "idle_timeout_ms", "eagerness")
    detection = _object(given, where, ("type", *own, *more))
    kind = detection.get("type", "server_vad")
    if kind != "server_vad":
        raise InvalidField(f"'{where}.type' is {kind!r:.40}; 'server_vad' is done here, or null for none", f"{where}.type")
    _undone(detection, where)
    if detection.get("eagerness") is not None:
        raise InvalidField(f"'{where}.eagerness' is for semantic_vad; leave it out", f"{where}.eagerness")
    turns = before or TurnSettings()
    if detection.get("threshold") is not None:
        turns = replace(turns, threshold=_number(detection["threshold"], f"{where}.threshold", 0.0, 1.0))
    for name, most in (("prefix_padding_ms", 5_000), ("silence_duration_ms", 10_000)):
        if detection.get(name) is not None:
            least = 0 if name == "prefix_padding_ms" else 40
            value = _number(detection[name], f"{where}.{name}", least, most)
            if value != int(value):
                raise InvalidField(f"'{where}.{name}' is {value}; send whole milliseconds", f"{where}.{name}")
            turns = replace(turns, **{name: int(value)})
    return turns


def _object(given: object, where: str, names: tuple[str, ...]) -> Mapping[str, Any]:
    """An object of these fields; null is an empty one."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidField(f"'{where}' is no object; send one", where, "invalid_type")
    for name in given:
        if name not in names:
            place = f"{where}.{name}"[:MOST_TEXT]
            known = ", ".join(names)
            raise InvalidField(f"'{place}' is not known here; '{where}' takes {known}", place, "unknown_parameter")
    return given


def _undone(given: Mapping[str, Any], where: str) -> None:
    for name, why in UNDONE.items():
        if given.get(name) not in (None, False, "", []):
            raise InvalidField(f"'{where}.{name}': {why}; leave it out", f"{where}.{name}", "unsupported_parameter")


def _check_include(include: object) -> None:
    if include not in (None, []):
        raise InvalidField(
            "'session.include': log probabilities are not told in realtime sessions; leave it out",
            "session.include",
            "unsupported_parameter",
        )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > MOST_TEXT:
        raise InvalidField(f"'{where}' is no text of 1 to {MOST_TEXT} characters", where, "invalid_type")
    return value


def _number(value: object, where: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidField(f"'{where}' is no number; send one from {least:g} to {most:g}", where, "invalid_type")
    if not least <= value <= most:  # nor is what is no number
        raise InvalidField(f"'{where}' is {value!r:.40}; send {least:g} to {most:g}", where)
    return float(value)
