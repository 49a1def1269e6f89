"""Where and when, from the command line: a model that knows its answers by heart, made-up answers, floors."""

from __future__ import annotations

import csv
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.coordinates import coordinate_token
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import extract_features, open_cache
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.geometry import Square
from llava.data.grounding.tasks import records_of
from llava.data.json_records import DatasetError
from llava.data.prompt import pad_token_id
from llava.data.records import load_records
from llava.data.variables import axis_of, fill, read_variables
from llava.errors import UserError
from llava.eval.captioning import Caption, Captioner
from llava.eval.grounding import Asker, main, truths_of
from llava.eval.grounding_answers import MEASURES
from llava.model.builder import add_coordinate_tokens, load_pretrained_model
from llava.report.page import write_report
from llava.train.text_format import make_format
from tests.conftest import CAPTIONS, PROCESSOR, SPEC, colour_frames
from tests.report.made import write_run

SPEC = replace(SPEC, num_frames=4)
CLIPS = 4
STEPS = 80
TASKS = ("REC", "REG", "TVG", "TR", "STVG", "SVG", "ELC", "DGC")


def box_of(i):
    return (0.1 * i, 0.05 * i, 0.1 * i + 0.4, 0.05 * i + 0.5)


FRAMES = ((0, 1), (1, 2), (2, 3), (0, 1, 2))
"""Of four, in which what happens in each clip is seen."""


def make_records(folder, tasks=TASKS):
    """Records of each clip and of an image beside it, whose truths differ; written as a file."""
    records = []
    for i, frames in enumerate(FRAMES):
        boxes = {f / 3: box_of(i + j) for j, f in enumerate(frames)}
        event = Event(CAPTIONS[i].removesuffix("."), (min(boxes), max(boxes)), boxes)
        clip = Annotation(f"c{i}", 64, 64, [event], video=f"clip{i}.mp4")
        image = Annotation(f"i{i}", 64, 64, [Event(CAPTIONS[-1 - i], None, {0.0: box_of(i)})], image=f"i{i}.png")
        for annotation in (clip, image):
            records += records_of(annotation, tasks, "it", random.Random(0))
        Image.fromarray(colour_frames(i)[0]).save(folder / f"i{i}.png")
    return write(folder, records)


def write(folder, records):
    path = folder / "grounding.json"
    path.write_text(json.dumps(records))
    return path


def seen(assets, folder):
    return ["--video_folder", str(assets.clips), "--image_folder", str(folder), "--feature_cache",
            str(folder / "cache"), "--num_workers", "0"]  # fmt: skip


def rows_of(folder):
    with open(folder / "run" / "tests" / "grounding.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def facts_of(folder):
    return json.loads((folder / "run" / "tests" / "grounding.json").read_text())


def test_a_model_that_knows_its_answers_by_heart(assets, build, tokenizer, tmp_path, capsys):
    """All the way: coordinates that are generated, greedily and by beams, are read and measured."""
    path = make_records(tmp_path, ("REG", "TVG"))
    path = write(tmp_path, json.loads(path.read_text())[:2])
    model = build(spec=SPEC)
    add_coordinate_tokens(tokenizer, model)
    form = make_format("plain", tokenizer, model, text_start="eos")
    records, problems = load_records(path, tmp_path, assets.clips, reserved=())
    cache = open_cache(tmp_path / "cache", model)
    problems += extract_features(records, cache, model.vision_tower, SPEC, PROCESSOR, model.device, num_workers=0)
    assert not problems and len(records) == 2
    dataset = LazySupervisedDataset(records, tokenizer, form.preprocess, 300, SPEC, PROCESSOR, cache, text_format=form)
    batch = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))([dataset[i] for i in range(len(records))])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    argv = [str(tmp_path / "run"), "--data_path", str(path), *seen(assets, tmp_path)]
    for more in ([], ["--num_beams", "2", "--coordinate_choice", "argmax"]):
        assert main([*argv, *more]) == 0
        tasks = facts_of(tmp_path)["summary"]["tasks"]
        mean = tasks["TVG"]["measures"]["tIoU"]["figures"]["mean"]
        assert mean["value"][0] > 0.95
        assert tasks["REG"]["words"]["exact match"]["value"][0] == 1
        assert [float(row["tIoU"]) for row in rows_of(tmp_path) if row["task"] == "TVG"] == [mean["value"][0]]
    shown = capsys.readouterr().out
    assert "TVG: 1 questions about 1 clips\n" in shown and "CUT" not in shown and "grounding.csv" in shown


def save_run(model, tokenizer, folder):
    """A run of an untrained model with coordinates."""
    add_coordinate_tokens(tokenizer, model)
    make_format("plain", tokenizer, model, text_start="eos")
    model.save_pretrained(folder / "run")
    tokenizer.save_pretrained(folder / "run")
    return folder


@pytest.fixture
def folder(build, tokenizer, tmp_path):
    return save_run(build(spec=SPEC), tokenizer, tmp_path)


def answers_of(path):
    """The right answer to each record of a file, in tokens."""
    found = []
    for raw in json.loads(path.read_text()):
        numbers, _ = read_variables(raw["conversations"], raw["variables"])
        filled = fill(raw["conversations"], numbers, lambda name, number: coordinate_token(axis_of(name), number))
        found.append(filled[1]["value"])
    return found


@pytest.fixture
def oracle(monkeypatch):
    """`oracle(answers)`: each question has its answer with its own clip, and none with another's."""

    def use(answers):
        def ask(self, places, shown, called, **options):
            assert all((place == s) == (called == "answers") for place, s in zip(places, shown, strict=True))
            texts = [answers[place] if place == s else "non so" for place, s in zip(places, shown, strict=True)]
            return [Caption(text, True, 9) for text in texts]

        monkeypatch.setattr(Asker, "ask", ask)

    return use


def test_every_task_is_scored_beside_its_floors(assets, folder, oracle, capsys):
    path = make_records(folder)
    oracle(answers_of(path))
    assert main([str(folder / "run"), "--data_path", str(path), *seen(assets, folder)]) == 0
    facts, rows = facts_of(folder), rows_of(folder)
    tasks = facts["summary"]["tasks"]
    assert list(tasks) == list(MEASURES) and len(rows) == len(TASKS) * CLIPS == facts["rows"]
    for task, found in tasks.items():
        assert (found["records"], found["clips"]) == (4, 4)
        for part in found["measures"].values():
            figures = part["figures"]["mean"]
            assert part["parsed"] == 4 and figures["value"][0] > 0.9 and figures["parsed_only"] == figures["value"]
            assert figures["floors"]["another clip's video"] == [0, 0, 0]
            assert 0 < figures["floors"]["centre box, whole clip"][0] < figures["value"][0]
            assert figures["floors"]["best constant answer"][0] < figures["value"][0]
            assert figures["floors"]["centre box, whole clip"][0] <= figures["floors"]["best constant answer"][0]
        for score in found.get("words", {}).values():
            assert score["value"][0] >= 1 and score["floors"]["another clip's video"][0] < 5, task
    stvg = next(row for row in rows if row["task"] == "STVG")
    assert stvg["other_answer"] == "non so" and stvg["other_vIoU"] == "" and float(stvg["vIoU"]) > 0.9
    shown = capsys.readouterr().out
    assert "STVG: 4 questions about 4 clips" in shown and "best constant answer: box (" in shown
    examples = facts["summary"]["examples"]
    assert {e["task"] for e in examples} == set(MEASURES) and len(examples) == 3 * len(MEASURES)
    drawn = next(e for e in examples if e["task"] == "ELC")
    assert drawn["said"]["span"] and drawn["truth"]["boxes"] and "0." in drawn["question"], "told numbers are shown"
    assert facts["settings"]["video_spec"]["num_frames"] == 4 and facts["settings"]["coordinate_choice"] == "median"
    assert facts["files"][0]["path"] == str(path) and len(facts["files"][0]["sha256"]) == 64
    write_report([write_run(folder / "run", llava_run={"flags": {"mm_coordinates": True}})], clips=False)


def test_each_question_is_put_with_its_clip_and_then_with_another(assets, folder, monkeypatch):
    calls = []

    def answer(self, conversations, options, numbers, **vision):
        calls.append(vision)
        return [Caption("non so", True, 9)] * len(conversations)

    monkeypatch.setattr(Captioner, "answer", answer)
    path = make_records(folder, ("REG", "SVG"))
    main([str(folder / "run"), "--data_path", str(path), *seen(assets, folder)])
    assert [tuple(call) for call in calls] == [("image_features",), ("video_features",)] * 2
    own, other = (call["video_features"] for call in calls[1::2])
    model = load_pretrained_model(str(folder / "run"), "cpu")[1]
    cache = open_cache(folder / "cache", model)
    expected = torch.stack([cache.read(str(assets.clips / f"clip{i}.mp4"), None) for i in range(CLIPS)])
    assert torch.equal(own, expected)
    assert all(not torch.equal(a, b) for a, b in zip(own, other, strict=True)), "every clip is another one"
    assert sorted(t.sum().item() for t in own) == sorted(t.sum().item() for t in other)


def test_another_clip_is_no_copy_and_no_segment_of_the_same_film(assets, folder, monkeypatch, capsys):
    """The floor would see what it is asked about, and the interval count one film as several."""
    shown = []

    def answer(self, conversations, options, numbers, **vision):
        shown.append(vision["video_features"])
        return [Caption("non so", True, 9)] * len(conversations)

    monkeypatch.setattr(Captioner, "answer", answer)
    records = json.loads(make_records(folder, ("TVG",)).read_text())[:2]
    (folder / "clips").mkdir()
    for name in ("clip0.mp4", "clip1.mp4", "copy.mp4"):
        shutil.copy(assets.clips / name.replace("copy", "clip0"), folder / "clips" / name)
    film = [{**records[0], "id": f"f{i}", "meta": {**records[0]["meta"], "split": [i, i + 3]}} for i in range(3)]
    path = write(folder, [*film, {**records[0], "id": "copy", "video": "copy.mp4"}, records[1]])
    argv = [str(folder / "run"), "--data_path", str(path), "--video_folder", str(folder / "clips")]
    assert main([*argv, *seen(assets, folder)[2:]]) == 0
    own, other = shown
    assert all(torch.equal(swapped, own[4]) for swapped in other[:4]) and not torch.equal(other[4], own[4])
    assert "TVG: 5 questions about 2 clips" in capsys.readouterr().out
    assert main([*argv[:2], str(write(folder, film)), *argv[3:], *seen(assets, folder)[2:]]) == 0
    assert "NO CONTROL for 3 records" in capsys.readouterr().out


@pytest.mark.parametrize("force", [False, True])
def test_frames_that_do_not_lie_at_their_times_are_remarked_on(
    assets, build, tokenizer, tmp_path, oracle, capsys, force
):
    save_run(build(spec=replace(SPEC, force_sample=force)), tokenizer, tmp_path)
    path = make_records(tmp_path, ("TVG",))
    oracle(answers_of(path))
    assert main([str(tmp_path / "run"), "--data_path", str(path), *seen(assets, tmp_path)]) == 0
    assert ("records have times (record 'c0_tvg_0' for one)" in capsys.readouterr().out) == (not force)


def test_the_files_of_a_mixture_are_noted(assets, folder, oracle):
    path = make_records(folder, ("TVG",))
    oracle(answers_of(path))
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {path}\n")
    assert main([str(folder / "run"), "--data_path", str(mixture), *seen(assets, folder)]) == 0
    assert [f["path"] for f in facts_of(folder)["files"]] == [str(mixture), str(path)]


def test_answers_do_not_depend_on_the_batch(assets, folder):
    """Numbers that are told stay beside their placeholders where prompts are padded."""
    path = make_records(folder, ("REG", "SVG"))
    found = []
    for size in ("1", "3"):
        argv = [str(folder / "run"), "--data_path", str(path), *seen(assets, folder), "--batch_size", size]
        assert main([*argv, "--max_new_tokens", "4", "--control", "False"]) == 0
        found.append([row["answer"] for row in rows_of(folder)])
    assert found[0] == found[1] and len(found[0]) == 2 * CLIPS


def test_what_cannot_be_scored_is_named_and_left_out(assets, folder, oracle, capsys):
    path = make_records(folder, ("TVG",))
    records = json.loads(path.read_text())
    plain = [{"id": "p", "video": "clip0.mp4", "conversations": [{"from": "human", "value": "<video>"},
                                                                {"from": "gpt", "value": "Un gatto."}]}]  # fmt: skip
    del records[1]["meta"]["truth"]
    records[3]["meta"]["truth"]["span"] = [0.0, 0.01]
    oracle(answers_of(path)[:1] + answers_of(path)[2:3])
    argv = [str(folder / "run"), "--data_path", str(write(folder, plain + records)), *seen(assets, folder)]
    with pytest.raises(
        DatasetError, match=r"grounding\.json\[2\] id 'c1_tvg_0': meta\.truth has no span, which TVG"
    ) as said:
        main(argv)
    assert "id 'c3_tvg_0': span: its answer has [0.000, 0.667] and meta.truth [0.000, 0.010]" in str(said.value)
    assert main([*argv, "--on_bad_sample", "skip"]) == 0
    assert all(row["tIoU"] == "" or float(row["tIoU"]) > 0.9 for row in rows_of(folder))
    shown = capsys.readouterr().out
    assert "1 of 5 records have no meta.task" in shown and "2 records cannot be scored" in shown
    assert "TVG: 2 questions about 2 clips" in shown
    with pytest.raises(UserError, match="no record is of a grounding task"):
        main([*argv[:2], str(write(folder, plain)), *argv[3:]])


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_numbers_that_have_no_place_are_told_with_all_other_problems(assets, build, tokenizer, tmp_path, aspect):
    """Before anything is asked, and by every evaluation: losses would be those of other numbers."""
    save_run(build(spec=replace(SPEC, image_aspect_ratio=aspect)), tokenizer, tmp_path)
    records = json.loads(make_records(tmp_path, ("REC",)).read_text())
    records[1]["meta"] = {k: v for k, v in records[1]["meta"].items() if k != "width"}
    records[0]["meta"]["width"] = 6400  # Of which a crop leaves the middle hundredth.
    path = write(tmp_path, [*records, {**records[2], "id": "gone", "image": "gone.png"}])
    with pytest.raises(DatasetError, match="missing file") as said:
        main([str(tmp_path / "run"), "--data_path", str(path), *seen(assets, tmp_path)])
    assert "id 'i1_rec_0': numbers of places are fractions of the frame" in str(said.value)
    lost = "id 'i0_rec_0': its box [0.0, 0.0, 0.4, 0.5] is cropped away"
    assert (lost in str(said.value)) == (aspect == "crop")


def test_a_single_clip_has_no_other_and_says_so(assets, folder, oracle, capsys):
    path = make_records(folder, ("TVG",))
    oracle(answers_of(path))
    path = write(folder, json.loads(path.read_text())[:1])
    assert main([str(folder / "run"), "--data_path", str(path), *seen(assets, folder)]) == 0
    shown = capsys.readouterr().out
    assert "NO CONTROL for 1 records" in shown and "[one clip]" in shown and "another clip" not in shown
    figures = facts_of(folder)["summary"]["tasks"]["TVG"]["measures"]["tIoU"]["figures"]
    assert figures["mean"]["value"][1:] == [None, None]


def test_a_model_without_coordinates_is_refused(assets, saved, tmp_path):
    path = make_records(tmp_path, ("TVG",))
    with pytest.raises(UserError, match=r"trained without coordinates .* name a run that was trained with them"):
        main([str(saved), "--data_path", str(path), *seen(assets, tmp_path)])


def test_the_numbers_of_a_record_are_moved_once_before_it_is_asked(assets, build, tokenizer, tmp_path, monkeypatch):
    path = make_records(tmp_path, ("REC", "TVG", "STVG"))
    model = build(spec=SPEC)
    add_coordinate_tokens(tokenizer, model)
    captioner = Captioner(tokenizer, model)
    records, _ = load_records(path, tmp_path, assets.clips, reserved=())
    moved, numbers = [], Square.numbers
    monkeypatch.setattr(Square, "numbers", lambda *given: moved.append(given) or numbers(*given))
    assert len(truths_of(records, captioner, "stop")[0]) == len(records) == 3 * CLIPS
    assert len(moved) == 2 * CLIPS, "times stay as they are"
