"""Which files a --data_path names, and which of their records are taken."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.data.mixture import Strategy, choose, open_sources, parse_strategy, path_problems, short_names, split_paths
from llava.data.records import DatasetError, Record, load_records, missing_files

TOTALS = st.integers(0, 300)
AMOUNTS = st.one_of(st.integers(1, 400), st.fractions(Fraction(1, 1000), 1))
HOW = st.sampled_from(["all", "first", "end", "random"])


@given(TOTALS, HOW, AMOUNTS, st.text(max_size=5))
def test_a_choice_is_of_the_records_in_their_order(total: int, how: str, amount: int | Fraction, draw: str) -> None:
    chosen = list(choose(total, Strategy(how, amount), draw))
    wanted = math.ceil(amount * total) if isinstance(amount, Fraction) else amount
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(total))
    assert len(chosen) == (total if how == "all" else min(wanted, total))
    if how in ("all", "first"):
        assert chosen == list(range(len(chosen)))
    if how == "end":
        assert chosen == list(range(total - len(chosen), total))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.text(max_size=5))
def test_less_at_random_is_part_of_more(total: int, a: int, b: int, draw: str) -> None:
    less, more = (set(choose(total, Strategy("random", n), draw)) for n in sorted((a, b)))
    assert less <= more


def test_random_depends_on_the_draw_alone() -> None:
    half = Strategy("random", Fraction(1, 2))
    random.seed(1)
    first = choose(100, half, "42/a.json/1")
    random.seed(2)
    assert choose(100, half, "42/a.json/1") == first
    assert first[:8] == [1, 2, 3, 5, 7, 10, 11, 13]  # The same in every version of Python.
    assert choose(100, half, "43/a.json/1") != first != choose(100, half, "42/b.json/1")


@pytest.mark.parametrize(
    ("text", "number"),
    [("all", 200), ("first:7", 7), ("end:1000", 200), ("random:25%", 50), ("first: 0.1%", 1), ("end:12.5 %", 25),
     ("random:100%", 200)],
)  # fmt: skip
def test_strategies_of_llava(text: str, number: int) -> None:
    strategy = parse_strategy(text)
    assert strategy.number(200) == number
    assert parse_strategy(str(strategy)) == strategy


@pytest.mark.parametrize(
    "text",
    ["some", "first", "first:", "first:0", "first:-1", "end:1.5", "random:0%", "random:101%", "first:1:2", "random:x",
     "all:3", "", None, 7, ["all"], {"first": 7}, "first:" + "9" * 5000, "random:1e3", "first:٣"],
)  # fmt: skip
def test_other_strategies_are_refused_with_the_known_ones(text: object) -> None:
    with pytest.raises(ValueError, match=r"sampling_strategy.*use all, first:N, end:N or random:N") as raised:
        parse_strategy(text)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a.json", ["a.json"]),
        ("a.json, b.jsonl", ["a.json", "b.jsonl"]),
        ("data/{a,b}.json", ["data/a.json", "data/b.json"]),
        ("{x,y}/{a, b}.json,c.json", ["x/a.json", "x/b.json", "y/a.json", "y/b.json", "c.json"]),
        ("{a}.json", ["a.json"]),
    ],
)
def test_several_files(text: str, paths: list[str]) -> None:
    assert split_paths(text) == paths


@pytest.mark.parametrize("text", ["{a,b.json", "a}.json", "{a,{b,c}}.json", "a.json,", ",a.json", "{a,}.json", "a,,b"])
def test_braces_and_commas_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="braces that do not match|nothing between"):
        open_sources(text)


def test_a_file_may_be_called_with_braces(tmp_path: Path) -> None:
    path = tmp_path / "{a,b}.json"
    path.write_text("[]")
    assert split_paths(str(path)) == [str(path)]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.json", "y/b.json"], ["a.json", "b.json"]),
        (["x/a.json", "y/a.json", "y/b.json"], ["x/a.json", "y/a.json", "y/b.json"]),
        (["x/a.json", "x/a.json"], ["a.json", "a.json"]),
        (["a.json"], ["a.json"]),
        ([], []),
    ],
)
def test_short_names(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names


def rows(*ids: str, video: str | None = None) -> list[dict]:
    placeholder = "<video>" if video else ""
    turns = [{"from": "human", "value": placeholder}, {"from": "gpt", "value": "Un gatto dorme."}]
    return [{"id": i, "conversations": turns} | ({"video": video} if video else {}) for i in ids]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two files of ten records, whose ids are partly the same, and a clip of each."""
    monkeypatch.chdir(tmp_path)
    for name, first in (("a", 0), ("b", 5)):
        ids = [f"r{i}" for i in range(first, first + 10)]
        Path(f"{name}.json").write_text(json.dumps(rows(*ids, video="clip.mp4")))
        Path(name).mkdir()
        Path(name, "clip.mp4").write_bytes(b"x")
    return tmp_path


def mixture(text: str) -> str:
    Path("mix.yaml").write_text(text)
    return "mix.yaml"


def read(path: str, **options: object) -> list[Record]:
    records, problems = load_records(path, **options)
    assert problems == []
    return records


def test_a_mixture(folder: Path) -> None:
    path = mixture(
        "datasets:\n- json_path: a.json\n  sampling_strategy: first:2\n  data_folder: a\n"
        "- {json_path: b.json, sampling_strategy: 'end:20%', data_folder: b}\n- json_path: a.json\n"
    )
    records = read(path, video_folder="clips")
    assert [r.id for r in records[:4]] == ["a.json/r0", "a.json/r1", "r13", "r14"]
    assert len(records) == 14 and len({r.id for r in records}) == 14
    assert [r.id for r in records[4:7]] == ["a.json (2)/r0", "a.json (2)/r1", "r2"]
    assert [records[i].videos[0] for i in (0, 2, 4)] == ["a/clip.mp4", "b/clip.mp4", "clips/clip.mp4"]
    assert {p.source for p in missing_files(records)} == {f"a.json[{i}]" for i in range(10)}
    assert [(o.name, str(o.strategy), o.total) for o in dict.fromkeys(r.origin for r in records) if o] == [
        ("a.json", "first:2", 10), ("b.json", "end:20%", 10), ("a.json (2)", "all", 10)
    ]  # fmt: skip


def test_paths_stay_below_the_folder_of_their_entry(folder: Path) -> None:
    Path("b.json").write_text(json.dumps(rows("r", video="../a/clip.mp4")))
    _, problems = load_records(mixture(f"datasets: [{{json_path: b.json, data_folder: {folder / 'b'}}}]"))
    assert [p.kind for p in problems] == ["path outside folder"]


def test_what_is_wrong_with_records_that_are_not_taken_does_not_matter(folder: Path) -> None:
    Path("a.json").write_text(json.dumps(rows("r0", "r1") + [{"id": 3}]))
    assert [r.id for r in read(mixture("datasets: [{json_path: a.json, sampling_strategy: first:2}]"))] == ["r0", "r1"]


def test_any_name_of_a_file_can_be_drawn_from(folder: Path) -> None:
    Path("a.json").rename("\udce8\n.json")
    records = read(mixture('datasets: [{json_path: "\\udce8\\n.json", sampling_strategy: random:2}]'))
    assert len(records) == 2 and records[0].origin and records[0].origin.name == "\\udce8\\n.json"


def test_random_follows_the_seed(folder: Path) -> None:
    text = "datasets: [{json_path: a.json, sampling_strategy: random:50%}]\n"

    def ids(path: str, **options: int) -> list[str]:
        return [r.id for r in read(path, **options)]

    by_default, other = ids(mixture(text)), ids("mix.yaml", seed=1)
    assert len(by_default) == len(other) == 5 and by_default == ids("mix.yaml", seed=42) != other
    fixed = ids(mixture(text + "seed: 1\n"))
    assert fixed == other == ids("mix.yaml", seed=42)
    again = (
        "datasets: [{json_path: a.json, sampling_strategy: random:5}, {json_path: a.json, sampling_strategy: random:5}]"
    )
    pair = [r.source for r in read(mixture(again))]
    assert set(pair[:5]) != set(pair[5:])


def test_ids_twice_in_a_file_stay_a_problem(folder: Path) -> None:
    Path("a.json").write_text(json.dumps(rows("r5", "r5")))
    _, problems = load_records("{a,b}.json", allow_absolute_paths=True)
    assert [(p.kind, p.source) for p in problems] == [("duplicate id", "a.json[1]")]
    Path("a.json").write_text(json.dumps(rows("r5", "b.json/r5")))
    _, problems = load_records("a.json,b.json")
    assert [(p.kind, p.record_id) for p in problems] == [("duplicate id", "b.json/r5")]


WRONG = [
    (
        "datasets: [{json_path: A.json}]",
        r"datasets\[0\]: json_path 'A.json': no such file; there is 'a.json' \(another",
    ),
    ("datasets: [{json_path: c.json}]", r"datasets\[0\]: json_path 'c.json': no such file"),
    ("datasets: [{json_path: a}]", r"datasets\[0\]: json_path 'a': is a folder"),
    ('datasets: [{json_path: "\\0.json"}]', r"datasets\[0\]: json_path .*null"),
    ('datasets: [{json_path: "\\ud800.json", data_folder: "\\ud800"}]', r"datasets\[0\]: json_path "),
    ("datasets: [{path: a.json}]", r"datasets\[0\]: key 'path' is not read.*use json_path, sampling_strategy, data_f"),
    (
        "datasets: [{json_path: a.json}, {json_pth: b.json}]",
        r"datasets\[1\]: key 'json_pth' .*did you mean json_path\?",
    ),
    ("datasets: [{json_path: [a.json]}]", r"datasets\[0\]: json_path must be the path of a file .*got a list"),
    ("datasets: [a.json]", r"datasets\[0\]: an entry has the keys json_path.*got 'a.json'"),
    ("datasets: [{json_path: a.json, sampling_strategy: some:3}]", r"datasets\[0\]: sampling_strategy 'some:3' is not"),
    ("datasets: [{json_path: a.json, data_folder: c}]", r"datasets\[0\]: data_folder 'c': no such folder"),
    ("datasets: [{json_path: a.json, data_folder: 3}]", r"datasets\[0\]: data_folder must be"),
    ("datasets: [{json_path: a.json}]\nsampling: 1", r"key 'sampling' is not read: use datasets, seed"),
    ("datasets: [{json_path: a.json}]\nseed: a", r"seed must be a whole number, got 'a'"),
    ("datasets: [{json_path: mix.yaml}]", r"datasets\[0\]: json_path 'mix.yaml': a mixture names files of records"),
    ("datasets: []", r"holds dict with the keys 'datasets'; a mixture is datasets:"),
    ("[a.json]", r"holds list; a mixture is"),
    ("", r"holds NoneType; a mixture is"),
    ("datasets: [{json_path: a.json, sampling_strategy: first: 3}]", r"line 1, column \d+: .*; a mixture is YAML"),
    ("datasets: [{json_path: a.json, json_path: b.json}]", r"line 1, column 12: json_path stands there twice"),
    ("a: &a [x]\ndatasets: [*a]", r"line 2, column 12: aliases \(\*\) are not read"),
    ("datasets: !!python/object/apply:os.getcwd []", r"line 1, column 11: could not determine a constructor"),
    ("[" * 100_000, r"no YAML"),
    ("datasets: \x07", r"no YAML|special characters"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=lambda text: text[:50].replace("\x07", "BEL"))
def test_a_wrong_mixture_names_file_entry_and_key(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"mix.yaml: {message}") as raised:
        open_sources(mixture(text))
    assert len(str(raised.value)) < 500
    assert path_problems("mix.yaml") and "--data_path" in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    path = mixture("datasets:\n- {json_path: c.json, sampling_strategy: x}\n- {json_path: a.json, weight: 2}\n")
    assert len(path_problems(f"{path},a.json,d.json,a.json")) == 5


def test_aliases_that_stand_for_billions_cost_nothing(folder: Path) -> None:
    levels = "\n".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12))
    with pytest.raises(DatasetError, match="aliases"):
        open_sources(mixture(f"b0: &b0 [x]\n{levels}\ndatasets: *b11\n"))


def test_a_file_of_records_is_no_mixture(folder: Path) -> None:
    with pytest.raises(DatasetError, match="larger than 4 MB; a mixture names files, records are JSON"):
        open_sources(mixture("- x\n" * 1_000_001))


def test_an_entry_without_records_is_an_error(folder: Path) -> None:
    Path("b.json").write_text("[]")
    for strategy in ("all", "first:3", "random:10%"):
        with pytest.raises(DatasetError, match="b.json: holds no record"):
            load_records(
                mixture(f"datasets: [{{json_path: a.json}}, {{json_path: b.json, sampling_strategy: {strategy}}}]")
            )


def test_paths_beside_a_mixture_are_named(folder: Path) -> None:
    Path("sub").mkdir()
    Path("sub/own.json").write_text(json.dumps(rows("r")))
    Path("sub/clips").mkdir()
    Path("sub/mix.yaml").write_text("datasets: [{json_path: own.json}, {json_path: sub/own.json, data_folder: clips}]")
    problems = path_problems("sub/mix.yaml")
    assert len(problems) == 2 and all("; there is 'sub/" in p and "working directory" in p for p in problems)
