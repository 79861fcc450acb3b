"""Models by their Hugging Face hub name: `hf:org/name` or `hf:org/name@revision`.

Knows which files of a repository are needed. Refuses to fetch pickles or code, and to know what is in any file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from maasdam.errors import InvalidInput, MaasdamError, NotFound, UnsafeModel, Unsupported, from_extra
from maasdam.sources.hfconfig import PROCESSOR_FILES

PREFIX = "hf:"
MAX_REPOSITORY_FILES = 20_000
TIMEOUT_SECONDS = 20.0
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?)(@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)
_NEVER = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.py", "*.msgpack", "*.h5")

_KINDS: tuple[tuple[str, ...], ...] = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.*", "openvino_detokenizer.*"),
    ("saved_model.pb", "fingerprint.pb", "variables/*", "assets/*"),
    ("model.onnx", "model.onnx_data*", "model.onnx.data*"),
    ("onnx/model.onnx", "onnx/model.onnx_data*", "onnx/model.onnx.data*"),
    ("model.keras",),
    ("model.pt2",),
)
"""Main file and companions of each kind of model, in the order they are preferred. openvino_*.bin is raw numbers."""


def split(source: str) -> tuple[str, str | None]:
    """`hf:org/name@revision` -> (repository, revision or None). Raises InvalidInput."""
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None or ".." in source:
        raise InvalidInput(f"'{source}' is no hub name; write hf:org/name or hf:org/name@revision")
    return match["repository"], match["revision"]


def wanted(names: Sequence[str], repository: str) -> list[str]:
    """Which of a repository's files to fetch. Raises UnsafeModel where it holds only pickles, Unsupported where no model."""
    if len(names) > MAX_REPOSITORY_FILES:
        raise Unsupported(
            f"{PREFIX}{repository} has over {MAX_REPOSITORY_FILES:,} files; fetch the model yourself and give its folder"
        )
    processor = [name for name in names if name in PROCESSOR_FILES]
    for main, *companions in _KINDS:
        if main in names:
            return sorted({main, *(n for n in names if any(fnmatchcase(n, pattern) for pattern in companions)), *processor})
    unsafe = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _NEVER)]
    if unsafe:
        raise UnsafeModel(
            f"{PREFIX}{repository} holds only {', '.join(unsafe[:3])}: pickles or code, which are never loaded; "
            "look for a revision with safetensors (often @refs/pr/N), or convert it where you trust it"
        )
    raise Unsupported(f"{PREFIX}{repository} holds no safetensors, ONNX, SavedModel, OpenVINO, .keras or .pt2 model")


def fetch(source: str, endpoint: str | None = None) -> Path:
    """Download what `source` needs into the Hugging Face cache (or find it there) and return the folder.

    `endpoint` is the hub's address (default: HF_ENDPOINT, else huggingface.co). Offline, an earlier download is used.
    Raises NotFound (no such repository, or neither network nor earlier download), UnsafeModel, MissingExtra.
    """
    repository, revision = split(source)
    with from_extra("pytorch", "huggingface_hub"):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    try:
        known = HfApi(endpoint=endpoint).model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
        files = wanted([file.rfilename for file in known.siblings or ()], repository)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files, endpoint=endpoint))
    except MaasdamError:
        raise
    except HFValidationError as error:
        raise InvalidInput(f"'{source}' is no hub name ({error})") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            raise NotFound(
                f"no model '{source}' on the hub that may be read; check the name, or run 'hf auth login' where it is gated"
            ) from error
        return _earlier(source, repository, revision, error)
    except (OfflineModeIsEnabled, OSError) as error:
        return _earlier(source, repository, revision, error)
    except Exception as error:  # the HTTP library changes from release to release
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            return _earlier(source, repository, revision, error)
        raise


def _earlier(source: str, repository: str, revision: str | None, cause: Exception) -> Path:
    """The folder that an earlier download left in the cache; its reader says when a file of it is missing."""
    from huggingface_hub import try_to_load_from_cache

    for main, *_ in _KINDS:
        file = try_to_load_from_cache(repository, main, revision=revision)
        if isinstance(file, str):
            return Path(file).parents[main.count("/")]
    raise NotFound(
        f"can't reach the hub for '{source}' ({type(cause).__name__}), and no earlier download of it is here; "
        "go online once, or give the path of a folder with the model"
    ) from cause
