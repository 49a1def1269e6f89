"""The runs of a study and their flags, which differ in what is seen alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.errors import UserError
from llava.study.design import ARMS, SeedPlan, chosen, flags_of, planned, runs_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
RUNS = runs_of(Path("study"), 3)


def plan_of(tmp_path: Path, *argv: str, seed: int = 0, **environ: str) -> SeedPlan:
    (tmp_path / "clips.json").write_text("[]")
    environ = {"DATA_PATH": str(tmp_path / "clips.json"), "VIDEO_FOLDER": "clips"} | environ
    return planned(environ, argv, Path("study"), seed, lambda use_cpu: (0, "fp32"), ROOT)


def test_runs_are_numbered_seed_by_seed_so_that_more_seeds_change_no_number():
    assert [(r.seed, r.arm, str(r.folder)) for r in RUNS[:4]] == [
        (0, "V", "study/seed0/V"), (0, "M", "study/seed0/M"), (0, "T", "study/seed0/T"), (1, "V", "study/seed1/V"),
    ]  # fmt: skip
    assert runs_of(Path("study"), 5)[:9] == RUNS


def test_one_run_is_chosen_by_name_or_by_the_number_of_a_job():
    assert chosen(RUNS, None, None) == RUNS
    assert chosen(RUNS, "seed=1, arm=M", None) == chosen(RUNS, None, "4") == [RUNS[4]]
    assert chosen(RUNS, "arm=T", None) == RUNS[2::3] and chosen(RUNS, "seed=2", None) == RUNS[6:]
    for only, task, words in (
        ("seed=9", None, "no such run; seeds are 0 to 2, arms V, M, T"),
        ("run=1", None, "write seed=0,arm=V"),
        (None, "9", "numbered 0 to 8 .sbatch --array=0-8"),
        (None, "x", "SLURM_ARRAY_TASK_ID=x"),
    ):
        with pytest.raises(UserError, match=words):
            chosen(RUNS, only, task)


def test_arms_have_the_same_flags_but_for_what_is_seen(tmp_path):
    plan = plan_of(tmp_path, "--learning_rate", "2e-3", "--no_packing", MAX_STEPS="30", EXP_ID="1", SEED="7")
    own, other, text = (flags_of(run, plan, 0.5) for run in RUNS[3:6])
    assert (own["learning_rate"], own["max_steps"], own["packing"]) == ("2e-3", "30", "False")
    assert other == own | {"other_clips": 1, "output_dir": "study/seed1/M"}
    assert own["blind_share"] == 0.5 and own["text_start"] == "eos" and own["seed"] == 1
    assert text == {k: v for k, v in own.items() if k in text} | {"text_only": "True", "output_dir": "study/seed1/T"}
    left_out = own.keys() - text.keys()
    assert {"mm_tunable_parts", "blind_share"} <= left_out
    assert not left_out & {"video_folder", "feature_cache", "max_steps", "val_fraction", "text_start"}


def test_a_recipe_that_trains_text_for_fewer_steps_does_not_here(tmp_path):
    """The demo's does: of text alone it has learned all after a third of the steps."""
    plan = planned({}, ["--recipe", "tiny"], tmp_path, 0, lambda use_cpu: (0, "fp32"), ROOT)
    own, _, text = (flags_of(run, plan, 0.5) for run in RUNS[:3])
    assert text["max_steps"] == own["max_steps"] == "60" and text["data_path"] == own["data_path"]
    assert "--num_train" in plan.data and "--make_vision_tower" in plan.make


def test_each_seed_has_its_initial_model(tmp_path):
    made = [plan_of(tmp_path, seed=seed) for seed in (0, 1)]
    folders = [plan.flags["model_name_or_path"] for plan in made]
    assert folders == ["study/clips_gpt2_12x768_seed0", "study/clips_gpt2_12x768_seed1"]
    assert [plan.make[plan.make.index("--seed") + 1] for plan in made] == ["0", "1"]
    assert settings_of(made[0], ARMS, 0.5) == settings_of(made[1], ARMS, 0.5)


def test_settings_are_what_makes_a_study_the_one_that_it_is(tmp_path):
    def settings(*argv: str, **environ: str) -> dict:
        return settings_of(plan_of(tmp_path, *argv, **environ), ARMS, 0.5)

    same = settings("--learning_rate", "1e-3")
    assert same == settings(LEARNING_RATE="0.001") == settings("--learning_rate", "1e-3", NUM_WORKERS="0")
    for other in (settings(), settings("--learning_rate", "1e-3", N_LAYER="2"),
                  settings("--learning_rate", "1e-3", "--eval_data_path", "held.json")):  # fmt: skip
        assert other != same


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--seed", "1", "--data_seed=2", "--output-dir", "x"],
            "--seed: .*\n.*--data_seed: .*\n.*--output_dir: --output",
        ),
        (["--on_bad_sample", "skip"], "--on_bad_sample skip: text alone opens no clip"),
        (
            ["--text_start", "none"],
            "--text_start none: without a token in front .* T would predict fewer .* Leave --text_start out",
        ),
        (["--learing_rate", "1"], "did you mean --learning_rate"),
    ],
)
def test_flags_that_would_break_the_comparison_are_refused(argv, words, tmp_path):
    with pytest.raises(UserError, match=words):
        plan_of(tmp_path, *argv)
