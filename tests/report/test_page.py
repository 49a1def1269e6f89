"""The page about a run: what it says, what it survives, and that it stands alone."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava.report import plots as report_plots
from llava.report.page import main, mark_words, pick_samples, run_names, write_report
from llava.report.plots import Frames
from tests.conftest import colour_frames, write_clip
from tests.report.made import EVIL, alarm, caption, control_line, log_entries, record, words, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br"}
DUMP = f"""<html><head><script>{EVIL}</script></head><pre><span style="font-weight: bold">video c0</span>  (a legend)
<span style="color: #008080" onclick="x()">&lt;vid_patch&gt;×2</span><span style="color: #008000"> Una</span>
<span style="color: #c0c0c0; background-color: #800000">&lt;b&gt;</span><script>alert(2)</script>

</pre>"""


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
                {"name": "b.json", "strategy": "all", "in_file": 1000, "records": 1000, "words": 8000, "seen": None}],
                "supervised": {"captions": words(3.0)}},
                "eval": {"records": 20, "clips": 20, "repeated": 3, "supervised": {"captions": words(2.5)}}},
            "tokenizer": {"entries": 992, "outputs": 1000}, "commit": "c0ffee", "versions": {"torch": "2.8.0"},
            "hardware": {"device": f"GPU {EVIL}", "memory": 80.0, "cpu": "EPYC", "cores": 16},
            "parameters": [{"part": "projector", "trainable": 1234567, "frozen": 0, "learning_rate": 0.002},
                           {"part": "tower", "trainable": 0, "frozen": 89, "learning_rate": None}],
        },
        trainer_state={"log_history": log_entries(**{"grad_norm/<i>$x$": 0.5, "padding_share": 0.0625})},
        alarms=[alarm(), alarm(5, EVIL)],
        preflight={"mode": "quick", "passed": False, "seconds": 2.5, "checks": [
            {"check": "labels", "status": "ok", "finding": "all words", "remedy": ""},
            {"check": "start of the loss, video", "status": "ok", "finding": "guesses", "remedy": "", "nats": 6.875},
            {"check": "held-out clips", "status": "ok", "finding": "none of 20", "remedy": ""},
            {"check": "disk", "status": "FAIL", "finding": "1 GB free", "remedy": "make room"}]},
        controls=[control_line(6, (1.0, -0.5, 2.5)), control_line(12, (4.25, 3.5, 5.0))],
        captions={"scores": {"held, true video": {"exact match": 0.75, "CIDEr-D": 1.25, "BLEU-4": 9.5}},
                  "intervals": {"held, true video": {"CIDEr-D": [1.0, 1.5], "BLEU-4": [None, None]}},
                  "retrieval": {"held": {"clips": 20, "scores": {"R@1": [0.25, 0.125, 0.5]}, "chance": {"R@1": 0.05}}},
                  "captions": {"held, true video": true, "held, other video": [caption("c0", "x", "Un cane nero.")]}},
    )  # fmt: skip
    (run / "preflight_samples.html").write_text(DUMP)
    path = write_report([run])
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def plain(page: str) -> str:
    """The text of a page, on one line."""
    text = re.sub(r"<(style|figure|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(text).replace("\u00a0", " "))


def test_the_top_answers_in_words(page):
    top = plain(page).split("Alarms")[0]
    assert "Did it learn? ✓ Yes On held-out clips the loss is 0.900 nats per token." in top
    assert "cost 2.50 (unigram entropy), guessing 6.91 (ln V). Before the first step it was 6.88" in top
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
        "Failed, mode quick, in 2.5 s: 3 of 4 checks are ok.",
        "torchrun llava/train/train.py --learning_rate 0.001 --video_folder",
        "Code commit c0ffee",
        "(80 GiB); EPYC, 16 CPU cores",
        "Duration 5.0 s of training; what came before, if it was resumed, was not recorded",
        "Records 4,000 Clips not recorded Words 53,678 Held out an evaluation file: 20 records of 20 clips",
        "Evaluation texts that training has word by word 3 of 20",
        "Entries 992 ln V, the loss of guessing 6.91 nats Tokens a word 1.25 Unknown 5 % of the targets",
        "predicted · where video features stand · predicted, and must not be video c0 <vid_patch>×2 Una <b>",
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


def test_answers_come_first_then_captions_curves_controls_and_facts(page):
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:5] == ["captions", "curves", "controls", "checks", "facts"]
    assert page.index('class="answers"') < page.index("<section")
    assert set(re.findall(r'<p>[^<]* <a href="#(\w+)">More', page)) <= set(sections), "each answer leads to more"


def test_gains_are_drawn_with_their_intervals(page):
    controls = page.split('<section id="controls">')[1].split("<table>")[0]
    drawing = controls.split('<figure class="bars">')[1].split("</figure>")[0]
    assert "another clip&#39;s video" in drawing and "4.25 [3.50, 5.00]" in drawing and "c1" in drawing


def test_the_loss_is_drawn_beside_its_floors_and_its_start(page):
    loss = page.split('aria-label="Loss"')[1].split("</figure>")[0]
    assert loss.count('<path class="level') == 2 and "before the first step" in page
    assert "guessing (ln V, 6.91)" in loss and "how frequent each word is (unigram entropy, 3.00)" in loss
    assert '"steps": [0.0], "values": [6.875]' in loss


def test_the_token_dump_is_folded_in_without_its_markup(page):
    dump = page.split('<details id="tokens">')[1].split("</details>")[0]
    assert '<span class="token wrong">&lt;b&gt;</span>' in dump and '<span class="token predicted"> Una</span>' in dump
    assert not re.search(r"style=|onclick|<script|<b>|#008000", dump)


def test_what_was_not_measured_looks_like_nothing_else(page, tmp_path):
    run = write_run(tmp_path / "run", llava_run=record(), trainer_state={"log_history": log_entries()})
    bare = write_report([run]).read_text()
    assert re.findall(r'class="card answer (\w+)"', bare) == ["unmeasured"] * 3
    assert re.findall(r'class="card answer (\w+)"', page)[:3] == ["good", "good", "bad"]
    assert ".answer.unmeasured {" in page and bare.count('aria-hidden="true">?</span>') == 3


def test_a_monitor_that_was_off_is_not_said_to_have_found_nothing(tmp_path):
    page = plain(write_report([write_run(tmp_path / "run", llava_run=record(run_monitor=False))]).read_text())
    assert "Not measured: the monitor was off ( --run_monitor False )" in page and "so there was none" not in page


def test_changed_flags_come_first_and_others_are_folded(page):
    configuration = page.split('id="configuration"')[1]
    before, folded = configuration.split("<details>")
    assert "--learning_rate" in before and "--seed" not in before
    assert "--seed" in folded


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
    assert outline.tags["figure"] == 6, "loss, gradient norm, learning rate, padding, controls twice"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with: apt-get install chromium")
def test_nothing_sticks_out_of_a_narrow_screen(page, tmp_path):
    # A window of headless Chromium is 500 wide at least; a frame may be narrower.
    script = """<script>
      for (const folded of document.querySelectorAll("details")) folded.open = true;
      const wide = document.documentElement.scrollWidth, copies = !document.querySelector(".command button").hidden;
      parent.postMessage([wide, innerWidth, copies], "*");
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", script), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = (event) => { document.title = event.data; };</script>"
        '<iframe src="page.html" style="width: 400px; height: 900px; border: 0"></iframe>'
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--hide-scrollbars", "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.findall("<title>(.*)</title>", done.stdout) == ["400,400,true"]


def test_only_a_trainer_state(tmp_path):
    run = write_run(tmp_path / "run", trainer_state={"log_history": log_entries(), "max_steps": 12})
    text = plain(write_report([run]).read_text())
    sections = text.split("Versions", 1)[1]
    for name, remedy in {
        "alarms.jsonl": "--run_monitor", "controls.jsonl": "--eval_data_path", "llava_run.json": "training writes",
        "captions.json": "python -m llava.eval.captioning", "preflight.json": "--preflight",
    }.items():  # fmt: skip
        assert re.search(rf"No (\w+ of (the )?\w+ in )?{re.escape(name)} ?: [^.]*{re.escape(remedy)}", sections), name
    assert "Did it learn? ? Not measured On evaluation clips" in text and "Did it see? ? Not measured" in text
    assert "Is anything wrong? ? Not all was measured" in text and text.count("not recorded") > 9


def test_only_the_record_of_a_run_that_logged_nothing(tmp_path):
    text = plain(write_report([write_run(tmp_path / "run", llava_run=record(vision_tower=None))]).read_text())
    assert "Did it learn? ? Not measured No training loss was logged." in text and "Did it see? – Text only" in text
    assert "No trainer_state.json : training writes" in text


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


def test_clips_that_help_less_are_listed(tmp_path):
    listed = [{"path": f"clips/{EVIL}.mp4", "ids": ["a", "b"], "gain": -1.25}]
    line = control_line(9, (2, 1, 3)) | {"help_less": {"clips": 20, "less": 1, "listed": listed}}
    page = write_report([write_run(tmp_path / "run", llava_run=record(), controls=[line])]).read_text()
    assert "1 of 20 clips help their own captions less than another clip does" in plain(page)
    assert f"−1.25 clips/{EVIL}.mp4 a, b" in plain(page) and EVIL not in page
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
    assert page.read_text().count("<figure") == 1, "the gains with their intervals, and no curve of a single point"
