"""What the report says first: did the run learn, did it see, is anything wrong; or that it was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.eval.controls import TRAINING
from llava.eval.statistics import LEAST_CLUSTERS
from llava.report.floors import (
    HELD_OUT,
    TRAINED,
    babbling,
    chance,
    evaluated_on,
    last_of,
    shown_others,
    start_loss,
    text_alone,
    training_losses,
    word_entropy,
)
from llava.report.plots import format_interval, gain_of, number
from llava.report.read import MAKE, Run

TONES = ("good", "warn", "bad", "plain", "unmeasured")
NOISE = 0.97
"""A loss above this share of the entropy is not below it, on the samples of a few steps."""
OVERFITTED = 1.02
"""A loss above this many times the lowest one has risen."""


@dataclass(frozen=True)
class Answer:
    """An answer of the page's top: `tone` is one of `TONES`; `place` is the section that has more."""

    question: str
    tone: str
    short: str
    text: str
    place: str


def _learned(tone: str, short: str, *text: str) -> Answer:
    return Answer("Did it learn?", tone, short, " ".join(filter(None, text)), "curves")


def did_it_learn(run: Run) -> Answer:
    """From the loss on held-out records beside that of guessing and of the frequencies of the words; training losses
    alone show that a run did not learn, and never that it did.
    """
    every = [v for _, v in run.values("loss")]
    what, losses = training_losses(run)
    if every and not math.isfinite(every[-1]):
        before = f"; before, it was {losses[-1]:.3f} nats per token" if losses else ""
        return _learned("bad", "It broke", f"The last training loss is not finite{before}.")
    evaluated = run.values("eval_loss")
    evaluations = [(s, v) for s, v in evaluated if math.isfinite(v)]
    if evaluated and not math.isfinite(evaluated[-1][1]):
        before = f"; before, it was {evaluations[-1][1]:.3f} nats per token" if evaluations else ""
        return _learned("bad", "It broke", f"The last evaluation loss is not finite{before}.")
    place = evaluated_on(run) if evaluations else None
    if place not in (None, TRAINED):
        return _learned_on_new(run, evaluations, place == HELD_OUT)
    if not losses:
        return _learned("unmeasured", "Not measured", "No training loss was logged.")
    kind = None if what == "samples" else what
    entropy, guess, start, last = word_entropy(run, "train", kind), chance(run), start_loss(run), last_of(losses)
    first = start if math.isfinite(start) else losses[0]
    moved = "rose" if last > first else "fell"
    since = "before the first step" if math.isfinite(start) else "in the first line of the log"
    of_what = "texts" if text_alone(run) else "clips"
    told = f"On its training {of_what} the loss {moved} to {last:.3f} nats per token, from {first:.3f} {since}."
    too = "The evaluation records were trained on too." if place == TRAINED else ""
    floors = _floors(entropy, guess)
    if last > 1.05 * first:
        return _learned("bad", "No", told, floors, too)
    if last >= NOISE * entropy:
        return _learned("bad", "No", told, floors, "It knows at most how frequent each word is.", too)
    by_heart = (
        f"Words that were learned by heart look the same there. Only {of_what} that were not trained on can tell "
        "(--val_fraction, --eval_data_path)."
    )
    return _learned("unmeasured", f"Not measured on new {of_what}", told, floors, too, by_heart, _babble(run))


def _learned_on_new(run: Run, evaluations: list[tuple[float, float]], checked: bool) -> Answer:
    """From the losses on records that were not trained on (`checked`), or of which nobody knows."""
    of_what = "texts" if text_alone(run) else "clips"
    step, best = min(evaluations, key=lambda point: point[1])
    last, guess, start = evaluations[-1][1], chance(run), start_loss(run)
    own, trained = word_entropy(run, "eval"), word_entropy(run, "train")
    told = f"On {'held-out' if checked else 'evaluation'} {of_what} the loss is {last:.3f} nats per token."
    began = (
        f"Before the first step it was {start:.2f} (on training {of_what})."
        if math.isfinite(start)
        else "The loss before the first step was not measured."
    )
    rose = (
        f"It was lowest at step {step:,.0f} ({best:.3f}) and has risen since."
        if last > OVERFITTED * best
        else ""
    )  # fmt: skip
    said = (told, _floors(own, guess), began, rose)
    if not math.isfinite(own):
        return _learned("unmeasured", "Not measured", *said)
    if not checked:
        nobody = f"Nothing checked that these {of_what} were kept out of training (--preflight quick does)."
        return _learned("unmeasured", "Not checked", *said, nobody)
    if last >= max(own, trained):
        if best < own:
            return _learned("bad", "It overfitted", *said, "It is no longer better than the frequencies of the words.")
        return _learned("bad", "No", *said, "It knows at most how frequent each word is.")
    if last >= own:
        between = f"The words of the training data have an entropy of {trained:.2f}: this is too close to tell."
        return _learned("warn", "Hardly", *said, between)
    loops, captions = babbling(run)
    if captions and 3 * loops >= captions:
        return _learned("warn", "Not by its captions", *said, _babble(run))
    if rose:
        return _learned("warn", "Yes, then it overfitted", *said)
    return _learned("good", "Yes", *said, _babble(run))


def _floors(entropy: float, guess: float) -> str:
    if not math.isfinite(entropy):
        return (
            "What the frequencies of the words alone would give was not recorded, so nothing says whether that is low."
        )
    guessing = f", guessing {guess:.2f} (ln V)" if math.isfinite(guess) else ""
    return f"The frequencies of its words alone cost {entropy:.2f} (unigram entropy){guessing}."


def _babble(run: Run) -> str:
    loops, captions = babbling(run)
    if not loops:
        return ""
    return f"{loops} of {captions} captions are empty, or repeat a letter or words without end."


ONLY_TRAINED = (
    "This was measured on training clips alone, which cannot tell right pairs of clip and caption from wrong ones: "
    "both can be learned by heart. Only clips that were not trained on can (--eval_data_path)."
)


SHOWN_OTHERS = "Training showed each record another clip on purpose, so that there was nothing to learn from it."


def did_it_see(run: Run) -> Answer:
    """From the interval of the visual information gain in the last line of controls, and what it was measured on."""

    def answer(tone: str, short: str, text: str) -> Answer:
        return Answer("Did it see?", tone, short, text, "controls")

    if text_alone(run):
        return answer("plain", "Text only", "This run trains on text alone; there is nothing to see.")
    interval = gain_of(run.controls[-1], "video") if run.controls else None
    if interval is None:
        return answer("unmeasured", "Not measured", f"No controls.jsonl: {MAKE['controls.jsonl']}.")
    mean, low, high = interval
    line = run.controls[-1] if run.controls else {}
    if math.isfinite(mean) and math.isnan(low) and line.get("clips") == 1:
        return answer("unmeasured", "Not measured", "One clip alone has no interval: controls need several clips.")
    if not all(map(math.isfinite, interval)):
        return answer("bad", "It broke", "The visual information gain is not a finite number.")
    trained = line.get("measured_on") == TRAINING
    decimals = 2 if abs(mean) >= 0.1 else 4  # Of an interval that excludes 0 no end may read 0.00.
    text = f"{SHOWN_OTHERS} " if shown_others(run) else ""
    text += (
        f"With another clip's video a {'training caption' if trained else 'caption'} costs "
        f"{abs(mean):.{decimals}f} nats {'more' if mean >= 0 else 'less'}. Visual information gain "
        f"{format_interval(interval, decimals)} nats per caption (95\u00a0%); the interval "
        f"{'includes' if low <= 0 <= high else 'excludes'} 0."
    )
    less = line.get("help_less")
    if less and less["less"]:
        text += (
            f" {less['less']} of {less['clips']} clips help their own captions less than another clip does; they are "
            "listed under controls."
        )
    if trained:
        text += f" {ONLY_TRAINED}"
    if shown_others(run):
        return answer("plain", "Shown other clips", text)
    if few := too_few(line):
        return answer("unmeasured", "Not measured", f"{text} {few}")
    if high < 0:
        text += " Its own video makes a caption less likely: check that clips and captions belong together."
        return answer("bad", "No, the reverse", text)
    if low > 0 and trained:
        return answer("unmeasured", "Not measured on new clips", text)
    if low > 0:
        return answer("good", "Yes", text)
    return answer("warn", "Not shown", text)


def too_few(line: Mapping[str, Any]) -> str:
    """Why a line of controls cannot tell a gain from chance, where it is of fewer than `LEAST_CLUSTERS` clips."""
    clips = line.get("clips")
    if not isinstance(clips, int) or clips >= LEAST_CLUSTERS:
        return ""
    return (
        f"{clips} clips are too few to tell: by chance each of them is helped by its own video once in {2**clips} "
        f"runs, and {LEAST_CLUSTERS} are needed (--val_fraction, --eval_data_path)."
    )


def _unproven_sight(run: Run) -> tuple[str, str]:
    """What leaves open whether the run sees, as (not measured, looked at and not shown); both empty for a run on text
    alone or on other clips, and where clips show it.
    """
    if text_alone(run) or shown_others(run):
        return "", ""
    interval = gain_of(run.controls[-1], "video") if run.controls else None
    if interval is None or not all(map(math.isfinite, interval)):
        return "Sight was not measured.", ""
    if run.controls and run.controls[-1].get("measured_on") == TRAINING:
        return "Sight was measured on training clips alone, which cannot tell right pairs from wrong ones.", ""
    if few := too_few(run.controls[-1] if run.controls else {}):
        return f"Sight was not measured: {few}", ""
    return "", "" if interval[1] > 0 else "Nothing shows that the video helps."


def _recovered(run: Run) -> bool:
    """Whether all alarms are spikes, and the last loss is below every one that was logged before the last of them."""
    losses = run.values("loss")
    alarms = run.alarms or []
    if len(losses) < 2 or any(a.get("kind") != "spike" for a in alarms):
        return False
    last = max(number(a.get("step")) for a in alarms)
    before = [value for step, value in losses if step < last] or [losses[0][1]]
    return losses[-1][1] < min(before)


def is_anything_wrong(run: Run) -> Answer:
    """Alarms, pre-flight, values that are not finite, whether sight was shown, and whether training came to its end.

    What nobody looked at is no reason for "nothing found".
    """
    bad, warn, unmeasured, fine = [], [], [], []
    if run.preflight is None:
        unmeasured.append("There is no pre-flight check.")
    elif run.preflight.get("mode") == "off":
        unmeasured.append("Pre-flight was not run (--preflight off).")
    elif run.preflight.get("passed"):
        warned = [str(c.get("check")) for c in run.preflight.get("checks", []) if c.get("status") == "warning"]
        if warned:
            warn.append(f"Pre-flight passed with {len(warned)} warning{'s' * (len(warned) > 1)}: {', '.join(warned)}.")
        else:
            fine.append("Pre-flight passed.")
    else:
        failed = [str(c.get("check")) for c in run.preflight.get("checks", []) if c.get("status") == "FAIL"]
        bad.append(f"Pre-flight failed{': ' if failed else ''}{', '.join(failed)}.")
    if run.alarms and _recovered(run):
        spikes = f"{len(run.alarms)} spike{'s' * (len(run.alarms) > 1)}"
        warn.append(f"{spikes} of loss or gradient, after which the loss came back and fell further.")
    elif run.alarms:
        kinds = ", ".join(dict.fromkeys(str(a.get("kind")) for a in run.alarms))
        bad.append(f"{len(run.alarms)} alarm{'s' if len(run.alarms) > 1 else ''} ({kinds}).")
    elif run.flags.get("run_monitor") is False:
        unmeasured.append("The monitor was off, so nothing could sound an alarm.")
    elif not run.flags:
        unmeasured.append("No alarm is on record, and not whether the monitor was on.")
    else:
        fine.append("No alarm on record.")
    if run.flags.get("experiment_faults"):
        bad.append(f"It was broken on purpose ({run.flags['experiment_faults']}).")
    for key, what in {"loss": "loss", "eval_loss": "evaluation loss", "grad_norm": "gradient norm"}.items():
        broken = [step for step, value in run.values(key) if not math.isfinite(value)]
        # The loss scaler of fp16 skips steps whose gradients overflow.
        if broken and not (key == "grad_norm" and run.flags.get("fp16")):
            times = "once" if len(broken) == 1 else f"{len(broken)} times"
            bad.append(f"The {what} was not finite {times}, first at step {broken[0]:,.0f}.")
    for listed, sentence in zip((unmeasured, warn), _unproven_sight(run), strict=True):
        listed += [sentence] if sentence else []
    if run.state is None:
        unmeasured.append("There is no trainer_state.json, so there are no curves.")
    elif not any("train_runtime" in e for e in run.log):
        at = f"step {run.state.get('global_step', '?')} of {run.state.get('max_steps', '?')}"
        warn.append(f"Training has not come to its end: {at}.")
    text = " ".join(bad + warn + unmeasured + fine)
    tone, short = (
        ("bad", "Yes")
        if bad
        else ("warn", "Look again")
        if warn
        else ("unmeasured", "Not all was measured")
        if unmeasured
        else ("good", "Nothing found")
    )
    return Answer("Is anything wrong?", tone, short, text, "checks")
