"""Recipes: what they may say, what they inherit, what beats them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.config.known_flags import known_flags
from llava.config.launch import launch_settings
from llava.config.recipe import OF_THE_TEXT, load_recipe, with_recipe
from llava.train.run_flags import make_run_record, parse_arguments
from tests.train.runs import flags

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def load(path: Path):
    return load_recipe(path, known_flags(), launch_settings())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_ours_are_right(path):
    recipe = load(path)
    assert recipe.flags.get("mm_tunable_parts") or recipe.flags["stage"], "what trains is said"
    alone = set(recipe.of_run(text_only=True)) - set(OF_THE_TEXT)
    assert not [name for name in alone if name.startswith("mm_") or "video" in name]


def test_a_recipe_changes_what_it_names(tmp_path):
    top = write(
        tmp_path,
        top="recipe: low.yaml\nlearning_rate: 2e-3\nvision_tower: null\nlaunch: {n_layer: 2}\n"
        "text_only_run: {seed: 7}\n",
        low="learning_rate: 1\nvision_tower: x\nbf16: true\nlaunch: {n_layer: 9, n_head: 3}\n",
    )
    recipe = load(top)
    assert recipe.flags == {"learning_rate": "2e-3", "bf16": True}
    assert recipe.launch == {"n_layer": 2, "n_head": 3}
    assert recipe.files == (str(top), str(tmp_path / "low.yaml"))
    assert recipe.of_run(text_only=True)["seed"] == 7 and "seed" not in recipe.of_run(text_only=False)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"a": "learing_rate: 1"},
            r"a\.yaml: learing_rate: there is no such flag of the trainer; did you mean learning",
        ),
        ({"a": "learning_rate: fast"}, r"a\.yaml: learning_rate: a number is expected, not 'fast'"),
        ({"a": "max_steps: [1]"}, r"a\.yaml: max_steps: a whole number is expected, not \[1\]"),
        ({"a": "max_steps: 1.5"}, r"a\.yaml: max_steps: a whole number is expected"),
        ({"a": "adam_beta2: 2"}, r"a\.yaml: adam_beta2: a number from 0 to below 1 is expected"),
        ({"a": "local_rank: 1"}, r"a\.yaml: local_rank: there is no such flag"),
        (
            {"a": "launch: {n_layers: 1}"},
            r"a\.yaml: launch\.n_layers: there is no such setting .* did you mean n_layer",
        ),
        ({"a": "launch: 3"}, r"a\.yaml: launch: lines of the form"),
        ({"a": "text_only_run: {bf16: 7}"}, r"a\.yaml: text_only_run\.bf16: True or False is expected"),
        ({"a": "seed: 1\nseed: 2"}, r"a\.yaml: seed: stands twice"),
        ({"a": "- x"}, r"a\.yaml: lines of the form"),
        ({"a": "{"}, r"a\.yaml: not YAML"),
        ({"a": "recipe: [b]"}, r"a\.yaml: recipe: the name of one file"),
        ({"a": "recipe: a.yaml"}, r"a\.yaml: recipe: a\.yaml leads back to this file"),
        ({"a": "recipe: b.yaml", "b": "recipe: a.yaml"}, r"a\.yaml: recipe: b\.yaml leads back to this file"),
        ({"a": "recipe: b.yaml", "b": "recipe: c.yaml", "c": ""}, r"a\.yaml: recipe: b\.yaml names a recipe itself"),
        ({"a": "recipe: b.yaml", "b": "sed: 1"}, r"b\.yaml: sed: there is no such flag"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, **texts))


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a\.yaml: recipe: .*b\.yaml: no such file; recipes beside it: a\.yaml"
    ):
        load(write(tmp_path, a="recipe: b.yaml"))
    (tmp_path / ".hidden.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"beside it: a\.yaml; those"):
        with_recipe(["--recipe", str(tmp_path / "none.yaml")])
    with pytest.raises(FileNotFoundError, match=r"--recipe .*none\.yaml: no such file"):
        with_recipe(["--recipe", str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match="--recipe: the name of a file is expected"):
        with_recipe(["--recipe", "--seed", "3"])


@pytest.mark.parametrize(
    ("recipe", "argv", "left"),
    [
        ("seed: 1\nbf16: true", "--seed 2", {"bf16": True}),
        ("packing: true", "--no_packing", {}),
        ("max_steps: 9\nnum_train_epochs: 3", "--num_train_epochs 2", {}),
        ("warmup_steps: 5", "--warmup_ratio 0.1", {}),
        ("fp16: true", "--bf16 True", {}),
        ("mm_tunable_parts: mm_mlp_adapter", "--tune_mm_mlp_adapter True", {}),
        ("num_frames: 2\nmm_perceiver_depth: 1\nseed: 1", "--text_only True", {"seed": 1}),
        ("num_frames: 2\ntext_only_run: {seed: 3}", "--text_only False", {"num_frames": 2}),
        ("num_frames: 2\ntext_only_run: {seed: 3}", "--text_only", {"seed": 3}),
    ],
)
def test_an_argument_beats_the_recipe(tmp_path, recipe, argv, left):
    path = write(tmp_path, a=recipe)
    words, record = with_recipe(["--recipe", str(path), *argv.split()])
    assert record == {"files": [str(path)], "flags": left}
    assert words[-len(argv.split()) :] == argv.split()


def test_a_run_takes_and_records_its_recipe(assets, tmp_path):
    path = write(tmp_path, a="learning_rate: 0.25\nmax_steps: 9\nlaunch: {n_layer: 1}\n")
    argv = flags(assets, tmp_path / "run", max_steps=3, learning_rate=None, recipe=path)
    settings = parse_arguments(argv)
    assert (settings.training.learning_rate, settings.training.max_steps) == (0.25, 3)
    record = make_run_record(settings)
    assert record["recipe"] == {"files": [str(path)], "flags": {"learning_rate": 0.25}}
    assert record["flags"]["learning_rate"] == 0.25 and record["flags"]["recipe"] == str(path)
    assert make_run_record(parse_arguments(flags(assets, tmp_path / "run")))["recipe"] is None
