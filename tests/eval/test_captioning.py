"""Captions, controls and scores."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from llava.data.records import DatasetError
from llava.eval import caption_scores, captioning
from llava.eval.captioning import MARGIN_TOKENS, Captioner, main
from llava.eval.loss import caption_losses
from tests.conftest import record
from tests.model.test_llava_gpt2 import make_batch, pixels
from tests.train.runs import train


@pytest.fixture(scope="module")
def run(assets, tmp_path_factory):
    """A run that has memorised the six clips."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(assets, folder, max_steps=150, learning_rate=1e-2, per_device_train_batch_size=6)
    return folder


def test_main_scores_true_and_other_videos(assets, run, tmp_path, capsys):
    output = tmp_path / "captions.json"
    status = main(
        ["--model-path", str(run), "--data_path", str(assets.video_json), "--video_folder", str(assets.clips),
         "--feature_cache", str(tmp_path / "cache"), "--control", "--batch_size", "4", "--output", str(output),
         "--num_workers", "0"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert status == 0
    assert result["scores"]["video (training clips), true video"]["exact match"] == 1.0
    assert result["step"] == json.loads((run / "trainer_state.json").read_text())["global_step"]
    assert result["scores"]["video (training clips), other video"]["exact match"] == 0.0
    assert "reference: Un gatto nero" in printed


def test_a_data_set_with_a_problem_is_refused(assets, run, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"id": "a", "video": "gone.mp4", "conversations": [
        {"from": "human", "value": "<video>"}, {"from": "gpt", "value": "Un gatto."}]}]))  # fmt: skip
    with pytest.raises(ValueError, match=r"gone\.mp4"):
        main(["--model-path", str(run), "--data_path", str(path), "--feature_cache", str(tmp_path / "cache")])


def test_a_text_model_cannot_caption(assets, tmp_path):
    train(assets, tmp_path / "text", 1)
    with pytest.raises(ValueError, match="text alone"):
        Captioner.from_pretrained(tmp_path / "text")


def test_caption_losses_are_the_models_own(tokenizer, build):
    model = build()
    batch = make_batch(
        tokenizer, ["<video> Un gatto.", "<video> Due uomini giocano a scacchi."], pixel_values_videos=pixels(2)
    )
    losses, counts = caption_losses(model, batch)
    assert torch.allclose(losses.sum() / counts.sum(), model(**batch).loss, atol=1e-5)
    alone = make_batch(tokenizer, ["<video> Un gatto."], pixel_values_videos=batch["pixel_values_videos"][:1])
    assert torch.allclose(losses[0] / counts[0], model(**alone).loss, atol=1e-5)


def test_bad_and_videoless_records_are_counted_and_left_out(assets, run, tmp_path, capsys):
    records = json.loads(assets.video_json.read_text())
    records += [record("text", "Un gatto."), record("gone", "Un gatto.", "gone.mp4")]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(records))
    argv = ["--model-path", str(run), "--data_path", str(path), "--video_folder", str(assets.clips),
            "--feature_cache", str(tmp_path / "cache"), "--output", str(tmp_path / "captions.json")]  # fmt: skip
    with pytest.raises(DatasetError, match=r"gone\.mp4"):
        main(argv)
    assert main([*argv, "--on_bad_sample", "skip"]) == 0
    shown = capsys.readouterr().out
    assert "7 of 8 records; left out:" in shown and "6 of 7 records have one video" in shown
    assert (
        len(json.loads((tmp_path / "captions.json").read_text())["captions"]["some (training clips), true video"]) == 6
    )


def caption(assets, run, tmp_path, records, *options):
    """Runs `main` on records; its status, and what it wrote."""
    path, output = tmp_path / "some.json", tmp_path / "captions.json"
    path.write_text(json.dumps(records))
    status = main(
        ["--model-path", str(run), "--data_path", str(path), "--video_folder", str(assets.clips), "--image_folder",
         str(tmp_path), "--feature_cache", str(tmp_path / "cache"), "--output", str(output), *options]
    )  # fmt: skip
    return status, json.loads(output.read_text()) if output.is_file() else None


def test_captions_may_be_longer_than_the_longest_reference_and_cut_ones_are_counted(
    assets, run, tmp_path, capsys, monkeypatch
):
    records = json.loads(assets.video_json.read_text())
    long = "Il cane corre nel prato verde. " * 4
    records[0]["conversations"][1]["value"] = long
    asked = []
    real = captioning.caption_records

    def spy(captioner, records, cache, batch_size, control, limit):
        asked.append((limit, len(captioner.tokenizer(long.strip(), add_special_tokens=False)["input_ids"])))
        return real(captioner, records, cache, batch_size, control, limit)

    monkeypatch.setattr(captioning, "caption_records", spy)
    status, _ = caption(assets, run, tmp_path, records)
    assert status == 0 and asked[0][0] == asked[0][1] + MARGIN_TOKENS > 64
    assert "CUT" not in capsys.readouterr().out
    status, written = caption(assets, run, tmp_path, records, "--max_new_tokens", "2", "--control")
    shown = capsys.readouterr().out
    assert status == 0 and "true video: 6 of 6 captions were CUT" in shown and "other video: 6 of 6" in shown
    assert written["scores"]["some (training clips), true video"]["exact match"] == 0


def test_records_without_a_video_are_no_error_and_are_not_silent(assets, run, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Un gatto."}]
    image = {"id": "i", "image": "a.png", "conversations": turns}
    status, written = caption(assets, run, tmp_path, [image, record("t", "Un gatto.")], "--control")
    shown = capsys.readouterr().out
    assert (status, written) == (0, None)
    assert "some.json: NOT SCORED" in shown and "nothing to score" in shown


def test_a_single_clip_has_no_control_and_says_so(assets, run, tmp_path, capsys):
    status, written = caption(assets, run, tmp_path, [record("a", "Un gatto.", "clip0.mp4")], "--control")
    assert status == 0 and list(written["scores"]) == ["some (training clips), true video"]
    assert "NO CONTROL" in capsys.readouterr().out


def test_a_record_without_attributes_is_named(assets, run, tmp_path):
    lexicon = tmp_path / "attributes.json"
    lexicon.write_text(json.dumps({"colour": {"rosso": ["rosso"], "blu": ["blu"]}}))
    with pytest.raises(ValueError, match=r"some\.json\[0\] id 'a': no meta\.attributes"):
        caption(assets, run, tmp_path, [record("a", "Un gatto.", "clip0.mp4")], "--attributes", str(lexicon))


def test_files_of_one_name_do_not_replace_each_other(assets, run, tmp_path):
    for name in "xy":
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.json").write_text(assets.video_json.read_text())
    paths = [str(tmp_path / name / "val.json") for name in "xy"]
    output = tmp_path / "captions.json"
    main(["--model-path", str(run), "--data_path", *paths, "--video_folder", str(assets.clips), "--feature_cache",
          str(tmp_path / "cache"), "--output", str(output)])  # fmt: skip
    names = [f"{path} (training clips), {shown}" for path in paths for shown in ("true video", "other caption")]
    assert list(json.loads(output.read_text())["scores"]) == names


def test_free_text_is_scored_beside_another_clips_caption(assets, run, tmp_path, capsys):
    records = json.loads(assets.video_json.read_text())
    status, written = caption(assets, run, tmp_path, records, "--metrics", "CIDEr-D", "--retrieval", "6")
    shown = capsys.readouterr().out
    true, other = (written["scores"][f"some (training clips), {row}"] for row in ("true video", "other caption"))
    assert status == 0 and list(true) == ["exact match", "CIDEr-D"]
    assert true["exact match"] == 1 and other["exact match"] == 0
    assert true["CIDEr-D"] > 5 > other["CIDEr-D"]
    low, high = written["intervals"]["some (training clips), true video"]["CIDEr-D"]
    assert low <= true["CIDEr-D"] <= high
    assert f"{true['CIDEr-D']:.2f} [{low:.2f}, {high:.2f}]" in shown and "NOT MEASURED" not in shown
    assert written["retrieval"]["some (training clips)"]["scores"]["R@1"] == [1, 1, 1], "each clip was memorised"
    assert (
        "some (training clips): which of 6 captions fits the clip" in shown
        and "R@1 1.00 [1.00, 1.00] (chance 0.17)" in shown
    )


def test_attributes_are_the_table_and_free_text_is_in_the_file(assets, run, tmp_path, capsys):
    lexicon = tmp_path / "attributes.json"
    lexicon.write_text(json.dumps({"colour": {"nero": ["nero"], "blu": ["blu"]}}))
    records = json.loads(assets.video_json.read_text())
    records = [{**r, "meta": {"attributes": {"colour": "nero"}}} for r in records]
    _, written = caption(
        assets, run, tmp_path, records, "--attributes", str(lexicon), "--control", "--metrics", "CIDEr-D"
    )
    header = next(line for line in capsys.readouterr().out.splitlines() if "exact match" in line)
    assert header.split() == ["exact", "match", "colour", "all"]
    assert list(written["scores"]) == ["some (training clips), true video", "some (training clips), other video"]
    assert "CIDEr-D" in written["scores"]["some (training clips), true video"]


def test_without_sacrebleu_one_line_says_what_is_not_measured(assets, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: None)
    _, written = caption(assets, run, tmp_path, json.loads(assets.video_json.read_text()), "--control")
    assert list(written["scores"]["some (training clips), true video"]) == ["exact match", "CIDEr-D"]
    shown = capsys.readouterr().out
    assert shown.count("BLEU-4, chrF++: NOT MEASURED, since sacrebleu is not installed: pip install") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics", "METEOR"], "METEOR: it is made for English"),
        (["--retrieval", "51"], "--retrieval 51: a whole number from 2 to 50"),
    ],
)
def test_wrong_flags_are_refused_before_the_model_is_loaded(flags, message, capsys):
    with pytest.raises(SystemExit):
        main(["--model-path", "x", "--data_path", "y", "--feature_cache", "z", *flags])
    assert message in capsys.readouterr().err
