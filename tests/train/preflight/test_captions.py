"""What is said of captions: faulty ones are named, and good data of several kinds stays silent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava.data.prompt import plain_lm_sample
from llava.data.records import Record, load_records
from llava.data.target_words import count_targets
from llava.data.text_format import PlainLM
from llava.train.preflight.captions import (
    captions_of,
    check_captions,
    check_encoding,
    check_evaluation,
    check_form,
    check_leaks,
    check_names,
    check_tokenizer,
    check_variety,
)
from tests.conftest import CAPTIONS, EOS, REAL_CLIPS

ITALIAN = REAL_CLIPS.parent / "italian" / "msr_vtt_it.json.gz"


def records(texts, prompt="<video>", clip=None):
    return [
        Record(f"r{i}", [{"from": "human", "value": prompt if isinstance(prompt, str) else prompt[i]},
                         {"from": "gpt", "value": text}], (clip or f"clip{i}.mp4",), (), None, {}, f"data.json[{i}]")
        for i, text in enumerate(texts)
    ]  # fmt: skip


def tokenizer_of(texts, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)
    made.add_special_tokens({"additional_special_tokens": ["<vid_start>", "<im_start>"]})
    return made


MANY = [f"Il numero {i} sta sopra il numero {i + 1}." for i in range(40)]


def test_captions_that_are_all_the_same_stop_the_run():
    same = check_variety(captions_of(records(["Un video."] * 40)))
    assert same.status == "FAIL" and "1 of 40 are distinct" in same.finding
    assert check_variety(captions_of(records(["Un video."] * 4))).status == "ok"
    half = check_variety(captions_of(records(["Un video."] * 20 + MANY[:20])))
    assert half.status == "warning" and "50.0% of them ('Un video.')" in half.finding
    assert check_variety(captions_of(records(MANY))).status == "ok"


@pytest.mark.parametrize(
    "text",
    ["PerchÃ© no", "Perch\ufffd no", "Tom &amp; Jerry", "una cittÃ\u00a0", "â€œCiaoâ€", "<p>Un gatto</p>",
     "Un<br/>gatto", "Perch\\u00e9 no", "Un gatto\\nnero", "Un gatto.\\n"],
)  # fmt: skip
def test_mojibake_html_and_escapes_are_a_warning(text):
    found = check_encoding(captions_of(records([*MANY, text])))
    assert found.status == "warning" and "1 of 41" in found.finding and "'r40'" in found.finding


def test_accents_are_not_mojibake():
    texts = ["Perché è così, città!", "«Ciao» – disse", "NÃO", "R&B e AT&T", "Â l'aube", "a < b > c", "C:\\new", "<3"]
    assert check_encoding(captions_of(records(texts))).status == "ok"


def test_a_caption_in_its_prompt_is_a_warning():
    asked = records(MANY, [f"<video> Descrivi: {text}" for text in MANY])
    assert check_leaks(captions_of(asked)).status == "warning"
    assert check_leaks(captions_of(records(MANY, "Descrivi <video>"))).status == "ok"
    assert check_leaks(captions_of(records(["Sì"] * 30, "<video> Sì o no?"))).status == "ok", "a choice of words"
    assert check_leaks(captions_of(records(MANY))) is None


def test_captions_that_are_ids_or_file_names_are_a_warning():
    """As when the wrong column of a table was written."""
    for texts in (CAPTIONS, ["un clip"] * 6):
        assert check_names(captions_of(records(texts))) is None
    for name in ("r{}", "clip{}.mp4", "CLIP{}"):
        finding = check_names(captions_of(records([name.format(i) for i in range(24)])))
        assert finding.status == "warning" and "24 of 24 are the id or the file name" in finding.finding
    once = records([*(f"Frase {i}." for i in range(39)), "clip39"])
    assert check_names(captions_of(once)).status == "ok"


def test_a_tokenizer_of_another_language_is_a_warning():
    english = [p.read_text(encoding="utf-8") for p in Path(__file__).parents[3].rglob("docs/*.md")]
    captions = captions_of(records(CAPTIONS * 4))
    found = check_tokenizer(captions, tokenizer_of(english, 1200), {"captions": 3.6})
    assert found.status == "warning" and "tokens a word" in found.finding
    assert "captions 3.60 nats" in found.finding
    assert check_tokenizer(captions, tokenizer_of(CAPTIONS * 4, 1200), {}).status == "ok"


def test_evaluation_captions_of_another_kind_are_a_warning():
    train = captions_of(records([f"{a} {b}" for a in CAPTIONS for b in CAPTIONS] * 10))
    same = captions_of(records([f"{b} {a}" for a in CAPTIONS for b in CAPTIONS]))
    other = captions_of(records([f"The small black cat number {i} sleeps on a green sofa" for i in range(30)]))
    assert check_evaluation(train, same).status == "ok"
    found = check_evaluation(train, other)
    assert found.status == "warning" and "90.9% of the words of 30 evaluation captions" in found.finding
    assert check_evaluation(train, captions_of(records(["Un gatto."] * 30))).status == "warning", "its length"


def test_targets_are_counted_as_they_are_trained_on(tokenizer, build):
    build()
    data = [*records(CAPTIONS, "Descrivi <video> ora"), *records(CAPTIONS)]
    text = [Record("t", r.conversations[1:], (), (), None, {}, "") for r in data[:6]]
    counts = count_targets([*data, *text], tokenizer)
    for words, some in (("captions", data), ("text", text)):
        expected = []
        for record in some:
            turns = PlainLM(tokenizer).turns(record.conversations)
            _, labels = plain_lm_sample(turns, tokenizer, words == "captions")
            expected += [label for label in labels.tolist()[1:] if label != -100]
        assert sorted(counts[words].targets.elements()) == sorted(expected)


@pytest.mark.skipif(not ITALIAN.is_file(), reason=f"no Italian captions at {ITALIAN}")
def test_real_italian_captions_are_silent():
    data = json.loads(gzip.decompress(ITALIAN.read_bytes()))
    split = {video["video_id"]: video["split"] for video in data["videos"]}
    sets: dict[str, list[Record]] = {}
    for s in data["sentences"][::10]:
        turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": s["caption"]}]
        record = Record(str(s["sen_id"]), turns, (f"{s['video_id']}.mp4",), (), None, {}, "")
        sets.setdefault(split[s["video_id"]], []).append(record)
    texts = [r.conversations[1]["value"] for r in sets["train"]]
    findings = check_captions(sets["train"], sets["test"], tokenizer_of(texts[:5000], 2000))
    assert [f for f in findings if f.status != "ok"] == [] and len(findings) == 5


def test_real_clips_json_is_silent(real_clips):
    found, _ = load_records(str(real_clips / "clips_vi_it.json"), None, str(real_clips))
    texts = [turn["value"] for r in found for turn in r.conversations]
    assert [f for f in check_captions(found, None, tokenizer_of(texts, 1000)) if f.status != "ok"] == []


def form(texts):
    return check_form(captions_of(records(texts)))


def test_addresses_and_json_are_no_captions():
    found = form([*CAPTIONS, "https://example.org/clip?id=7"])
    assert found.status == "warning" and "1 of 7 are an address" in found.finding and "'r6'" in found.finding
    found = form([*CAPTIONS, '{"caption": "Un gatto."}', '["Un cane."]'])
    assert found.status == "warning" and "2 of 8 are JSON and no sentence" in found.finding
    spoken = ["Il sito www.rai.it si apre sullo schermo.", "[musica] Un coro canta.", "{ }{", "[1"]
    assert form([*CAPTIONS, *spoken]).status == "ok"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: f"Caption: {text}", "begin with 'Caption:'"),
        (lambda text: f"Il video mostra {text}", "begin with 'Il video mostra'"),
        (lambda text: f"{text} Fine del video.", "end with 'Fine del video.'"),
    ],
)
def test_words_that_all_captions_share(change, words):
    texts = [f"{CAPTIONS[i % 6][:-1]} numero {i}" for i in range(40)]
    assert form(texts).status == form([f"Un {text}" for text in texts]).status == "ok"
    assert form([*map(change, texts[:39]), texts[39]]).finding.endswith(words)
    assert form([*map(change, texts)][:10]).status == "ok"  # Too few to judge.
