"""A study that goes on with other settings is an error that names them; one that grows is none."""

from __future__ import annotations

import pytest

from llava.errors import UserError
from llava.study.settings import STUDY_FILE, open_study, read_study_file

SETTINGS = {"arms": ["T", "V", "M"], "blind_share": 0.5, "flags": {"learning_rate": 0.001, "bf16": False}}


def test_a_study_that_goes_on_is_compared_with_itself(tmp_path):
    output = tmp_path / "study"
    assert open_study(output, SETTINGS, 3) == 3 and open_study(output, SETTINGS, 3) == 3
    changed = SETTINGS | {"blind_share": 0.0, "flags": {"learning_rate": 0.002, "packing": False, "bf16": False}}
    with pytest.raises(UserError) as error:
        open_study(output, changed, 3)
    assert str(error.value).splitlines()[1:4] == [
        "  --blind_share  : was 0.5, is 0.0",
        "  --learning_rate: was 0.001, is 0.002",
        "  --packing      : was not given, is False",
    ]
    assert read_study_file(output)["flags"] == SETTINGS["flags"]
    assert [path.name for path in output.iterdir()] == [STUDY_FILE]


def test_seeds_are_added_and_never_taken_away(tmp_path):
    assert [open_study(tmp_path, SETTINGS, seeds) for seeds in (3, 5, 2)] == [3, 5, 5]
    assert read_study_file(tmp_path)["seeds"] == 5


@pytest.mark.parametrize(
    ("text", "words"), [(None, "holds no study"), ("{", "not what"), ("{}", "settings are"), ("[]", "settings are")]
)
def test_a_folder_without_a_study_is_said(text, words, tmp_path):
    if text is not None:
        (tmp_path / STUDY_FILE).write_text(text)
    with pytest.raises((UserError, FileNotFoundError), match=words):
        read_study_file(tmp_path)
