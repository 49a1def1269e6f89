"""Keys that stand twice in an object, and captions in another form; `tests/data/test_records.py` has files that are no
JSON.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.data.json_records import DatasetError, RepeatedKeys, read_values

FINE = '{"id": "a", "meta": {"id": 1}}'


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"id": "b", "video": "0.mp4", "video": "1.mp4"}', ("video",)),
        ('{"id": "b", "conversations": [{"from": "gpt", "value": "x", "value": "y"}]}', ("value",)),
        ('{"id": "b", "id": "c", "meta": {"split": [1, 2], "split": [3, 4]}}', ("id", "split")),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_a_repeated_key_is_marked_in_its_record_alone(tmp_path: Path, text: str, keys: tuple, lines: bool) -> None:
    path = tmp_path / "data.json"
    parts = [FINE, text, FINE]
    path.write_text("\n".join(parts) if lines else f"[{','.join(parts)}]")
    values = [value for _, value in read_values(path)]
    assert [isinstance(value, RepeatedKeys) for value in values] == [False, True, False]
    assert values[1].keys_twice == keys


@pytest.mark.parametrize(
    "data",
    [
        b"videoid,name\n1,Un gatto\n",
        b"videoid\tname\n1\tUn gatto\n",
        b'{"videos": [], "sentences": []}',
        b'{\n "videos": [],\n "sentences": []}',
        b'{"images": [], "annotations": []}',
        b"\x1f\x8b\x08",
        b"PAR1\x00",
    ],
)
def test_captions_in_another_form_name_the_command_that_converts_them(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="captions.csv.*python -m llava.data.convert"):
        list(read_values(path))
