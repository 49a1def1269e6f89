"""Checks of pre-flight that need records and a tokenizer alone; `tests/train/preflight/test_run.py` has whole runs."""

from __future__ import annotations

from tokenizers import pre_tokenizers

from llava.data.dataset import LazySupervisedDataset
from llava.data.prompt import preprocess_plain_lm
from llava.data.records import Record
from llava.train.preflight.data import Finding, check_remarks, check_text_form
from tests.conftest import SPEC, record


def records(*captions: str, video: str | None = "a.mp4", prompt: str = "") -> list[Record]:
    rows = [record(f"r{i}", caption, video, prompt) for i, caption in enumerate(captions)]
    files = (video,) if video else ()
    return [Record(r["id"], r["conversations"], files, (), None, {}, f"d[{i}]") for i, r in enumerate(rows)]


def finding(tokenizer, model, chosen: list[Record], preprocess=preprocess_plain_lm) -> Finding | None:
    dataset = LazySupervisedDataset(chosen, tokenizer, preprocess, 512, SPEC)
    return check_text_form(dataset, tokenizer, list(model.config.visual_token_ids.values()))


def test_the_same_words_with_vision_and_without_pass(tokenizer, build):
    model = build(vision=False)
    chosen = records("Un gatto.\nDorme.", "Un cane.", prompt="\nDescrivi.")
    assert finding(tokenizer, model, chosen).status == "ok"
    assert finding(tokenizer, model, records("Un gatto.", video=None)) is None


def test_other_words_fail_and_another_first_word_is_a_warning(tokenizer, build):
    model = build(vision=False)

    def collapse(sources, tokenizer, has_image=False):
        turns = [{**t, "value": " ".join(t["value"].split()) if has_image else t["value"]} for t in sources[0]]
        return preprocess_plain_lm([turns], tokenizer, has_image)

    failed = finding(tokenizer, model, records("Un gatto.\nDorme.", "Un cane."), collapse)
    assert failed.status == "FAIL" and "1 of 2 records" in failed.finding and "d[0] id 'r0'" in failed.finding
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    warned = finding(tokenizer, model, records("Sìsìsì: un gatto.", "Ùùù."))
    assert (
        warned.status == "warning" and "at their first word" in warned.finding and "add_prefix_space" in warned.remedy
    )


def test_remarks_are_one_warning():
    (first, second) = records("nan", "Un gatto.")
    assert check_remarks([second]) == []
    doubtful = Record(
        "a", first.conversations, (), (), None, {}, "d[0]", (("doubtful caption", "turn 1: it is 'nan'"),)
    )
    (found,) = check_remarks([doubtful, second])
    assert found.status == "warning" and found.finding == "1 doubtful caption (first: d[0] id 'a': turn 1: it is 'nan')"


def test_a_finding_is_one_line():
    assert Finding("x", "ok", "a\nb\x1b[2J\udce8").finding == "a\\nb\\x1b[2J\\udce8"
