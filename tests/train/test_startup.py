"""What a start costs, in calls and not in seconds: files are touched once a clip, no text is tokenised again.

`benchmarks/startup.py` has the seconds for up to a million records.
"""

from __future__ import annotations

import builtins
import json
import os
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from llava.data import text_format
from llava.data.dataset import COMPARED
from llava.train import run_flags
from llava.train.setup import prepare
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Calls of `stat` and `open` on clips, and texts that go through the tokenizer."""
    found: Counter = Counter()
    stat, opened, tokenize = os.stat, builtins.open, PreTrainedTokenizerFast.__call__
    together = text_format.tokenized

    def counting_together(tokenizer, texts):
        found["texts"] += len(texts)
        return together(tokenizer, texts)

    def counting_stat(path, *args, **kwargs):
        found["stat"] += str(path).endswith(".mp4")
        return stat(path, *args, **kwargs)

    def counting_open(path, *args, **kwargs):
        found["open"] += str(path).endswith(".mp4")
        return opened(path, *args, **kwargs)

    def counting_tokenize(self, text, *args, **kwargs):
        found["texts"] += 1 if isinstance(text, str) else len(text)
        return tokenize(self, text, *args, **kwargs)

    monkeypatch.setattr(os, "stat", counting_stat)
    monkeypatch.setattr(builtins, "open", counting_open)
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counting_tokenize)
    monkeypatch.setattr(text_format, "tokenized", counting_together)
    return found


def test_the_cost_of_a_start(assets, tmp_path, calls):
    counts = {}
    for number in (60, 60, 300, 300):
        path = tmp_path / f"{number}.json"
        rows = [record(f"r{i}", f"{CAPTIONS[i % 6]} {i}", f"clip{i % 6}.mp4") for i in range(number)]
        if not path.exists():
            path.write_text(json.dumps(rows))
        calls.clear()
        run = prepare(run_flags.parse_arguments(flags(assets, tmp_path / "run", data_path=path)))
        assert len(run.trainer.train_dataset) == number
        counts[number] = dict(calls)  # That of the second run, which finds features, records and tokens.
    assert counts[60]["stat"] == counts[300]["stat"] <= 6 * 3
    assert counts[60]["open"] == counts[300]["open"] == 0
    # Some are compared with their text; for the unigram entropy nothing is tokenised.
    assert counts[300]["texts"] - counts[60]["texts"] == COMPARED - 60
