"""Recompute an image classifier's top-1 over HTTP, knowing nothing of Maasdam but its HTTP interface. Standard library only.

    python benchmarks/recompute_top1.py --url http://127.0.0.1:8080 --model photos --data photos/ --key $KEY

Prints {"top1", "examples", "answers": {file: label_id}} as JSON.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def ask(url: str, key: str, model: str, image: bytes) -> int:
    """The best class of one image: its label_id."""
    body = json.dumps({"model": model, "image": base64.b64encode(image).decode(), "top_k": 1}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/images/classifications", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return int(json.load(reply)["data"][0]["label_id"])


def main() -> None:
    """Ask every photograph, four at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path, help="folder with metadata.csv (file_name, label_id)")
    parser.add_argument("--key", default="")
    args = parser.parse_args()
    with (args.data / "metadata.csv").open(newline="") as file:
        truth = {row["file_name"]: int(row["label_id"]) for row in csv.DictReader(file)}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: ask(args.url, args.key, args.model, (args.data / name).read_bytes()), truth)
        answers = dict(zip(truth, found, strict=True))
    right = sum(answers[name] == label for name, label in truth.items())
    print(json.dumps({"top1": right / len(truth), "examples": len(truth), "answers": answers}))


if __name__ == "__main__":
    main()
