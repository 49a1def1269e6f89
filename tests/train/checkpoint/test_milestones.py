"""Models kept after so many words: what is asked for, how words are counted, and that a run that was cut counts on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava.constants import FILLER_INDEX
from llava.data.sampler import ModalityLengthSampler
from llava.eval.result_files import step_of
from llava.model.builder import load_pretrained_model
from llava.train.checkpoint import milestones
from llava.train.checkpoint.milestones import BABYLM, milestone_name, parse_words, step_words
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, train

MILLION = 1_000_000


def test_milestones_of_babylm_and_of_a_list():
    assert parse_words("babylm") == BABYLM and len(BABYLM) == 28
    assert [milestone_name(n) for n in (BABYLM[0], BABYLM[9], BABYLM[10], BABYLM[19], BABYLM[-1])] == [
        "chck_1M", "chck_10M", "chck_20M", "chck_200M", "chck_1000M",
    ]  # fmt: skip
    assert parse_words("2.5M, 100k,100K,7") == (7, 100_000, 2_500_000)
    names = [milestone_name(n) for n in (7, 1234, 100_000, 2_500_000)]
    assert names == ["chck_7", "chck_1234", "chck_100k", "chck_2.5M"]


@given(st.integers(1, 10**10))
@example(123_456_700)
@example(10**12)
def test_every_number_of_words_has_a_name_of_its_own(words):
    digits, unit = milestone_name(words).removeprefix("chck_"), 1
    if digits[-1] in "kM":
        digits, unit = digits[:-1], {"k": 1000, "M": MILLION}[digits[-1]]
    assert round(float(digits) * unit, 3) == words


@pytest.mark.parametrize("text", ["", ",", "0", "1.5", "0.0001k", "ten", "5x", "-3", "nan"])
def test_what_is_no_number_of_words_is_refused(text):
    with pytest.raises(ValueError, match="--save_words"):
        parse_words(text)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 5), st.booleans())
def test_an_epoch_serves_the_words_of_every_record_once(words, size, epoch, blind):
    draws = (lambda e: np.random.default_rng(e).random(len(words)) < 0.5) if blind else None
    sampler = ModalityLengthSampler(words, ["text"] * len(words), size, 3, False, share=4, blind=draws)
    order = sampler.order(epoch)
    sampler.set_epoch(epoch)
    assert order.tolist() == list(sampler)
    sums = step_words(order, np.array(words), size)
    steps = [order[first : first + size] for first in range(0, len(order), size)]
    served = [sum(words[i % len(words)] for i in step if i != FILLER_INDEX) for step in steps]
    assert sums.tolist() == served and sums.sum() == sum(words)


@pytest.fixture(scope="module")
def counted(assets, tmp_path_factory) -> tuple[Path, dict, int]:
    """A run of three epochs that keeps a model at several numbers of words, its options, and the words of an epoch."""
    folder = tmp_path_factory.mktemp("counted")
    rows = [record(f"t{i}", f"{text} {'davvero ' * i}") for i, text in enumerate(CAPTIONS)]
    (folder / "train.json").write_text(json.dumps(rows))
    words = sum(len(row["conversations"][-1]["value"].split()) for row in rows)
    options = {
        "data_path": folder / "train.json", "save_words": f"1,{words // 2},{words},{words + 1},{3 * words},{9 * words}",
        "max_steps": 9, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2, "preflight": "off",
    }  # fmt: skip
    train(assets, folder / "run", 1, **options)
    return folder / "run", options, words


def kept(folder: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("chck_*/milestone.json"))}


def test_models_are_kept_where_the_words_pass_and_no_rotation_takes_them(counted):
    folder, _, words = counted
    found = kept(folder)
    assert set(found) == {f"chck_{n}" for n in (1, words // 2, words, words + 1, 3 * words)}
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-9"}
    assert found["chck_1"]["step"] == 1 and found["chck_1"]["milestone"] == 1 <= found["chck_1"]["words"]
    assert (found[f"chck_{words}"]["step"], found[f"chck_{words}"]["words"]) == (3, words)
    assert (found[f"chck_{3 * words}"]["step"], found[f"chck_{3 * words}"]["words"]) == (9, 3 * words)
    assert found[f"chck_{words + 1}"]["step"] == 4 and found[f"chck_{words + 1}"]["words_of_an_epoch"] == words
    last = load_file(folder / f"chck_{3 * words}" / "model.safetensors")
    final = load_file(folder / "model.safetensors")
    assert all((last[name] == final[name]).all() for name in final)
    load_pretrained_model(folder / f"chck_{words}")
    end = json.loads((folder / "milestone.json").read_text())
    assert (end["milestone"], end["words"], end["step"]) == (None, 3 * words, 9), "the last model, beside its weights"
    assert (step_of(folder), step_of(folder / f"chck_{words}")) == (9, 3)


def test_a_run_that_goes_on_counts_on(counted, assets, tmp_path, caplog):
    folder, options, words = counted
    cut = tmp_path / "run"
    for name in ("checkpoint-8", f"chck_{words}", f"chck_{words // 2}", f"chck_{words + 1}"):
        shutil.copytree(folder / name, cut / name)
    train(assets, cut, 1, **options | {"resume_from_checkpoint": cut / "checkpoint-8"})
    assert kept(cut) == {name: meta for name, meta in kept(folder).items() if name != "chck_1"}
    assert "there will be no chck_1\n" in caplog.text
    a, b = (load_file(f / f"chck_{3 * words}" / "model.safetensors") for f in (cut, folder))
    assert all((a[name] == b[name]).all() for name in b)


def test_a_folder_that_is_written_again_is_no_milestone_until_it_is_whole(tmp_path):
    def save_model(folder):
        raise OSError("no space left")

    trainer = SimpleNamespace(
        train_dataset=SimpleNamespace(records=[]), args=SimpleNamespace(output_dir=str(tmp_path)),
        save_model=save_model, is_world_process_zero=lambda: True,
    )  # fmt: skip
    file = tmp_path / "chck_5" / "milestone.json"
    file.parent.mkdir()
    file.write_text('{"milestone": 5, "words": 6, "step": 2}')
    with pytest.raises(OSError, match="no space"):
        milestones.Milestones(trainer, (5,))._keep(5, SimpleNamespace(global_step=2))
    assert not file.exists()


def test_another_order_than_the_one_that_is_counted_ends_the_run(counted, assets, tmp_path, monkeypatch):
    _, options, _ = counted
    order = ModalityLengthSampler.order
    monkeypatch.setattr(
        ModalityLengthSampler, "__iter__", lambda sampler: iter(order(sampler, sampler.epoch)[::-1].tolist())
    )
    with pytest.raises(RuntimeError, match="step 1 was made of other samples"):
        train(assets, tmp_path / "run", 1, **options)


def test_flags_that_do_not_go_together(assets, tmp_path):
    with pytest.raises(ValueError, match="--save_words lots"):
        train(assets, tmp_path, 1, save_words="lots")
    with pytest.raises(ValueError, match="--ignore_data_skip"):
        train(assets, tmp_path, 1, save_words="babylm", ignore_data_skip=True)
    assert milestones.flag_problems(type("A", (), {"save_words": None})()) == []
    assert "--save_words" in flags(assets, tmp_path, save_words="1M")
