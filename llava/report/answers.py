"""What the report says first: did the run learn, did it see, is anything wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from llava.eval.controls import TRAINING
from llava.report.plots import format_interval, gain_of, number
from llava.report.read import MAKE, Run


@dataclass(frozen=True)
class Answer:
    """An answer of the page's top: `tone` is good, warn, bad or plain."""

    question: str
    tone: str
    short: str
    text: str


def did_it_learn(run: Run) -> Answer:
    """From the first and last losses (of captions, where there are any) and from the lowest evaluation loss."""
    question = "Did it learn?"
    losses = [v for _, v in run.values("loss")]
    captions = [v for _, v in run.values("caption_loss") if math.isfinite(v)]
    finite = captions if len(captions) > 1 else [v for v in losses if math.isfinite(v)]
    what = "caption loss" if finite is captions else "training loss"
    if len(finite) < 2:
        return Answer(question, "plain", "Unknown", "Fewer than two training losses were logged.")
    ends = min(3, len(finite) // 2)
    first, last = median(finite[:ends]), median(finite[-ends:])
    change = f"from {first:.3f} to {last:.3f} nats per token"
    if losses and not math.isfinite(losses[-1]):
        return Answer(question, "bad", "It broke", f"The last training loss is not finite; before, it went {change}.")
    if last > 1.05 * first:
        return Answer(question, "bad", "No", f"The {what} rose {change}.")
    if last > 0.95 * first:
        return Answer(question, "warn", "Hardly", f"The {what} went {change}.")
    text = f"The {what} fell {change}."
    evaluations = [(s, v) for s, v in run.values("eval_loss") if math.isfinite(v)]
    if evaluations:
        step, best = min(evaluations, key=lambda point: point[1])
        final = evaluations[-1][1]
        if final > 1.02 * best:
            text += f" The evaluation loss was lowest at step {step:,.0f} ({best:.3f}) and has risen to {final:.3f}."
            return Answer(question, "warn", "Yes, then it overfitted", text)
        text += f" The evaluation loss ends at {final:.3f}."
    return Answer(question, "good", "Yes", text)


def _text_only(run: Run) -> bool:
    return "vision_tower" in run.flags and run.flags["vision_tower"] is None


ONLY_TRAINED = (
    "This was measured on training clips alone, which cannot tell right pairs of clip and caption from wrong ones: "
    "both can be learned by heart. Only clips that were not trained on can (--eval_data_path)."
)


def did_it_see(run: Run) -> Answer:
    """From the interval of the visual information gain in the last line of controls, and what it was measured on."""
    question = "Did it see?"
    if _text_only(run):
        return Answer(question, "plain", "Text only", "This run trains on text alone; there is nothing to see.")
    interval = gain_of(run.controls[-1], "video") if run.controls else None
    if interval is None:
        return Answer(question, "warn", "Not measured", f"No controls.jsonl: {MAKE['controls.jsonl']}.")
    mean, low, high = interval
    if not all(map(math.isfinite, interval)):
        return Answer(question, "bad", "It broke", "The visual information gain is not a finite number.")
    line = run.controls[-1] if run.controls else {}
    trained = line.get("measured_on") == TRAINING
    text = (
        f"With another clip's video a {'training caption' if trained else 'caption'} costs {abs(mean):.2f} nats "
        f"{'more' if mean >= 0 else 'less'}. Visual information gain {format_interval(interval)} nats per caption "
        f"(95\u00a0%); the interval {'includes' if low <= 0 <= high else 'excludes'} 0."
    )
    less = line.get("help_less")
    if less:
        text += (
            f" {less['less']} of {less['clips']} clips help their own captions less than another clip does; they are "
            "listed under controls."
        )
    if trained:
        text += f" {ONLY_TRAINED}"
    if high < 0:
        text += " Its own video makes a caption less likely: check that clips and captions belong together."
        return Answer(question, "bad", "No, the reverse", text)
    if low > 0 and trained:
        return Answer(question, "warn", "On training clips", text)
    if low > 0:
        return Answer(question, "good", "Yes", text)
    return Answer(question, "warn", "Not shown", text)


def _unproven_sight(run: Run) -> str:
    """What leaves open whether the run sees; empty for a run on text alone, and where clips show it."""
    if _text_only(run):
        return ""
    interval = gain_of(run.controls[-1], "video") if run.controls else None
    if interval is None or not all(map(math.isfinite, interval)):
        return "Sight was not measured."
    if run.controls and run.controls[-1].get("measured_on") == TRAINING:
        return "Sight was measured on training clips alone, which cannot tell right pairs from wrong ones."
    return "" if interval[1] > 0 else "Nothing shows that the video helps."


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
    """Alarms, pre-flight, values that are not finite, whether sight was shown, and whether training came to its end."""
    bad, warn, fine = [], [], []
    if run.preflight is None:
        warn.append("There is no pre-flight check.")
    elif run.preflight.get("mode") == "off":
        warn.append("Pre-flight was not run (--preflight off).")
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
        warn.append("The monitor was off, so nothing could sound an alarm.")
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
    if unproven := _unproven_sight(run):
        warn.append(unproven)
    if run.state is None:
        warn.append("There is no trainer_state.json, so there are no curves.")
    elif not any("train_runtime" in e for e in run.log):
        at = f"step {run.state.get('global_step', '?')} of {run.state.get('max_steps', '?')}"
        warn.append(f"Training has not come to its end: {at}.")
    tone, short = ("bad", "Yes") if bad else ("warn", "Look again") if warn else ("good", "Nothing found")
    return Answer("Is anything wrong?", tone, short, " ".join(bad + warn + fine))
