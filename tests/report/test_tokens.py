"""The token dump of pre-flight, as the page reads it back."""

from __future__ import annotations

import pytest

from llava.data.dataset import LazySupervisedDataset
from llava.data.records import Record
from llava.data.text_format import PlainLM
from llava.report.tokens import MOST_PIECES, read_dump
from llava.train.preflight.data import sample_text, show_samples
from tests.conftest import CAPTIONS


def test_what_preflight_writes_is_read_back(tokenizer, build):
    model = build()
    visual = list(model.config.visual_token_ids.values())
    form = PlainLM(tokenizer)
    long = " ".join(CAPTIONS) + " <b>&amp;"
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": long}]
    records = [Record("v<1>", turns, ("a.mp4",), (), None, {}, "data.json[0]"),
               Record("t", [{"from": "gpt", "value": CAPTIONS[0]}], (), (), None, {}, "data.json[1]")]  # fmt: skip
    dataset = LazySupervisedDataset(
        records, tokenizer, form.preprocess, 512, model.video_spec, model.processor_spec, text_format=form
    )
    _, page = show_samples(dataset, tokenizer, visual, 1)
    text, video = read_dump(page)
    assert (text.title, video.title) == ("text t", "video v<1>")
    for sample, index in ((video, 0), (text, 1)):
        shown = sample_text(records[index], *dataset.tokens(index), tokenizer, visual)
        whole = shown.plain.split("\n")[1]
        assert "".join(piece for piece, _ in sample.pieces) == whole, "also where a terminal would break the line"
        assert {state for _, state in sample.pieces} == {"predicted", "edge"} | (
            {"vision"} if sample is video else set()
        ) | ({"masked"} if sample is text else set())


def test_a_target_that_must_be_none_is_told_apart(tokenizer, build):
    model = build()
    visual = list(model.config.visual_token_ids.values())
    form = PlainLM(tokenizer)
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": CAPTIONS[0]}]

    def unmasked(*args, **kwargs):
        found = form.preprocess(*args, **kwargs)
        return {**found, "labels": [ids.clone() for ids in found["input_ids"]]}

    dataset = LazySupervisedDataset(
        [Record("v", turns, ("a.mp4",), (), None, {}, "data.json[0]")], tokenizer, unmasked, 512, model.video_spec,
        model.processor_spec, text_format=form,
    )  # fmt: skip
    (sample,) = read_dump(show_samples(dataset, tokenizer, visual, 1)[1])
    assert "wrong" in {state for _, state in sample.pieces}


@pytest.mark.parametrize("page", ["", "<html><body>no dump</body></html>", "<pre>", "<pre>only a title</pre>"])
def test_what_is_no_dump_is_no_sample(page):
    assert read_dump(page) == []


def test_a_large_dump_is_cut():
    line = "<span>a</span>" * 2000
    (sample,) = read_dump(f"<pre>title\n{chr(10).join([line] * 5)}</pre>")
    assert MOST_PIECES <= len(sample.pieces) < MOST_PIECES + 2000
