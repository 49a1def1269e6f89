"""The page about a run: what it says, what it survives, and that it stands alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llava.report import plots as report_plots
from llava.report.answers import did_it_learn, did_it_see, is_anything_wrong
from llava.report.page import main, mark_words, pick_samples, run_names, split_flags, write_report
from llava.report.plots import Frames
from llava.report.read import Run, read_run
from tests.conftest import colour_frames, write_clip

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br"}


def log_entries(steps: int = 12, **extra: float) -> list[dict[str, Any]]:
    losses = [
        {"step": s, "loss": 8.0 / s, "grad_norm": 1.0, "learning_rate": 1e-3, **extra} for s in range(1, steps + 1)
    ]
    return [*losses, {"step": steps, "eval_loss": 0.9}, {"step": steps, "train_runtime": 5.0, "train_loss": 2.0}]


def control_line(step: int | None, gain: tuple[float, float, float]) -> dict[str, Any]:
    losses = {"true": {"per_caption": 10.0, "per_token": 0.5}, "other": {"per_caption": 14.25, "per_token": 0.7}}
    gains = {"video": {"per_caption": list(gain), "per_token": [g / 20 for g in gain]}}
    return {"step": step, "captions": 40, "clips": 20, "tokens": 800, "losses": losses, "gains": gains}


def write_run(folder: Path, **files: Any) -> Path:
    """A run's folder; `files` are contents by stem: a list of `jsonl` lines for alarms and controls, else JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        if stem in ("alarms", "controls"):
            (folder / f"{stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def record(**flags: Any) -> dict[str, Any]:
    return {"flags": {"learning_rate": 5e-5, "seed": 42, **flags}, "versions": {"torch": "2.8.0"}}


def alarm(step: int = 3, message: str = "spike of 14", remedy: str = "lower --max_grad_norm") -> dict[str, Any]:
    return {"step": step, "kind": "gradient spike", "message": message, "remedy": remedy, "time": "2025-03-01T02:11:09"}


def caption(name: str, video: str, text: str, nats: float | None = None) -> dict[str, Any]:
    sample = {"id": name, "video": video, "caption": text, "reference": "Una palla rossa."}
    return sample if nats is None else {**sample, "nats_per_token": nats}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run that has every file; its third clip is missing."""
    root = tmp_path_factory.mktemp("report")
    for i in range(2):
        write_clip(root / f"clip{i}.mp4", colour_frames(i))
    true = [caption("c0", "clip0.mp4", "Una palla blu.", 0.25), caption("c1", "clip1.mp4", EVIL, 0.5),
            caption("c2", "gone.mp4", "Una palla rossa.", 0.75)]  # fmt: skip
    run = write_run(
        root / "run <b>one</b>",
        llava_run={
            **record(learning_rate=1e-3, video_folder=str(root), data_path=f"{EVIL}.json", vision_tower="tower"),
            "data": {"train": {"records": 4000, "by_modality": {"video": 3990, "text": 10}, "sources": [
                {"name": f"{EVIL}.json", "strategy": "random:25%", "in_file": 12000, "records": 3000, "words": 45678,
                 "seen": 9001},
                {"name": "b.json", "strategy": "all", "in_file": 1000, "records": 1000, "words": 8000, "seen": None}]},
                "eval": None},
            "parameters": [{"part": "projector", "trainable": 1234567, "frozen": 0, "learning_rate": 0.002},
                           {"part": "tower", "trainable": 0, "frozen": 89, "learning_rate": None}],
        },
        trainer_state={"log_history": log_entries(**{"grad_norm/<i>$x$": 0.5, "padding_share": 0.0625})},
        alarms=[alarm(), alarm(5, EVIL)],
        preflight={"mode": "quick", "passed": False, "seconds": 2.5, "checks": [
            {"check": "labels", "status": "ok", "finding": "all words", "remedy": ""},
            {"check": "disk", "status": "FAIL", "finding": "1 GB free", "remedy": "make room"}]},
        controls=[control_line(6, (1.0, -0.5, 2.5)), control_line(12, (4.25, 3.5, 5.0))],
        captions={"scores": {"held, true video": {"exact match": 0.75, "CIDEr-D": 1.25, "BLEU-4": 9.5}},
                  "intervals": {"held, true video": {"CIDEr-D": [1.0, 1.5], "BLEU-4": [None, None]}},
                  "retrieval": {"held": {"clips": 20, "scores": {"R@1": [0.25, 0.125, 0.5]}, "chance": {"R@1": 0.05}}},
                  "captions": {"held, true video": true, "held, other video": [caption("c0", "x", "Un cane nero.")]}},
    )  # fmt: skip
    path = write_report([run])
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def plain(page: str) -> str:
    """The text of a page, on one line."""
    text = re.sub(r"<(style|figure|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("&#39;", "'").replace("&nbsp;", " ").replace("\u00a0", " "))


def test_the_top_answers_in_words(page):
    top = plain(page).split("Alarms")[0]
    assert "Did it learn? ✓ Yes The training loss fell from 4.000 to 0.727 nats per token." in top
    assert "Did it see? ✓ Yes" in top
    assert "4.25 [3.50, 5.00] nats per caption (95 %); the interval excludes 0" in top
    assert "Pre-flight failed: disk. 2 alarms (gradient spike)." in top
    assert "last training loss 0.667 last evaluation loss 0.900" in top


@pytest.mark.parametrize(
    "text",
    [
        "gradient spike · 2 times, steps 3 to 5 spike of 14 what to do lower --max_grad_norm",
        "another clip's video 14.25 0.700 4.25 [3.50, 5.00] 0.212 [0.175, 0.250] excludes 0",
        "Last evaluation, step 12: 40 captions of 20 clips, 800 tokens.",
        "disk ✕ FAIL 1 GB free make room",
        "projector 1,234,567 0 0.002",
        "all 1,234,567 89",
        "records 4,000",
        "video 3,990, text 10",
        ".json random:25% 3,000 12,000 75.0 % 45,678 9,001",
        "b.json all 1,000 1,000 25.0 % 8,000 –",
        "--learning_rate 0.001 5e-05",
        "held, true video 0.75 1.25 [1.00, 1.50] 9.50 [–, –]",
        "held: which of 20 captions fits the clip, by nats per token: R@1 0.25 [0.12, 0.50] (chance 0.05).",
        "reference Una palla rossa. other video Un cane nero.",
        "torch 2.8.0",
    ],
)
def test_a_section_says(page, text):
    assert text in plain(page)


def test_changed_flags_come_first_and_others_are_folded(page):
    configuration = page.split('id="configuration"')[1]
    before, folded = configuration.split("<details>")
    assert "--learning_rate" in before and "--seed" not in before
    assert "--seed" in folded


def test_flags_are_compared_with_their_defaults():
    flags = {"report_to": ["tensorboard"], "vision_tower": None, "debug": [], "mm_projector_lr": 0.0, "gone_flag": 3}
    changed, others = split_flags({**flags, "data_path": "a.json", "optim": "adamw_torch_fused", "num_frames": 8})
    assert changed == {"mm_projector_lr": (0.0, None), "gone_flag": (3, "none"), "data_path": ("a.json", "none"),
                       "num_frames": (8, 4)}  # fmt: skip
    assert set(others) == {"report_to", "vision_tower", "debug", "optim"}


def test_what_a_run_says_is_escaped(page):
    assert set(re.findall(r"<script[^>]*>", page)) == {'<script type="application/json">', "<script>"}
    assert page.count("<script>") == 1, "the page's own"
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;mark" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2, "flag and alarm"
    assert "&lt;i&gt;$x$" in page, "a curve's name is neither HTML nor mathematics"


def test_words_that_the_reference_lacks_are_marked(page):
    assert "Una palla <mark>blu</mark>." in page
    assert mark_words("L'Auto rossa è", "l’auto ROSSA") == [
        ("L", False), ("'", False), ("Auto", False), (" ", False), ("rossa", False), (" ", False), ("è", True)
    ]  # fmt: skip


def test_an_unreadable_clip_is_named_and_others_are_shown(page):
    assert page.count('<img src="data:image/jpeg;base64,') == 8
    assert re.search(r"frames not available: \S*gone\.mp4: cannot be opened", page)


class Outline(HTMLParser):
    """Attributes that load or lead somewhere, tags, and tags that were not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        self.targets += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_stands_alone(page):
    outline = Outline(page)
    assert outline.wrong == [] and outline.open == []
    assert not re.search(r"https?://|//\w+\.\w+/|@import|xmlns|DOCTYPE svg", page)
    assert set(re.findall(r"url\(([^)]*)", page)) <= {f"#{i}" for i in outline.ids}
    assert [t for t in outline.targets if not t.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert {t[1:] for t in outline.targets if t.startswith("#")} <= set(outline.ids)
    assert not outline.tags.keys() & {"link", "iframe", "object", "base"}
    assert "default-src 'none'" in page
    assert outline.tags["figure"] == 5, "loss, gradient norm, learning rate, padding, controls"


def test_only_a_trainer_state(tmp_path):
    run = write_run(tmp_path / "run", trainer_state={"log_history": log_entries(), "max_steps": 12})
    text = plain(write_report([run]).read_text())
    sections = text.split("Versions", 1)[1]
    for name, remedy in {
        "alarms.jsonl": "--run_monitor", "controls.jsonl": "--eval_data_path", "llava_run.json": "training writes",
        "captions.json": "python -m llava.eval.captioning", "preflight.json": "--preflight",
    }.items():  # fmt: skip
        assert re.search(rf"No (\w+ of (the )?\w+ in )?{re.escape(name)} ?: [^.]*{re.escape(remedy)}", sections), name
    assert "Did it learn? ✓ Yes" in text and "Did it see? ! Not measured" in text


def test_only_the_record_of_a_run_that_logged_nothing(tmp_path):
    text = plain(write_report([write_run(tmp_path / "run", llava_run=record(vision_tower=None))]).read_text())
    assert "Did it learn? – Unknown" in text and "Did it see? – Text only" in text
    assert "No trainer_state.json : training writes" in text


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_that_is_no_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no run .*--output_dir"):
        write_report([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("llava_run.json", "{", r"llava_run\.json: not JSON"),
        ("llava_run.json", '{"data": {"train": {"sources": ["a.json"]}}}', r"llava_run\.json: the fields"),
        ("llava_run.json", '{"data": {"train": [1]}}', r"llava_run\.json: the fields"),
        ("trainer_state.json", "[]", r"trainer_state\.json: a JSON object was expected, found list"),
        ("trainer_state.json", '{"log_history": [1]}', r"trainer_state\.json: the fields"),
        ("alarms.jsonl", '{"step": 1}\n\n{"step"', r"alarms\.jsonl, line 3: not JSON"),
        ("controls.jsonl", '{"gains": {"video": {"per_caption": [1, 2]}}}', r"controls\.jsonl: the fields"),
        ("controls.jsonl", '{"gains": [1]}', r"controls\.jsonl: the fields"),
        ("preflight.json", "\xff", r"preflight\.json: not JSON"),
        ("captions.json", '{"captions": {"a": ["b"]}}', r"captions\.json: the fields"),
        ("captions.json", '{"scores": {"a": {}}, "intervals": {"a": {"b": [1]}}}', r"captions\.json: the fields"),
        ("captions.json", '{"retrieval": {"a": {"clips": 2}}}', r"captions\.json: the fields"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, name, content, where):
    run = write_run(tmp_path / "run", llava_run=record())
    (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=where):
        write_report([run])


def test_two_runs_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {"trainer_state": {"log_history": log_entries()}, "controls": [control_line(s, (4, 3, 5)) for s in (6, 12)]}
    source = {"name": "a.json", "strategy": "first:9", "records": 9}
    runs = [
        write_run(
            tmp_path / name / "run",
            llava_run=record(learning_rate=rate, output_dir=name, optim="sgd")
            | {"data": {"train": {"sources": [{**source, "seen": seen}]}}},
            **files,
        )
        for name, rate, seen in (("a", 1e-3, 20), ("b", 2e-3, 30))
    ]
    assert main([str(r) for r in runs]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (tmp_path / "report.html").read_text()
    settings = page.split('id="settings"')[1].split("</section>")[0]
    assert re.findall(r'<th class="code">(\w+)', settings) == ["learning_rate"]
    assert "setting a/run b/run learning_rate 0.001 0.002" in plain(settings), "what was seen is no setting"
    training = page.split("<figcaption>Training loss ")[1].split("</figure>")[0]
    assert "a/run" in training and "b/run" in training, "curves lie over each other"
    assert training.count("--tone: var(--c0)") and training.count("--tone: var(--c1)")
    assert 'aria-label="Visual information gain"' in page
    assert plain(page).count("another clip's video 14.25") == 2
    assert Outline(page).wrong == []


def test_runs_without_difference(tmp_path):
    runs = [write_run(tmp_path / name, llava_run=record(output_dir=name)) for name in "ab"]
    assert "None: the runs have the same flags" in write_report(runs, tmp_path / "deep" / "page.html").read_text()


def test_names_of_runs_are_short_and_distinct():
    assert run_names([Path("/o/a/run"), Path("/o/b/run")]) == ["a/run", "b/run"]
    assert run_names([Path("/o/a"), Path("/o/b")]) == ["a", "b"]
    with pytest.raises(ValueError, match="named twice"):
        run_names([Path("/o/a"), Path("/o/a")])


def test_values_that_are_not_finite_are_gaps(tmp_path):
    log = [{"step": s, "loss": 1.0 + s, "grad_norm": None} for s in range(1, 9)]
    log[3]["loss"] = math.nan
    log[6]["loss"] = None
    run = write_run(tmp_path / "run", trainer_state={"log_history": log, "max_steps": 8, "global_step": 8})
    page = write_report([run]).read_text()
    curve = page.split('aria-label="Loss"')[1].split("</figure>")[0]
    line = re.search(r'<path class="line" d="([^"]*)"', curve)
    assert line[1].count("M") == 3 and "nan" not in curve.lower()
    assert "training: 2 values are not finite and left out." in page
    assert "The loss was not finite 2 times, first at step 4." in page
    assert "Training has not come to its end: step 8 of 8." in page
    assert 'aria-label="Gradient norm"' not in page


def run_of(log: list[dict[str, Any]] | None = None, **options: Any) -> Run:
    values = {"record": {}, "alarms": None, "preflight": None, "controls": None, "captions": None, **options}
    return Run(Path("run"), state=None if log is None else {"log_history": log}, **values)


@pytest.mark.parametrize(
    ("losses", "evaluations", "tone", "short"),
    [
        ([8, 7, 6, 3, 2, 1], [], "good", "Yes"),
        ([8, 7, 6, 3, 2, 1], [2.0, 1.5, 1.52], "good", "Yes"),
        ([10, 10, 10, 8, 8, 8], [], "good", "Yes"),
        ([8, 7, 6, 3, 2, 1], [2.0, 1.5, 1.6], "warn", "Yes, then it overfitted"),
        ([8, 8, 8, 7.9], [], "warn", "Hardly"),
        ([1, 2, 3, 4], [], "bad", "No"),
        ([3, 2, 1, math.nan], [], "bad", "It broke"),
        ([3], [], "plain", "Unknown"),
    ],
)
def test_did_it_learn(losses, evaluations, tone, short):
    log = [{"step": i, "loss": v} for i, v in enumerate(losses)]
    answer = did_it_learn(run_of(log + [{"step": i, "eval_loss": v} for i, v in enumerate(evaluations)]))
    assert (answer.tone, answer.short) == (tone, short)


def test_captions_are_what_is_to_be_learned():
    log = [{"step": i, "loss": 8 / (i + 1), "caption_loss": c} for i, c in enumerate([5.0, None, 5.0, 5.0])]
    answer = did_it_learn(run_of(log))
    assert answer.short == "Hardly" and "The caption loss went from 5.000 to 5.000" in answer.text


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
    answer = is_anything_wrong(run_of([*log, {"step": 400, "train_runtime": 1.0}], preflight=PASSED, alarms=alarms))
    assert answer.tone == tone
    assert ("after which the loss came back" in answer.text) == (tone == "warn")


def test_is_anything_wrong():
    ended = [{"step": 1, "loss": 1.0, "grad_norm": math.inf}, {"step": 1, "train_runtime": 1.0}]
    passed = {"passed": True, "checks": []}
    assert (
        is_anything_wrong(
            run_of(ended, controls=[control_line(1, (2, 1, 3))], preflight=passed, record={"flags": {"fp16": True}})
        ).tone
        == "good"
    )
    assert (
        "gradient norm was not finite once"
        in is_anything_wrong(run_of(ended, controls=[control_line(1, (2, 1, 3))], preflight=passed)).text
    )
    assert is_anything_wrong(run_of(ended[1:])).tone == "warn"
    assert is_anything_wrong(run_of(ended[1:], preflight=passed, alarms=[alarm()])).tone == "bad"
    unwatched = is_anything_wrong(run_of(ended[1:], preflight=passed, record={"flags": {"run_monitor": False}}))
    assert unwatched.tone == "warn" and "The monitor was off" in unwatched.text
    faulty = {"flags": {"experiment_faults": "unmasked_labels"}}
    broken = is_anything_wrong(run_of(ended[1:], preflight=passed, record=faulty))
    assert broken.tone == "bad" and "broken on purpose (unmasked_labels)" in broken.text


PASSED = {"passed": True}


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        (None, "Sight was not measured"),
        ([control_line(9, (2, 1, 3)) | {"measured_on": "training clips"}], "cannot tell right pairs from wrong ones"),
        ([control_line(9, (1, -1, 3))], "Nothing shows that the video helps"),
    ],
)
def test_without_proven_sight_it_says_look_again(controls, words):
    """Wrong pairs of clip and caption can be learned by heart: a gain on training clips does not make a run sound."""
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    answer = is_anything_wrong(run_of(ended, preflight=PASSED, controls=controls))
    assert (answer.tone, answer.short) == ("warn", "Look again") and words in answer.text
    text_alone = run_of(ended, preflight=PASSED, controls=controls, record={"flags": {"vision_tower": None}})
    assert is_anything_wrong(text_alone).short == "Nothing found"
    seen = [control_line(9, (2, 1, 3)) | {"measured_on": "evaluation clips"}]
    assert is_anything_wrong(run_of(ended, preflight=PASSED, controls=seen)).short == "Nothing found"


def test_a_warning_of_preflight_is_looked_at_again():
    ended = [{"step": 9, "train_runtime": 1.0, "loss": 1.0}]
    checks = {"passed": True, "checks": [{"check": "captions", "status": "warning"}, {"check": "a", "status": "ok"}]}
    answer = is_anything_wrong(run_of(ended, preflight=checks, controls=[control_line(9, (2, 1, 3))]))
    assert answer.short == "Look again" and "Pre-flight passed with 1 warning: captions." in answer.text


def test_a_gain_on_training_clips_is_no_yes():
    line = control_line(9, (2, 1, 3)) | {"measured_on": "training clips"}
    answer = did_it_see(run_of([], controls=[line]))
    assert (answer.tone, answer.short) == ("warn", "On training clips")
    assert "training clips alone" in answer.text and "--eval_data_path" in answer.text


def test_clips_that_help_less_are_listed(tmp_path):
    listed = [{"path": f"clips/{EVIL}.mp4", "ids": ["a", "b"], "gain": -1.25}]
    line = control_line(9, (2, 1, 3)) | {"help_less": {"clips": 20, "less": 1, "listed": listed}}
    page = write_report([write_run(tmp_path / "run", llava_run=record(), controls=[line])]).read_text()
    assert "1 of 20 clips help their own captions less than another clip does" in plain(page)
    assert "−1.25 clips/&lt;script&gt;alert(1)&lt;/script&gt;.mp4 a, b" in plain(page) and EVIL not in page
    broken = control_line(9, (2, 1, 3)) | {"help_less": {"clips": 20, "less": 1, "listed": [3]}}
    with pytest.raises(ValueError, match=r"controls\.jsonl: the fields"):
        write_report([write_run(tmp_path / "run", controls=[broken])])


def test_samples_are_good_median_and_bad():
    captions = [caption(str(i), "", "", nats=float((7 * i) % 13)) for i in range(13)]
    value, groups = pick_samples(captions)
    assert value == "nats per token"
    assert {g: [v for v, _ in s] for g, s in groups.items()} == {
        "Good": [0, 1, 2], "Median": [5, 6, 7], "Bad": [10, 11, 12]
    }  # fmt: skip


def test_samples_without_losses_are_ranked_by_their_words():
    texts = ["Un cane.", "Una palla rossa.", "Una palla blu."]
    captions = [caption(t, "", t, None if i else 0.1) for i, t in enumerate(texts)]
    value, groups = pick_samples(captions)
    assert value.startswith("similarity")
    assert [(round(v, 2), c["caption"]) for v, c in groups["All"]] == [(1, texts[1]), (0.67, texts[2]), (0, texts[0])]


def test_frames_stop_before_the_page_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(report_plots, "FRAME_BUDGET", 1)
    write_clip(tmp_path / "clip.mp4", colour_frames(0))
    sets = {"x": [caption(str(i), str(tmp_path / "clip.mp4"), "Una palla.") for i in range(2)]}
    run = write_run(tmp_path / "run", llava_run=record(), captions={"captions": sets})
    page = write_report([run]).read_text()
    assert page.count("<img") == 4 and page.count("frames not available: the page would exceed 2 MB") == 1
    assert "<img" not in write_report([run], clips=False).read_text()


def test_main_takes_a_video_folder(tmp_path, capsys):
    write_clip(tmp_path / "clip.mp4", colour_frames(0))
    run = write_run(tmp_path / "run", llava_run=record(), captions={"captions": {"x": [caption("a", "clip.mp4", "")]}})
    given = ["--video_folder", str(tmp_path)]
    for options, frames in (given, 4), ([*given, "--no_clips"], 0), ([], 0):
        assert main([str(run), "--output", str(tmp_path / "page.html"), *options]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text().count("<img") == frames


@pytest.mark.parametrize("video", ["sub/clip.mp4", "old/clips/sub/clip.mp4", "/old/sub/clip.mp4"])
def test_clips_that_have_moved_are_found(tmp_path, video):
    (tmp_path / "sub").mkdir()
    write_clip(tmp_path / "sub" / "clip.mp4", colour_frames(0))
    write_clip(tmp_path / "clip.mp4", colour_frames(1))
    trained = "/old" if video.startswith("/") else "old/clips"
    urls, reason = Frames(str(tmp_path), trained)({"video": video})
    assert reason == "" and urls == Frames(None, None)({"video": tmp_path / "sub" / "clip.mp4"})[0]
    assert Frames(str(tmp_path), trained)({"video": "old/other/clip.mp4"})[0] == [], "no other clip of that name"


def test_controls_of_one_evaluation_are_a_table(tmp_path):
    page = write_report(
        [
            write_run(
                tmp_path, llava_run=record(), controls=[control_line(6, (9, 8, 10)), control_line(None, (1, -0.5, 2.5))]
            )
        ]
    )
    assert "Last evaluation: 40 captions" in plain(page.read_text())
    assert "14.25 0.700 1.00 [−0.50, 2.50] 0.050 [−0.025, 0.125] includes 0" in plain(page.read_text())
    assert "<figure" not in page.read_text()


def test_read_run_reads_every_file(tmp_path):
    run = read_run(write_run(tmp_path, llava_run=record(seed=1), controls=[control_line(None, (1, 0, 2))], alarms=[]))
    assert (run.flags["seed"], run.alarms, run.preflight, run.log) == (1, [], None, [])
    assert run.controls[0]["step"] is None


def test_pre_flight_that_was_off_never_reads_as_passed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", llava_run=record(), preflight={"mode": "off", "checks": []})
    answer = is_anything_wrong(read_run(run))
    assert "Pre-flight was not run (--preflight off)." in answer.text and "passed" not in answer.text
    page = write_report([run]).read_text(encoding="utf-8")
    assert "<p>Not run, mode off" in page and "<dd>not run</dd>" in page
