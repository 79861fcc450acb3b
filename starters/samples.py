"""Write `samples.json`: what every shipped evaluation and calibration file is, and its sha256.

python starters/samples.py        # after a starter's samples were made anew
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

HERE = Path(__file__).parent
SETS = {
    "images/samples": {
        "kind": "evaluation",
        "made": "a fixed, stratified fifth of scikit-learn's load_digits, by images/train.py",
        "trained_on": False,
    },
    "images/calibrate": {
        "kind": "calibration",
        "made": "200 images of the other four fifths, by images/train.py",
        "trained_on": True,
    },
    "text/samples": {
        "kind": "evaluation",
        "made": "sampled from the starter model at temperature 1, by text/write.py",
        "trained_on": False,
    },
    "speech/samples": {
        "kind": "evaluation",
        "made": "espeak-ng and flite, voices held out of training, by speech/speak.py",
        "trained_on": False,
    },
    "speech/calibrate": {
        "kind": "calibration",
        "made": "espeak-ng, voices kept for choosing checkpoints, by speech/speak.py",
        "trained_on": False,
    },
}


def main() -> None:
    """Hash every file of every set."""
    sets = {}
    for name, facts in SETS.items():
        files = sorted(p for p in (HERE / name).iterdir() if p.is_file())
        sets[name] = {**facts, "sha256": {f"{name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}}
    (HERE / "samples.json").write_text(json.dumps(sets, indent=1) + "\n")


if __name__ == "__main__":
    main()
