"""The model card of a run: `README.md` in its folder, as the Hugging Face hub shows it.

All of it is read from the run's own files. What they cannot know, such as the licence, is left to be filled in, and a
card that was edited is never written over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.data.arms import describe
from llava.report.answers import did_it_learn, did_it_see
from llava.report.floors import text_alone
from llava.report.read import Run, read_run

CARD = "README.md"
MARK = "<!-- Written by training, which writes it anew as long as this line stands. -->"
FLAGS = (
    "version", "text_only", "other_clips", "blind_share", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "adam_beta2",
    "bf16", "fp16", "seed", "model_max_length", "num_frames", "video_fps", "mm_perceiver_latents",
    "mm_perceiver_latents_fast", "mm_perceiver_depth", "mm_resampler_type", "mm_perceiver_temporal_factor",
    "mm_vision_select_layer", "mm_tunable_parts", "vision_tower",
)  # fmt: skip
CONDITIONS = {
    "true": "its own clip",
    "other": "another clip",
    "blank": "a blank clip",
    "shuffled": "its own clip, frames in another order",
    "no_fast": "its own clip, without the fast stream",
    "no_slow": "its own clip, without the slow stream",
}
LOAD = """```python
from transformers import AutoModelForCausalLM, {tool}

model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True).eval()
{use}
```"""
WITH_VIDEO = """processor = AutoProcessor.from_pretrained(DIR, trust_remote_code=True)
inputs = processor(videos="clip.mp4")
ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])"""
WITH_TEXT = """tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
ids = model.generate(**tokenizer("Un", return_tensors="pt"), max_new_tokens=40, do_sample=False)
print(tokenizer.decode(ids[0], skip_special_tokens=True))"""

PIPELINE = "pipeline_tag: image-text-to-text"
ALONE = (
    "**Its language model alone, which takes no video or image.** What stands below was written of the whole model, "
    "its vision included."
)


def write_card(folder: str | Path) -> Path | None:
    """Writes the card of a finished run; None where there is one that somebody edited.

    Raises:
        FileNotFoundError, ValueError: from `read_run`.
    """
    # Imported here: it is slow, and only the end of a run needs it.
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(folder) / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    run = read_run(folder)
    sees = not text_alone(run)
    about = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["llava", "video", "from-scratch"] if sees else ["llava", "from-scratch"],
    )
    ModelCard(f"---\n{about.to_yaml()}\n---\n\n{card_text(run)}").save(path)
    return path


def card_text(run: Run) -> str:
    """The card without its header, in Markdown."""
    flags, record = run.flags, run.record
    sees = not text_alone(run)
    weights = sum(p.get("trainable", 0) + p.get("frozen", 0) for p in record.get("parameters") or [])
    trained = sum(p.get("trainable", 0) for p in record.get("parameters") or [])
    kind = "video-language model" if sees else "language model"
    steps = (run.state or {}).get("global_step")
    best = (run.state or {}).get("best_global_step")
    chosen = (
        f" Its weights are those of step {best}, the best by {flags.get('metric_for_best_model')} on the evaluation "
        "data: what stands below of these data is better than on new ones."
        if flags.get("load_best_model_at_end") and best not in (None, steps)
        else ""
    )
    parts = [
        MARK,
        f"# {run.folder.resolve().name}",
        f"A small {kind} of {weights:,} weights, {trained:,} of them trained here, {steps or 'an unknown number of'} "
        f"steps of {(record.get('batch') or {}).get('global', '?')} samples, seed {flags.get('seed')}.{chosen}",
        "## What it was trained on",
        _data(record.get("data") or {}),
        f"Shown in training: {describe(record['arm'])}." if record.get("arm") else "",
        "Say here where the texts and clips come from, who speaks in them, and what they must not be used for.",
        "## How good it is",
        _evaluation(run),
        "## How to load it",
        LOAD.format(
            tool="AutoProcessor" if sees else "AutoTokenizer", use=WITH_VIDEO if sees else WITH_TEXT
        ),
        "## How it was made",
        _table(("flag", "value"), [(f"`--{n}`", _shared(flags[n])) for n in FLAGS if flags.get(n) not in (None, "")]),
        "All flags, versions and the checksum of the data stand in `llava_run.json`. The same flags, seed and data "
        "give the same model on the same hardware.",
        _table(("package", "version"), _versions(record.get("versions") or {})),
        "## Licence",
        "To be filled in: that of the weights (`license` in the header), and those of the data.",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def language_model_card(card: str) -> str:
    """The card of a model with vision as that of its language model alone; what somebody wrote into it stays."""
    whole = LOAD.format(tool="AutoProcessor", use=WITH_VIDEO)
    words = LOAD.format(tool="AutoTokenizer", use=WITH_TEXT)
    if PIPELINE in card or whole in card:
        card = card.replace(PIPELINE, "pipeline_tag: text-generation", 1).replace("\n- video\n", "\n", 1)
        card = re.sub(r"^# .*$", lambda title: f"{title[0]}\n\n{ALONE}", card, count=1, flags=re.MULTILINE)
    return card.replace(whole, words).replace(words, words.replace(", trust_remote_code=True", ""))


def _shared(value: Any) -> Any:
    """The value of a flag without where things lie on the machine that trained."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _versions(versions: Mapping[str, Any]) -> list[tuple[str, Any]]:
    decoders = versions.get("decoders") or {}
    return [(k, v) for k, v in versions.items() if k not in ("decoders", "frames")] + list(decoders.items())


def _data(data: Mapping[str, Any]) -> str:
    rows = [
        (
            use,
            source["name"],
            f"{source['records']:,}",
            f"{source['words']:,}",
            f"{(data[use] or {}).get('clips', 0):,}",
            source.get("source") or "to be filled in",
            source.get("license") or "to be filled in",
        )
        for use in ("train", "eval")
        if data.get(use)
        for source in data[use].get("sources", [])
    ]
    return _table(("use", "file", "texts", "words", "clips (of all files)", "from", "licence"), rows)


def _evaluation(run: Run) -> str:
    answers = [did_it_learn(run), *([] if text_alone(run) else [did_it_see(run)])]
    answered = "\n\n".join(f"**{a.question}** {a.short}. {a.text}" for a in answers)
    if not run.controls:
        return answered + _captions(run)
    last = run.controls[-1]
    rows = [
        (CONDITIONS.get(name, name), f"{loss['per_token']:.3f}", f"{loss['per_caption']:.2f}")
        for name, loss in last["losses"].items()
    ]
    seen = "that it was not trained on" if last.get("measured_on") == "evaluation clips" else "which it was trained on"
    table = _table(("shown", "nats a token", "nats a caption"), rows)
    about = (
        f"Loss of {last['captions']} captions of {last['clips']} {last.get('measured_on', 'clips')}, {seen}, with its "
        "own clip and with less."
    )
    return f"{answered}\n\n{about}\n\n{table}{_captions(run)}"


def _captions(run: Run) -> str:
    scores = (run.captions or {}).get("scores") or {}
    if not scores:
        return ""
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    rows = [(which, *(f"{values[n]:.2f}" if n in values else "" for n in names)) for which, values in scores.items()]
    about = (
        "Greedy captions beside those for another clip: shares that are right; CIDEr-D is at most 10, BLEU-4 and "
        "chrF++ are at most 100."
    )
    return f"\n\n{about}\n\n" + _table(("captions", *names), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
