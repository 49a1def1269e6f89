"""The model card says what a run's files say, leaves the rest open, and stays as somebody edited it."""

from __future__ import annotations

from llava.report.card import CARD, MARK, write_card
from tests.report.made import control_line, record, write_run

DATA = {
    "train": {"clips": 9, "sources": [{"name": "a|b.json", "records": 4000, "words": 51234}]},
    "eval": None,
}


def test_it_says_what_the_files_say(tmp_path):
    run = write_run(
        tmp_path / "run",
        llava_run={
            **record(learning_rate=1e-3, text_only=False),
            "data": DATA,
            "batch": {"global": 16},
            "parameters": [{"trainable": 1000, "frozen": 24}, {"trainable": 0, "frozen": 10_000}],
            "versions": {"torch": "2.8.0", "frames": 2, "decoders": {"av": "18.1.0"}},
        },
        trainer_state={"global_step": 300, "log_history": []},
        controls=[{**control_line(300, (4.25, 4.0, 4.5)), "measured_on": "evaluation clips"}],
        captions={"scores": {"held out, true video": {"all": 0.85}, "held out, other video": {"all": 0.01}},
                  "captions": {}},
    )  # fmt: skip
    assert write_card(run) == run / CARD
    text = (run / CARD).read_text()
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text")
    assert "11,024 weights, 1,000 of them trained here, 300 steps of 16 samples, seed 42" in text
    assert "| train | a\\|b.json | 4,000 | 51,234 | 9 |" in text
    assert "| another clip | 0.700 | 14.25 |" in text and "that it was not trained on" in text
    assert "| held out, other video | 0.01 |" in text
    assert "**Did it learn?** Not measured. " in text and "**Did it see?** Yes. " in text and "[4.00, 4.50]" in text
    assert "`--learning_rate` | 0.001" in text and "| av | 18.1.0 |" in text
    assert "AutoProcessor" in text and "To be filled in" in text


def test_text_alone_is_loaded_by_its_tokenizer_and_not_called_seeing(tmp_path):
    run = write_run(tmp_path / "run", llava_run=record(text_only=True))
    write_card(run)
    text = (run / CARD).read_text()
    assert "text-generation" in text and "AutoTokenizer" in text and "AutoProcessor" not in text
    assert "**Did it learn?** Not measured." in text and "Did it see?" not in text
    assert text.count("from_pretrained(DIR, trust_remote_code=True)") == 2, "transformers asks for it twice"
    write_card(write_run(tmp_path / "run", llava_run=record(text_only=False, vision_tower=None)))
    assert "AutoProcessor" not in (run / CARD).read_text(), "a run without a tower, by other flags"


def test_a_run_that_learned_nothing_says_so_beside_its_floors(tmp_path):
    counted = {"captions": {"tokens": 100, "entropy": 4.0}}
    data = {part: {"clips": 9, "records": 9, "supervised": counted, "sources": []} for part in ("train", "eval")}
    log = [{"step": step, "loss": 5.5, "eval_loss": 5.4} for step in (4, 8)]
    run = write_run(
        tmp_path / "run",
        llava_run={
            **record(load_best_model_at_end=True, metric_for_best_model="eval_loss", text_only=True),
            "data": data, "split": {"held_out": 3}, "tokenizer": {"outputs": 1000},
        },
        trainer_state={"global_step": 8, "best_global_step": 4, "log_history": log},
    )  # fmt: skip
    write_card(run)
    text = (run / CARD).read_text()
    assert "**Did it learn?** No. On held-out texts the loss is 5.400 nats per token." in text
    assert "4.00 (unigram entropy), guessing 6.91 (ln V)" in text
    assert "8 steps of" in text and "Its weights are those of step 4, the best by eval_loss" in text


def test_an_edited_card_stays(tmp_path):
    run = write_run(tmp_path / "run", llava_run=record())
    write_card(run)
    assert write_card(run) is not None, "its own is written anew"
    edited = (run / CARD).read_text().replace(MARK, "") + "CC BY 4.0\n"
    (run / CARD).write_text(edited)
    assert write_card(run) is None and (run / CARD).read_text() == edited
