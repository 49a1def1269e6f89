"""What the data loader costs with cached features: samples/s and CPU-ms a sample, beside a copy of the same bytes.

    python -m benchmarks.loader                                  0, 1, 2 and 4 workers, features of 4 x 256 x 1024
    python -m benchmarks.loader --against ../older-checkout      in turns with the code of another checkout
    python -m benchmarks.loader --workers 0 --dtype int8 --profile
    python -m benchmarks.loader --workers 0 --text --clips 2000                  records without a clip

Features of noise (2 MiB a clip in fp16) lie in a cache that the system holds in memory; words are random, of a
vocabulary of 30,000, and come from the prepared tables where the code has them, as in training. Batches arrive as the
trainer's do, without a step behind them. Everything runs in fresh processes of one thread. `first` is the epoch that
verifies checksums, `later` all others; CPU-ms are those of the main process and its workers together. Bytes are copied
as often as `copies` says (in one process, by what is read from files and what torch's operations write): a batch made
by a worker is not copied on its way to the main process.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (4, 256, 1024)
VOCABULARY = 30_000
WORDS = 15


class Traffic(TorchDispatchMode):
    """Bytes that torch's operations write into tensors of `least` bytes and more, and that are read from files."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.bytes, self.least = 0, least
        self.preadv = os.preadv

    def __enter__(self) -> Traffic:
        os.preadv = self.read
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        os.preadv = self.preadv
        super().__exit__(*error)

    def read(self, *args: Any) -> int:
        done = self.preadv(*args)
        self.bytes += done
        return done

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        copies = name in ("cat", "stack", "clone", "copy_", "_to_copy", "mul")
        if copies and isinstance(result, torch.Tensor) and result.nbytes >= self.least:
            self.bytes += result.nbytes
        return result


def found(name: str, *modules: str) -> Any:
    """What the first of these modules calls so, by this checkout or an older one; None where none does."""
    for module in modules:
        with suppress(ImportError):
            return getattr(import_module(module), name, None)
    return None


def make_tokenizer(folder: Path) -> None:
    """Words `w0`, `w1`, ... and the visual tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from llava.constants import VISUAL_TOKENS

    words = {f"w{i}": i for i in range(VOCABULARY)}
    words |= {token: VOCABULARY + i for i, token in enumerate(("<|endoftext|>", *VISUAL_TOKENS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(VISUAL_TOKENS),
    )  # fmt: skip
    fast.save_pretrained(folder)


def make_records(folder: Path, clips: int) -> list[Any]:
    """Records of random captions, each with a clip of its own: a file of a few bytes that nothing decodes."""
    from llava.data.records import Record

    generator = np.random.default_rng(0)
    records = []
    for i in range(clips):
        path = folder / f"{i}.mp4"
        if not path.exists():
            path.write_bytes(b"clip %d" % i)
        caption = " ".join(f"w{w}" for w in generator.integers(0, VOCABULARY, WORDS))
        turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": caption}]
        records.append(Record(str(i), turns, (str(path),), (), None, {}, str(i)))
    return records


def open_data(folder: Path, clips: int, tokenizer: Any, text: bool) -> tuple[Any, dict[str, Any]]:
    """Records and what serves their words, as training opens them: from tables, or from the text by older code."""
    records = make_records(folder, clips)
    open_records = found("open_records", "llava.data.record_table")
    open_tokens = found("open_tokens", "llava.data.token_table")
    plain = found("PlainLM", "llava.data.text_format")
    data = folder / f"{'text' if text else 'video'}-{clips}.json"
    if open_records is None or open_tokens is None:
        if text:
            records = [replace(r, conversations=r.conversations[1:], videos=()) for r in records]
        return records, {"preprocess": found("preprocess_plain_lm", "llava.data.prompt")}
    if not data.exists():
        rows = [{"id": r.id, "conversations": r.conversations[text:]} | ({} if text else {"video": f"{r.id}.mp4"})
                for r in records]  # fmt: skip
        data.write_text(json.dumps(rows))
    form, tables = plain(tokenizer), folder / "tables"
    table, problems = open_records(tables, data, None, folder)
    assert not problems
    tokens = open_tokens(tables, table, tokenizer, form)
    return table, {"preprocess": form.preprocess, "text_format": form, "prepared": tokens}


def open_features(folder: Path, dtype: str) -> Any:
    """The cache of a folder, by the code of this checkout or of an older one."""
    cache = found("FeatureCache", "llava.data.features.store", "llava.data.feature_store")
    return cache(folder / "cache", {"benchmark": 1, "dtype": dtype})


def fill(folder: Path, clips: int, dtype: str) -> None:
    """Features of noise for every clip that has none."""
    cache, generator = open_features(folder, dtype), np.random.default_rng(0)
    missing = [r for r in make_records(folder, clips) if not cache.has(r.videos[0], None)]
    for start in range(0, len(missing), 64):
        part = missing[start : start + 64]
        values = generator.standard_normal((len(part), *SHAPE), dtype=np.float32).astype(np.float16)
        cache.write([(cache.key(r.videos[0], None), r.videos[0]) for r in part], values)


class Collate:
    """A collator that says which process it ran in, and how much CPU time that one has used."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> tuple[Any, int, float]:
        batch = self.collate(samples)
        return batch, os.getpid(), time.process_time()


def measure(
    folder: Path, clips: int, workers: int, batch: int, epochs: int, dtype: str, profile: bool, text: bool = False
) -> dict[str, Any]:
    """Seconds and CPU-seconds a sample of each epoch, bytes copied, and those of a plain copy, in this process."""
    from transformers import AutoTokenizer

    from llava.data.dataset import LazySupervisedDataset
    from llava.data.packing import TrainingCollator
    from llava.data.prompt import video_tokens

    HandingOver = found("HandingOver", "llava.data.handover")
    VideoSpec = found("VideoSpec", "llava.config.video", "llava.config")

    warnings.filterwarnings("ignore", message="This DataLoader will create")
    torch.set_num_threads(1)
    tokenizer, spec = AutoTokenizer.from_pretrained(folder / "tokenizer"), VideoSpec(force_sample=True)
    cache = None if text else open_features(folder, dtype)
    records, words = open_data(folder, clips, tokenizer, text)
    dataset = LazySupervisedDataset(records, tokenizer, max_length=1024, spec=spec, cache=cache, **words)
    collate = TrainingCollator(
        tokenizer.pad_token_id, templates={"video": tokenizer.convert_tokens_to_ids(video_tokens(spec))}
    )
    send = HandingOver(collate, False) if workers and HandingOver else collate
    loader = DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, collate_fn=Collate(send), drop_last=True,
        persistent_workers=workers > 0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    profiler = cProfile.Profile()
    last: dict[int, float] = {}
    spent = []
    for epoch in range(epochs):
        if epoch == 1 and profile:
            profiler.enable()
        begun, cpu, count, in_workers = time.perf_counter(), time.process_time(), 0, 0.0
        for served, pid, used in loader:
            count += len(served["sample_ids"])
            if pid != os.getpid():
                in_workers += used - last.get(pid, used)
                last[pid] = used
            del served
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu + in_workers
        spent.append({"seconds": seconds / count, "cpu": cpu / count})
    profiler.disable()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(40)
    row = int(np.prod(SHAPE)) * (2 if dtype == "float16" else 1)
    with Traffic(row) as traffic:
        collate([dataset[i] for i in range(batch)])
    return {
        "first": spent[0], "later": {k: median(s[k] for s in spent[1:]) for k in ("seconds", "cpu")},
        "copy": 0.0 if text else copying(row, batch), "copies": traffic.bytes / (row * batch),
    }  # fmt: skip


def copying(row: int, rows: int) -> float:
    """CPU-seconds that a row of a batch takes to be copied within memory, into pages that are there."""
    source, target = (np.ones((rows, row), np.uint8) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.process_time()
        for i in range(rows):
            np.copyto(target[i], source[i])
        times.append((time.process_time() - start) / rows)
    return median(times)


def run_measure(checkout: Path, profile: bool = False, **settings: Any) -> dict[str, Any]:
    """`measure` in a fresh process with the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--measure", json.dumps(settings), *["--profile"] * profile]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(shown.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--clips", type=int, default=192, help="distinct clips, 2 MiB each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--dtype", choices=("float16", "int8"), default="float16")
    parser.add_argument("--text", action="store_true", help="records without a clip, as many as --clips")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--profile", action="store_true", help="also prints where the main process's time goes")
    parser.add_argument("--keep", type=Path, help="folder for the data, used again when it is there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        settings = json.loads(args.measure)
        print(json.dumps(measure(**settings | {"folder": Path(settings["folder"])}, profile=args.profile)))
        return
    checkouts = {"here": ROOT} | ({"against": args.against.absolute()} if args.against else {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).absolute()
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        make_tokenizer(folder / "tokenizer")
        for checkout in () if args.text else checkouts.values():  # An older one has a cache of its own.
            code = f"from pathlib import Path; import sys; sys.path.insert(0, {str(ROOT)!r}); "
            code += f"from benchmarks.loader import fill; fill(Path({str(folder)!r}), {args.clips}, {args.dtype!r})"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout)
        print("| workers | code | samples/s | CPU-ms a sample, first | later (plain copies) | copies | a plain copy |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for workers in args.workers:
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
            for _ in range(args.repeats):
                for name, checkout in checkouts.items():
                    results[name].append(run_measure(
                        checkout, args.profile, folder=str(folder), clips=args.clips, workers=workers, batch=args.batch,
                        epochs=args.epochs, dtype=args.dtype, text=args.text,
                    ))  # fmt: skip
            for name, runs in results.items():
                rate = median(1 / run["later"]["seconds"] for run in runs)
                first, later = (median(run[k]["cpu"] for run in runs) * 1e3 for k in ("first", "later"))
                copy, copies = median(run["copy"] for run in runs) * 1e3, runs[0]["copies"]
                cells = (
                    workers,
                    name,
                    f"{rate:,.0f}",
                    f"{first:.2f}",
                    f"{later:.2f}" + (f" ({later / copy:.1f} copies)" if copy else ""),
                )
                print("|", " | ".join(map(str, cells)), f"| {copies:.1f} | {copy:.2f} ms |", flush=True)


if __name__ == "__main__":
    main()
