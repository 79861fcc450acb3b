"""Whether lm-eval finds the same figures of a model that is served as of its weights by transformers.

    python -m benchmarks.harness --lm-eval PYTHON [--model FOLDER] [--count 40] [--concurrent 4]

PYTHON is an interpreter in an environment of its own, with what `pip install torch==2.13.0 transformers==5.23.0
lm_eval[api,hf]==0.4.13` brings. A causal language model (the text model that ships) is converted and served here, deployed with
`--logprobs 1`; of the shipped texts three tasks are made, which need no network: to choose among four endings, to find the last
word (as LAMBADA does), both by log-likelihoods, and to write to the end of the line. lm-eval runs them by `local-completions`,
with token ids in batches, and by its own `hf`. Prints a table in Markdown; fails where a figure differs by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.served import open_home, serving

from maasdam.convert import convert
from maasdam.sources import ingest

STARTER = Path(__file__).parents[1] / "starters" / "text"
TASKS = {
    "endings": """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{endings}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "last_word": """output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + word}}"
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "lines": """output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{line}}"
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
""",
}
TOLERANCE = 1e-3


def main() -> None:
    """Serve, run lm-eval twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", required=True, metavar="PYTHON")
    parser.add_argument("--model", type=Path, default=STARTER / "model")
    parser.add_argument("--count", type=int, default=40, help="questions of each task")
    parser.add_argument("--concurrent", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_tasks(work / "tasks", args.count)
        home = work / "home"
        key = register(home, args.model)
        with serving(home, key) as running:
            bos = "add_bos_token=True"  # lm-eval's own default differs between the two
            url = f"{running.url}/v1/completions"
            own = f"model=model,base_url={url},tokenizer={args.model},num_concurrent={args.concurrent},tokenized_requests=True"
            served = evaluated(args.lm_eval, work, "local-completions", f"{own},max_length=512,{bos}", key)
        plain = evaluated(args.lm_eval, work, "hf", f"pretrained={args.model},dtype=float32,logits_cache=False,{bos}", key)
    print("| task | figure | served | transformers |\n|---|---|---|---|")
    apart = []
    for task, figures in plain["results"].items():
        for name, value in figures.items():
            if isinstance(value, int | float) and "stderr" not in name and name != "sample_len":
                other = served["results"][task][name]
                print(f"| {task} | {name.partition(',')[0]} | {other:.6g} | {value:.6g} |")
                apart += [f"{task} {name}"] if abs(other - value) > TOLERANCE * max(1.0, abs(value)) else []
    answers, largest = compared(served["samples"], plain["samples"])
    print(f"\n{answers}; largest difference of a log-likelihood: {largest:.1e}")
    if apart or largest > TOLERANCE:
        sys.exit(f"differs: {', '.join(apart) or 'log-likelihoods'}")


def register(home: Path, model: Path) -> str:
    """The model converted, registered and deployed as "model", with its likeliest tokens; a key."""
    with open_home(home) as workspace:
        source = ingest(str(model), workspace.store, task="text-generation")
        with workspace.store.workspace() as folder:
            files = folder / "files"
            files.mkdir()
            made = convert(source, "openvino", files)
            kind: dict[str, Any] = {"format": made.format, "layout": made.layout, "task": source.task, "engine": made.engine}
            artifact = workspace.store.add(files, settings={}, signature=None, **kind)
        report = {"passed": True, "failures": []}
        workspace.catalog.register("model", artifact, source=str(model), recipe="none", report=report, passes=[])
        workspace.catalog.deploy("model", options={"logprobs": 1})
        return workspace.keys.create("lm-eval", ["infer"])[1]


def write_tasks(folder: Path, count: int) -> None:
    """lm-eval's files of the tasks, and their questions, out of the shipped texts: the same each time."""
    folder.mkdir()
    texts = [json.loads(line)["text"] for line in (STARTER / "samples" / "text.jsonl").read_text().splitlines()]
    lines = [line for text in texts for line in text.splitlines() if len(line.split()) > 6]
    draw = random.Random(0)
    draw.shuffle(lines)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for number in range(count):
        words = lines[number % len(lines)].split()
        others = [" ".join(draw.choice(lines).split()[-3:]) for _ in range(3)]
        endings = [*others[: number % 4], " ".join(words[-3:]), *others[number % 4 :]]
        rows["endings"].append({"context": " ".join(words[:-3]), "endings": endings, "answer": number % 4})
        rows["last_word"].append({"context": " ".join(words[:-1]), "word": words[-1]})
        rows["lines"].append({"context": " ".join(words[:4]), "line": " ".join(words[4:])})
    for name, task in TASKS.items():
        (folder / f"{name}.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows[name]))
        files = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / name}.json}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{files}{task}")


def evaluated(python: str, work: Path, kind: str, arguments: str, key: str) -> dict[str, Any]:
    """lm-eval's results and samples of all tasks, by one of its kinds of models."""
    out = work / kind
    command = [python, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments, "--tasks", ",".join(TASKS)]
    command += [
        "--include_path",
        str(work / "tasks"),
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--output_path",
        str(out),
        "--log_samples",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "cache"), "OPENAI_API_KEY": key}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr, timeout=900)
    (results,) = out.rglob("results_*.json")
    samples = {name: next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines() for name in TASKS}
    return {
        "results": json.loads(results.read_text())["results"],
        "samples": {name: [json.loads(line) for line in lines] for name, lines in samples.items()},
    }


def compared(served: dict[str, list[Any]], plain: dict[str, list[Any]]) -> tuple[str, float]:
    """How many answers are the same, and the largest difference of a log-likelihood."""
    largest, same, count, greedy = 0.0, 0, 0, 0
    for name, rows in plain.items():
        others = {row["doc_id"]: row for row in served[name]}
        for row in rows:
            ours, theirs = others[row["doc_id"]]["resps"], row["resps"]
            if name == "lines":
                same, count = same + (ours == theirs), count + 1
                continue
            for ((one, is_one),), ((other, is_other),) in zip(ours, theirs, strict=True):
                largest = max(largest, abs(float(one) - float(other)))
                greedy += str(is_one) == str(is_other)
                count, same = count + 1, same + (str(is_one) == str(is_other))
    return f"{same} of {count} texts and greedy flags are the same ({greedy} flags)", largest


if __name__ == "__main__":
    main()
