"""Settings: default < maasdam.toml of the home folder < ./maasdam.toml < MAASDAM_* environment < flag.

Each field is one setting; its docstring is its documentation (docs/settings.md is generated from here).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidInput

FILE = Path("maasdam.toml")
TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, resolved. Field names are the keys of maasdam.toml and, upper-cased after MAASDAM_, of the environment."""

    home: Path = Path("~/.maasdam")
    """Where state lives: artifacts, catalog, ledger, logs."""
    database_url: str = ""
    """SQLAlchemy URL; empty is SQLite (WAL) in `home`."""
    host: str = "127.0.0.1"
    """Address the service listens on."""
    port: int = 8080
    """HTTP port; 0 picks a free one."""
    grpc_port: int = 8081
    """gRPC port; 0 is none. Where nobody chose it and another program has it, the service answers HTTP alone and says so."""
    workers: int = 1
    """Processes that answer, each with every deployed model. From two on there is one more, which answers nothing: it starts
    them, and starts them again."""
    uds: str = ""
    """Path of a Unix socket for HTTP, instead of `host` and `port`; gRPC is at the same path with .grpc behind it, unless
    `grpc_port` is 0. Empty is none."""
    uds_mode: str = "0600"
    """Permissions of those sockets, in octal: who may write to one may connect."""
    tls_cert: str = ""
    """File of the certificate, in PEM with those that lead to its root behind it: HTTP and gRPC over TCP then speak TLS. It is
    read again when it changes. Empty is none."""
    tls_key: str = ""
    """File of the certificate's private key, in PEM and unencrypted."""
    threads: int = 0
    """Engine threads per replica; 0 is every core this process may use."""
    max_body_bytes: int = 128 * 1024 * 1024
    """Largest HTTP body and gRPC message taken, bytes: tensors as binary data, forms with files: an hour at 16 kHz in
    WAV fits. JSON has limits of its own."""
    max_json_bytes: int = 8 * 1024 * 1024
    """Largest JSON body, bytes."""
    max_json_media_bytes: int = 32 * 1024 * 1024
    """Largest JSON body of a route that takes images or recordings in base64, bytes."""
    max_json_tensor_bytes: int = 16 * 1024 * 1024
    """Largest JSON of a tensor request, or gRPC message without its raw contents, bytes; what is larger goes as binary data."""
    max_json_values: int = 200_000
    """Most values in one JSON body, a key counting as two, tensors' numbers apart."""
    max_image_pixels: int = 32_000_000
    """Largest image decoded, pixels (width x height)."""
    max_audio_seconds: float = 7200.0
    """Longest recording taken, seconds."""
    max_json_depth: int = 64
    """Deepest nesting of a JSON body."""
    max_tokens: int = 512
    """Tokens generated when the caller names no limit."""
    queue_size: int = 256
    """Requests waiting per replica before new ones get 503."""
    max_sessions: int = 64
    """Realtime sessions open at once in one worker; one more gets 503."""
    response_days: float = 30.0
    """How long an answer of /v1/responses is kept, and how long after the last that continues it; 0 keeps none."""
    response_bytes: int = 256 * 1024 * 1024
    """Most that is kept of one key's answers of /v1/responses, bytes: the oldest are removed for new ones."""
    request_timeout_seconds: float = 60.0
    """A request unanswered for so long gets 504."""
    timeout_per_audio_second: float = 1.0
    """Seconds more that it has for each second which a recording may last, as its bytes tell."""
    shutdown_grace_seconds: float = 10.0
    """The service has ended so long after SIGTERM, whatever hangs; requests in flight may finish until shortly before."""
    memory_budget: str | int = ""
    """Memory that models may take together: bytes ("4GB", "512 MiB") or a share of what the machine, or its container, has
    ("60%"). For one more the least recently used idle ones leave. Empty is no limit."""
    load_seconds: float = 300.0
    """A model that has not loaded and answered once by then has failed; the others do not wait for it."""
    max_answer_bytes: int = 512 * 1024 * 1024
    """Largest answer of tensors, bytes; where shapes tell, it is refused before the model runs."""
    inspect_seconds: float = 60.0
    """Longest that reading what a source says of itself may take; 0 is no limit."""
    step_seconds: float = 900.0
    """Longest that a step of `build`, `convert` or `verify` may go on without getting any further; 0 is no limit."""
    step_cpu_seconds: float = 0.0
    """The same in seconds of computing, all cores together; 0 is no limit."""
    step_memory_bytes: int = 0
    """Memory that such work may take, bytes; 0 is four fifths of what the machine has."""
    measure_seconds: float = 10.0
    """Longest that a build's latency is measured beside its reference's; throughput is for half of that, and what the optimiser
    compares for four fifths. Less is a quicker build and rougher figures."""
    host_memory_bytes: int = 0
    """Memory that an engine host may take, bytes; 0 is four fifths of what the machine has."""
    custom_seconds: float = 10.0
    """Longest that the code of a task of one's own may take for one prepare or finish."""
    custom_memory_bytes: int = 2 * 1024**3
    """Memory that a process of such code may take, bytes; each model has up to two."""
    host_stall_seconds: float = 120.0
    """Longest that an engine host may work without anything coming of it, or one batch may take; 0 is no limit."""
    watts_per_core: float = 0.0
    """Power of one busy core in watts, for the energy estimate where no counter is; 0 is no estimate: joules stay null."""
    grams_co2e_per_kwh: float = 0.0
    """Carbon intensity of the electricity, gCO2e per kWh; 0 is unknown: grams stay null."""
    public_docs: bool = False
    """Whether /docs and /openapi.json can be read without a key: they say what the service can do, nothing of its models."""
    cors_origins: str = ""
    """Origins of web pages that may call the service from browsers (https://app.example.com), separated by commas; * is any."""
    image_url_hosts: str = ""
    """Hosts that pictures may be fetched from where a request names one by its address (images.example.com, *.example.com),
    separated by commas. Empty: none, and such a request is refused. One with an address that is not public always is."""
    log_level: str = "info"
    """debug, info, warning or error. The line of each request is of level info."""
    log_file: str = "logs/maasdam.log"
    """Where the service keeps its log besides writing it to stderr; below `home` unless absolute. Empty keeps none."""
    log_file_bytes: int = 64 * 1024 * 1024
    """Size at which the log's file is set aside and a new one begun, bytes; 0 lets it grow."""
    log_files: int = 4
    """How many log files that were set aside are kept."""

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.home / 'maasdam.db'}"

    @property
    def resolved_log_file(self) -> Path | None:
        """Where the log is kept, None where it is not."""
        return self.home / self.log_file if self.log_file else None


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Resolve the settings. Raises InvalidInput naming the setting, the value and what is wrong with it.

    `flags` holds what the command line set (None values are unset); `file` is a maasdam.toml, the only one read then,
    default those of the home folder and of this folder where there are any.
    """
    env = os.environ if environ is None else environ
    set_home = (flags or {}).get("home") or env.get("MAASDAM_HOME")
    values = _from_file(file or FILE) if file is not None or FILE.is_file() else {}
    home = Path(set_home or values.get("home", Settings.__dataclass_fields__["home"].default)).expanduser()
    if file is None and (home / FILE).is_file() and (home / FILE).absolute() != FILE.absolute():
        values = _from_file(home / FILE) | values
    for f in fields(Settings):
        name = f"MAASDAM_{f.name.upper()}"
        if name in env:
            values[f.name] = _parse(f.name, str(f.type), env[name], name)
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = value
    values["home"] = Path(values.get("home", Settings.__dataclass_fields__["home"].default)).expanduser().absolute()
    return Settings(**values)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"can't read settings file {path}: {error}") from error
    known = {f.name: str(f.type) for f in fields(Settings)}
    out: dict[str, Any] = {}
    for key, value in data.items():
        if key == "prices":
            continue  # tables of their own, read by accounts.prices
        if key not in known:
            near = difflib.get_close_matches(key, [*known, "prices"], 1)
            meant = f"did you mean '{near[0]}'? " if near else ""
            raise InvalidInput(f"{path}: no setting '{key}'; {meant}the settings are: {', '.join(sorted(known))}")
        if known[key] in ("str", "Path") and not isinstance(value, str):  # 0o660 would be the text 432
            raise InvalidInput(f"{path}: setting '{key}' is {value}, which is no text; write it in quotes")
        out[key] = _parse(key, known[key], str(value), str(path))
    return out


def _parse(name: str, kind: str, text: str, where: str) -> Any:
    try:
        if kind == "bool":
            return TRUTH[text.lower()]
        return {"int": int, "float": float, "Path": Path, "str": str, "str | int": str}[kind](text)
    except (KeyError, ValueError) as error:
        takes = "true or false" if kind == "bool" else f"{'an' if kind[0] in 'aei' else 'a'} {kind}"
        raise InvalidInput(f"{where}: setting '{name}' is '{text}'; it takes {takes}") from error
