"""Keys that stand twice in an object; `tests/data/test_records.py` has files that are no JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.data.json_records import RepeatedKeys, read_values

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
