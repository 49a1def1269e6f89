"""What the page answers: learned, seen, wrong; and that what was not measured is never called fine."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llava.report.answers import TONES, did_it_learn, did_it_see, is_anything_wrong
from llava.report.floors import HELD_OUT, TRAINED, UNCHECKED, evaluated_on
from llava.report.read import read_run
from tests.report.made import (
    PASSED,
    alarm,
    caption,
    control_line,
    preflight,
    record,
    run_of,
    words,
    worth,
    write_run,
)

ON_NEW = {"measured_on": "evaluation clips"}
ON_TRAINED = {"measured_on": "training clips"}


def learned(
    losses: list[float], evaluations: list[float] | None = None, known: dict[str, Any] | None = None, **files: Any
) -> Any:
    """The answer for a run with these training losses, one every ten steps, and held-out losses."""
    log = [{"step": 10 * (i + 1), "loss": v, "caption_loss": v} for i, v in enumerate(losses)]
    log += [{"step": 10 * (i + 1), "eval_loss": v} for i, v in enumerate(evaluations or [])]
    known = worth(evaluation=2.5 if evaluations else None) if known is None else known
    files = {"controls": [control_line(60, (2, 1, 3)) | ON_NEW]} | files
    return did_it_learn(run_of(log, record=known, **files))


def checked(status: str) -> dict[str, Any]:
    """Pre-flight that looked whether evaluation clips were trained on."""
    return {"checks": [{"check": "held-out clips", "status": status}]}


FALLING = [6.0, 5.0, 4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("evaluations", "tone", "short"),
    [
        ([2.0, 1.5, 1.0], "good", "Yes"),
        ([2.0, 1.5, 1.52], "good", "Yes"),
        ([2.0, 1.5, 1.6], "warn", "Yes, then it overfitted"),
        ([4.0, 2.9, 2.7], "warn", "Hardly"),
        ([2.0, 2.7], "warn", "Hardly"),
        ([6.0, 4.0, 3.1], "bad", "No"),
        ([7.5], "bad", "No"),
        ([2.0, 3.1], "bad", "It overfitted"),
    ],
)
def test_learned_is_judged_on_held_out_clips_by_what_frequencies_and_guessing_cost(evaluations, tone, short):
    """The words have an entropy of 2.5 on held-out clips and of 3.0 in training."""
    answer = learned(FALLING, evaluations, preflight=preflight(6.9))
    assert (answer.tone, answer.short) == (tone, short)
    assert f"On held-out clips the loss is {evaluations[-1]:.3f}" in answer.text
    assert "cost 2.50 (unigram entropy), guessing 6.91 (ln V). Before the first step it was 6.90" in answer.text


def test_a_last_evaluation_that_is_not_finite_is_no_yes_by_an_earlier_one():
    answer = learned(FALLING, [1.5, math.nan])
    assert (answer.tone, answer.short) == ("bad", "It broke") and "before, it was 1.500" in answer.text


def test_captions_and_text_are_weighed_by_their_tokens():
    known = worth()
    known["data"]["eval"]["supervised"] = {"captions": words(2.0, 300), "text": words(6.0, 100)}
    known["data"]["train"]["supervised"] = {"captions": words(2.0, 300), "text": words(6.0, 100)}
    assert learned(FALLING, [2.9], known).short == "Yes"
    assert learned(FALLING, [3.1], known).short == "No"


@pytest.mark.parametrize(
    ("losses", "tone", "short", "text"),
    [
        (FALLING, "unmeasured", "Not measured on new clips", "fell to 1.000 nats per token, from 6.900"),
        ([2.0, 1.0, 0.5, 0.4], "unmeasured", "Not measured on new clips", "from 6.900 before the first step"),
        ([6.0, 5.0, 4.0, 3.2, 3.1, 3.0], "bad", "No", "at most how frequent each word is"),
        ([6.0, 7.0, 8.0, 9.0], "bad", "No", "rose to 8.500"),
        ([3.0, 2.0, 1.0, math.nan], "bad", "It broke", "not finite"),
        ([], "unmeasured", "Not measured", "No training loss was logged"),
    ],
)  # fmt: skip
def test_a_loss_on_training_clips_alone_is_never_a_yes(losses, tone, short, text):
    answer = learned(losses, preflight=preflight(6.9))
    assert (answer.tone, answer.short) == (tone, short) and text in answer.text
    if short.endswith("new clips"):
        assert "On its training clips" in answer.text and "learned by heart" in answer.text
        assert "3.00 (unigram entropy), guessing 6.91 (ln V)" in answer.text


def test_the_true_start_is_not_the_first_line_of_the_log():
    assert "from 2.000 in the first line of the log" in learned([2.0, 1.0]).text, "where pre-flight was off"
    assert "from 6.020 before the first step" in learned([2.0, 1.0], preflight=preflight(6.02)).text
    assert "The loss before the first step was not measured" in learned([2.0, 1.0], [1.0]).text


@pytest.mark.parametrize(
    "wrote", ["", "Un cane ggggg", "la la la la la palla", "un cane e un cane e un cane e un cane e"]
)
def test_six_clips_that_end_in_the_same_letter_do_not_read_yes(wrote):
    items = [caption(str(i), "", wrote) for i in range(6)]
    captions = {"captions": {"clips (training clips), true video": items, "clips, other video": items}}
    by_heart = learned(FALLING, captions=captions)
    assert (by_heart.tone, by_heart.short) == ("unmeasured", "Not measured on new clips")
    assert "6 of 6 captions are empty, or repeat a letter or words without end." in by_heart.text
    babbling = learned(FALLING, [1.0], captions=captions)
    assert (babbling.tone, babbling.short) == ("warn", "Not by its captions")
    some = {"captions": {"held, true video": [*items[:1], *([caption("a", "", "Una palla.")] * 9)]}}
    assert "1 of 10 captions are empty, or repeat" in learned(FALLING, [1.0], captions=some).text
    sound = {"captions": {"held, true video": [caption("a", "", "Una palla rossa. La palla va e va.")]}}
    assert learned(FALLING, [1.0], captions=sound).short == "Yes"
    loud = {"captions": {"held, true video": [{**caption("a", "", "gooooool"), "reference": "Goooooool!"}]}}
    assert learned(FALLING, [1.0], captions=loud).short == "Yes", "the reference has it too"


def test_a_run_of_earlier_commits_was_not_measured():
    answer = learned(FALLING, [1.0], record())
    assert (answer.tone, answer.short) == ("unmeasured", "Not measured") and "was not recorded" in answer.text
    answer = learned(FALLING, known=record())
    assert (answer.tone, answer.short) == ("unmeasured", "Not measured on new clips")
    assert "was not recorded" in answer.text


def test_evaluation_clips_that_were_trained_on_are_training_clips():
    answer = learned(FALLING, [1.0], controls=[control_line(60, (2, 1, 3)) | ON_TRAINED])
    assert (answer.tone, answer.short) == ("unmeasured", "Not measured on new clips")
    assert "The evaluation records were trained on too." in answer.text
    nobody_looked = learned(FALLING, [1.0], controls=None)
    assert (nobody_looked.tone, nobody_looked.short) == ("unmeasured", "Not checked")
    assert "On evaluation clips" in nobody_looked.text


@pytest.mark.parametrize(
    ("evaluation", "more", "found"),
    [
        ({"clips": 5}, {"controls": [ON_NEW], "preflight": checked("warning")}, HELD_OUT),
        ({"clips": 5}, {"controls": [ON_TRAINED]}, TRAINED),
        ({"clips": 5}, {"preflight": checked("ok")}, HELD_OUT),
        ({"clips": 5}, {"preflight": checked("warning")}, TRAINED),
        ({"clips": 5}, {}, UNCHECKED),
        ({"clips": 0, "records": 10, "repeated": 4}, {}, HELD_OUT),
        ({"clips": 0, "records": 10, "repeated": 5}, {}, TRAINED),
        ({"clips": 0, "records": 10}, {}, UNCHECKED),
    ],
)  # fmt: skip
def test_whether_evaluation_records_are_new(evaluation, more, found):
    assert evaluated_on(run_of([], record={"data": {"eval": evaluation}}, **more)) == found


def test_records_that_a_run_held_out_by_itself_are_new():
    known = {"split": {"held_out": 4}, "data": {"eval": {"clips": 0, "records": 10, "repeated": 9}}}
    assert evaluated_on(run_of([], record=known)) == HELD_OUT, "texts may repeat"
    assert evaluated_on(run_of([], record={"split": {"held_out": 4}, "data": {"eval": {"clips": 4}}})) == HELD_OUT
    assert evaluated_on(run_of([], record={"split": {"held_out": 0}, "data": {"eval": {"clips": 4}}})) == UNCHECKED


def test_text_alone_is_judged_on_texts():
    answer = learned(FALLING, known=worth(evaluation=None, vision_tower=None))
    assert answer.short == "Not measured on new texts" and "On its training texts" in answer.text
    assert "Only texts that were not trained on can tell" in answer.text


@pytest.mark.parametrize(
    ("interval", "tone", "text"),
    [
        ((2, 1, 3), "good", "excludes 0"),
        ((1, -1, 3), "warn", "includes 0"),
        ((-2, -3, -1), "bad", "clips and captions belong together"),
        ((math.nan, 1, 2), "bad", "not a finite number"),
    ],
)
def test_did_it_see_by_the_last_evaluation(interval, tone, text):
    answer = did_it_see(run_of(controls=[control_line(1, (9, 8, 10)), control_line(2, interval)]))
    assert answer.tone == tone and text in answer.text


@pytest.mark.parametrize(
    ("controls", "short", "text"),
    [
        (None, "Not measured", "--controls True"),
        ([control_line(9, (2, 1, 3)) | ON_TRAINED], "Not measured on new clips", "--eval_data_path"),
        ([control_line(9, (2, None, None)) | {"clips": 1}], "Not measured", "One clip alone"),
    ],
)
def test_sight_that_was_not_measured_on_new_clips_has_a_look_of_its_own(controls, short, text):
    answer = did_it_see(run_of([], controls=controls))
    assert (answer.tone, answer.short) == ("unmeasured", short) and text in answer.text
    assert answer.tone in TONES


def test_a_small_gain_is_not_written_as_none():
    text = did_it_see(run_of(controls=[control_line(2, (0.004, 0.003, 0.005))])).text
    assert "costs 0.0040 nats more" in text and "0.0040 [0.0030, 0.0050] nats per caption" in text


@pytest.mark.parametrize("clips", [2, 5, 6])
@pytest.mark.parametrize("interval", [(0.004, 0.003, 0.005), (1, -1, 3), (-2, -3, -1)])
def test_sight_of_fewer_than_six_clips_is_not_measured(clips, interval):
    """Of a run that sees nothing both of two gains are above 0 every fourth time."""
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    line = control_line(9, interval) | {"clips": clips}
    trained = did_it_see(
        run_of(ended, preflight=PASSED, record=record(), controls=[line | {"measured_on": "training clips"}])
    )
    run = run_of(ended, preflight=PASSED, record=record(), controls=[line | ON_NEW])
    answer, wrong = did_it_see(run), is_anything_wrong(run)
    few = f"{clips} clips are too few to tell: by chance each of them is helped by its own video once in {2**clips}"
    assert (answer.short == "Not measured") == (few in answer.text) == (clips < 6) == (few in trained.text)
    assert (f"Sight was not measured: {few}" in wrong.text) == (clips < 6)
    assert clips == 6 or wrong.short == "Not all was measured"


@pytest.mark.parametrize(
    ("losses", "kinds", "tone"),
    [
        ([2.0, 1.0, 0.9, 0.8], ["spike", "spike"], "warn"),
        ([2.0, 1.0, 3.0, 2.5], ["spike", "spike"], "bad"),
        ([2.0, 1.0, 0.9, 0.8], ["spike", "zero gradient"], "bad"),
        ([2.0], ["spike"], "bad"),
    ],
)
def test_spikes_that_the_loss_came_back_from_are_not_wrong(losses, kinds, tone):
    log = [{"step": 100 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    alarms = [{"step": 150 + 100 * i, "kind": kind, "message": "", "remedy": ""} for i, kind in enumerate(kinds)]
    answer = is_anything_wrong(
        run_of([*log, {"step": 400, "train_runtime": 1.0}], preflight=PASSED, alarms=alarms, record=record())
    )
    assert answer.tone == tone
    assert ("after which the loss came back" in answer.text) == (tone == "warn")


def test_is_anything_wrong():
    ended = [{"step": 1, "loss": 1.0, "grad_norm": math.inf}, {"step": 1, "train_runtime": 1.0}]
    sees, known = [control_line(1, (2, 1, 3))], {"preflight": PASSED, "record": record()}
    assert is_anything_wrong(run_of(ended, controls=sees, **known | {"record": record(fp16=True)})).tone == "good"
    assert "gradient norm was not finite once" in is_anything_wrong(run_of(ended, controls=sees, **known)).text
    assert is_anything_wrong(run_of(ended[1:], preflight=PASSED, alarms=[alarm()])).tone == "bad"
    faulty = {"flags": {"experiment_faults": "unmasked_labels"}}
    broken = is_anything_wrong(run_of(ended[1:], preflight=PASSED, record=faulty))
    assert broken.tone == "bad" and "broken on purpose (unmasked_labels)" in broken.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"preflight": None}, "There is no pre-flight check."),
        ({"preflight": {"mode": "off", "checks": []}}, "Pre-flight was not run (--preflight off)."),
        ({"record": record(run_monitor=False)}, "The monitor was off"),
        ({"record": {}}, "not whether the monitor was on"),
        ({"controls": None}, "Sight was not measured."),
        ({"controls": [control_line(9, (2, 1, 3)) | ON_TRAINED]}, "cannot tell right pairs from wrong ones"),
    ],
)
def test_what_nobody_looked_at_is_no_reason_for_nothing_found(change, text):
    """Wrong pairs of clip and caption can be learned by heart: a gain on training clips does not make a run sound."""
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    sound = {"preflight": PASSED, "record": record(), "controls": [control_line(9, (2, 1, 3)) | ON_NEW]}
    assert is_anything_wrong(run_of(ended, **sound)).short == "Nothing found"
    answer = is_anything_wrong(run_of(ended, **sound | change))
    assert (answer.tone, answer.short) == ("unmeasured", "Not all was measured") and text in answer.text
    worse = is_anything_wrong(run_of(ended, **sound | change, alarms=[alarm()]))
    assert worse.tone == "bad", "what was found counts for more"


def test_a_video_that_does_not_help_is_looked_at_again():
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    blind = run_of(ended, preflight=PASSED, record=record(), controls=[control_line(9, (1, -1, 3)) | ON_NEW])
    answer = is_anything_wrong(blind)
    assert answer.short == "Look again" and "Nothing shows that the video helps." in answer.text
    text = run_of(ended, preflight=PASSED, record=record(vision_tower=None))
    assert is_anything_wrong(text).short == "Nothing found", "nothing is to be seen"


def test_a_run_that_was_shown_other_clips_has_nothing_to_answer_for():
    arm = {"arm": {"other_clips": {"seed": 1, "clips": 9, "digest": "a"}, "blind": None}}
    run = run_of([], preflight=PASSED, record=record() | arm, controls=[control_line(9, (1, -1, 3)) | ON_NEW])
    answer = did_it_see(run)
    assert (answer.tone, answer.short) == ("plain", "Shown other clips") and "on purpose" in answer.text
    assert "Nothing shows that the video helps." not in is_anything_wrong(run).text


def test_a_warning_of_preflight_is_looked_at_again():
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    checks = {"passed": True, "checks": [{"check": "captions", "status": "warning"}, {"check": "a", "status": "ok"}]}
    answer = is_anything_wrong(run_of(ended, preflight=checks, record=record(), controls=[control_line(9, (2, 1, 3))]))
    assert answer.short == "Look again" and "Pre-flight passed with 1 warning: captions." in answer.text


def test_pre_flight_that_was_off_never_reads_as_passed(tmp_path):
    run = write_run(tmp_path / "run", llava_run=record(), preflight={"mode": "off", "checks": []})
    answer = is_anything_wrong(read_run(run))
    assert "Pre-flight was not run (--preflight off)." in answer.text and "passed" not in answer.text
