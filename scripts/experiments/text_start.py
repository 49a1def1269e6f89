"""What a token in front of the text is worth to an evaluator: toy pairs after training with it and without, by lm-eval.

    python scripts/experiments/text_start.py --output_dir output/text_start --lm_eval LM_EVAL

Sentences of a small Italian grammar train a GPT-2 of 2 x 64 from scratch with `--text_start eos` and `none`. LM_EVAL
(`pip install "lm_eval[hf]"`, perhaps in another environment) then chooses between sentences that were held out and the
same with another article, adjective or verb, offline.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from llava.config.commands import parse
from llava.config.ranges import COUNT
from llava.data.text_start import TEXT_STARTS
from llava.errors import run_command
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train

MAKE_MODEL = Path(__file__).resolve().parents[1] / "make_model.py"
ARTICLES = {"ms": "Il", "fs": "La", "mp": "I", "fp": "Le"}
NOUNS = {
    "m": ("gatt", "bambin", "ragazz", "tren", "libr", "tavol", "nonn", "cavall", "lup", "tett"),
    "f": ("pall", "cas", "stell", "sedi", "port", "nuvol", "tend", "mel", "ros", "lun"),
}
ADJECTIVES = ("ner", "ross", "piccol", "nuov", "bell", "alt")
VERBS = (("dorme", "dormono"), ("cade", "cadono"), ("resta", "restano"), ("brilla", "brillano"))
ENDINGS = {"ms": "o", "fs": "a", "mp": "i", "fp": "e"}
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {pairs}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""


def sentence(kind: str, noun: str, adjective: str, verb: int, wrong: str = "", other: str = "") -> str:
    """A sentence whose words agree, but for the article, adjective or verb that `wrong` names, of the kind `other`."""
    kinds = {part: other if part == wrong else kind for part in ("article", "adjective", "verb")}
    return (
        f"{ARTICLES[kinds['article']]} {noun}{ENDINGS[kind]} {adjective}{ENDINGS[kinds['adjective']]} "
        f"{VERBS[verb][kinds['verb'][1] == 'p']}."
    )


def split(seed: int = 0, held_out: float = 0.2) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """Sentences to train on, and pairs of those that were held out: `good` and `bad`, by what is wrong."""
    found = [
        (gender + number, noun, adjective, verb)
        for gender, nouns in NOUNS.items()
        for noun, number, adjective, verb in product(nouns, "sp", ADJECTIVES, range(len(VERBS)))
    ]
    random.Random(seed).shuffle(found)
    number = int(held_out * len(found))
    pairs: dict[str, list[dict[str, str]]] = {"article": [], "adjective": [], "verb": []}
    for kind, *words in found[:number]:
        other = {"m": "f", "f": "m"}[kind[0]] + kind[1]
        wrong = {"article": other, "adjective": other, "verb": kind[0] + {"s": "p", "p": "s"}[kind[1]]}
        for part, value in wrong.items():
            pairs[part].append({"good": sentence(kind, *words), "bad": sentence(kind, *words, part, value)})
    return [sentence(kind, *words) for kind, *words in found[number:]], pairs


def write_data(folder: Path) -> Path:
    """Writes the records and, into `tasks`, what lm-eval is asked; returns the records' file."""
    sentences, pairs = split()
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    for part, listed in pairs.items():
        path = tasks / f"{part}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in listed))
        (tasks / f"{part}.yaml").write_text(TASK.format(name=f"toy_{part}", pairs=path.resolve()))
    turns = [[{"from": "human", "value": ""}, {"from": "gpt", "value": text}] for text in sentences]
    records = folder / "sentences.json"
    records.write_text(json.dumps([{"id": str(i), "conversations": turn} for i, turn in enumerate(turns)]))
    return records


def train_once(folder: Path, records: Path, start: str, seed: int, steps: int) -> Path:
    """A finished run; one that is there is kept."""
    run, model = folder / f"{start}_seed{seed}", folder / f"gpt2_seed{seed}"
    if not (run / "model.safetensors").is_file():
        made = f"--data_path {records} --output_dir {model} --vocab_size 400 --n_layer 2 --n_embd 64 --n_head 2"
        words = f"{made} --n_positions 64 --seed {seed} --exist_ok"
        subprocess.run([sys.executable, str(MAKE_MODEL), *words.split()], check=True)
        train(
            f"--model_name_or_path {model} --data_path {records} --output_dir {run} --text_only True "
            f"--max_steps {steps} --text_start {start} --seed {seed} --per_device_train_batch_size 32 "
            "--learning_rate 2e-3 --lr_scheduler_type cosine --model_max_length 64 --logging_steps 50 "
            "--save_strategy no --report_to none --disable_tqdm True --run_report False --val_fraction 0 "
            "--attn_implementation eager --use_cpu True".split()
        )
    return run


def score(run: Path, tasks: Path, lm_eval: str) -> dict[str, float]:
    """Accuracy of each task by lm-eval."""
    names = [path.stem for path in sorted(tasks.glob("*.yaml"))]
    output = run / "lm_eval"
    if not list(output.rglob("results_*.json")):
        command = [
            lm_eval, "--model", "hf", "--model_args", f"pretrained={run},trust_remote_code=True", "--tasks",
            ",".join(f"toy_{name}" for name in names), "--include_path", str(tasks), "--device", "cpu",
            "--batch_size", "32", "--output_path", str(output),
        ]  # fmt: skip
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    result = json.loads(max(output.rglob("results_*.json")).read_text())["results"]
    return {name: result[f"toy_{name}"]["acc,none"] for name in names}


def first_word_nats(run: Path, sentences: Sequence[str]) -> float:
    """Mean nats of a first word after EOS, as lm-eval asks for it."""
    tokenizer, model = load_pretrained_model(run)
    total = 0.0
    for text in sentences:
        ids = tokenizer(text.split()[0], add_special_tokens=False)["input_ids"]
        row = torch.tensor([[tokenizer.eos_token_id, *ids]])
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    return total / len(sentences)


@dataclass
class StartFlags:
    """What is trained and scored."""

    ranges = {"steps": COUNT}

    output_dir: Path = field(metadata={"help": "Folder for data, runs and results."})
    lm_eval: str = field(default="lm_eval", metadata={"help": "The lm_eval command."})
    steps: int = field(default=300, metadata={"help": "Steps of each run."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights and order."})


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of docs/evaluators.md."""
    (flags,) = parse(__doc__, StartFlags, argv=argv, prog="python scripts/experiments/text_start.py")
    records, tasks = write_data(flags.output_dir), flags.output_dir / "tasks"
    goods = [pair["good"] for pair in split()[1]["article"]]
    rows = []
    for start in TEXT_STARTS:
        runs = [train_once(flags.output_dir, records, start, seed, flags.steps) for seed in flags.seeds]
        scores = [score(run, tasks, flags.lm_eval) for run in runs]
        cells = [", ".join(f"{one[name]:.2f}" for one in scores) for name in scores[0]]
        nats = ", ".join(f"{first_word_nats(run, goods):.1f}" for run in runs)
        rows.append(f"| `{start}` | {' | '.join(cells)} | {nats} |")
    print(f"| `--text_start` | {' | '.join(scores[0])} | nats of the first word |", "| --- " * (len(cells) + 2) + "|",
          *rows, sep="\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    run_command(main)
