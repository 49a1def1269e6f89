"""A study that goes on with other settings is an error that names them; one that grows is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.errors import UserError
from llava.study.settings import STUDY_FILE, open_study, read_study_file, recorded

SETTINGS = {"arms": ["T", "V", "M"], "blind_share": 0.5, "flags": {"learning_rate": 0.001, "bf16": False}}


def begun(output: Path) -> Path:
    """A folder in which a run has kept a checkpoint."""
    (output / "seed0" / "V" / "checkpoint-3").mkdir(parents=True)
    (output / "seed0" / "V" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    return output


def test_a_study_that_goes_on_is_compared_with_itself(tmp_path):
    output = begun(tmp_path / "study")
    assert open_study(output, SETTINGS, 3) == 3 and open_study(output, SETTINGS, 3) == 3
    changed = SETTINGS | {"blind_share": 0.0, "flags": {"learning_rate": 0.002, "packing": False, "bf16": False}}
    with pytest.raises(UserError) as error:
        open_study(output, changed, 3)
    assert str(error.value).splitlines()[1:4] == [
        "  --blind_share  : was 0.5, is 0",
        "  --learning_rate: was 0.001, is 0.002",
        "  --packing      : was not given, is False",
    ]
    assert read_study_file(output)["flags"] == SETTINGS["flags"]
    assert {path.name for path in output.iterdir()} == {"seed0", STUDY_FILE}


def test_settings_are_free_until_a_run_has_begun(tmp_path):
    """A folder of clips that was named wrongly is no reason for another --output."""
    wrong = {**SETTINGS, "flags": {"video_folder": "klips"}}
    assert open_study(tmp_path, wrong, 5) == 5
    (tmp_path / "seed0" / "V").mkdir(parents=True)
    assert open_study(tmp_path, SETTINGS, 3) == 3, "fewer seeds too"
    assert read_study_file(tmp_path)["flags"] == SETTINGS["flags"] and read_study_file(tmp_path)["seeds"] == 3
    begun(tmp_path)
    with pytest.raises(UserError, match="--video_folder"):
        open_study(tmp_path, wrong, 3)


def test_numbers_are_named_as_they_are_typed(tmp_path):
    before = {**SETTINGS, "flags": {"max_steps": 40.0, "learning_rate": 0.0005}}
    now = {**SETTINGS, "arms": ["V", "M"], "flags": {"max_steps": 60.0, "learning_rate": 5e-5}}
    open_study(begun(tmp_path), before, 3)
    with pytest.raises(UserError) as error:
        open_study(tmp_path, now, 3)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()[1:4]] == [
        "was T,V,M, is V,M", "was 0.0005, is 5e-05", "was 40, is 60",
    ]  # fmt: skip


def test_seeds_are_added_and_never_taken_away(tmp_path):
    begun(tmp_path)
    assert [open_study(tmp_path, SETTINGS, seeds) for seeds in (3, 5, 2)] == [3, 5, 5]
    assert read_study_file(tmp_path)["seeds"] == 5


def test_the_primary_test_stays_the_one_that_the_study_began_with(tmp_path):
    begun(tmp_path)
    for seeds, primary in ((3, "captions"), (5, "pairs_x"), (3, "pairs_x")):
        open_study(tmp_path, SETTINGS | {"primary": primary}, seeds)
    assert recorded(tmp_path)["primary"] == "captions" and recorded(tmp_path / "seed0") == {}


@pytest.mark.parametrize(
    ("text", "words"), [(None, "holds no study"), ("{", "not what"), ("{}", "settings are"), ("[]", "settings are")]
)
def test_a_folder_without_a_study_is_said(text, words, tmp_path):
    if text is not None:
        (tmp_path / STUDY_FILE).write_text(text)
    with pytest.raises((UserError, FileNotFoundError), match=words):
        read_study_file(tmp_path)
