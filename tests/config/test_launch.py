"""What the launch script does, as command lines: the same as when its defaults stood in the script."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from llava.config import llava_st
from llava.config.launch import Plan, data_name, plan
from llava.config.launch_help import help_text
from llava.config.recipe import with_recipe
from llava.config.trainer_parser import TrainerParser
from llava.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = (
    "--from_scratch False --seed 0 --resume_from_checkpoint auto "
    "--gradient_accumulation_steps 1 --num_train_epochs 80 --lr_scheduler_type cosine --weight_decay 0.0 "
    "--save_total_limit 2 --report_to tensorboard --on_bad_sample stop --use_cpu True "
)
DEMO_RUN = (
    "--model_name_or_path output/demo_gpt2_4x128_seed0 --attn_implementation eager --model_max_length 128 "
    "--learning_rate 3e-3 --warmup_steps 0.05 --adam_beta2 0.98 --logging_steps 25 --dataloader_num_workers 0 "
    "--optim muon --per_device_train_batch_size 32 --save_steps 225 "
)
OWN_RUN = (
    "--model_name_or_path output/clips_gpt2_12x768_seed0 --attn_implementation sdpa --model_max_length 1024 "
    "--max_steps -1 --learning_rate 5e-4 --warmup_steps 0.1 --adam_beta2 0.999 --logging_steps 10 "
    "--dataloader_num_workers 4 --per_device_train_batch_size 16 --save_steps 500 "
)
VIDEO = (
    "--mm_tunable_parts mm_language_model,mm_mlp_adapter,mm_vision_resampler --feature_cache output/feature_cache "
    "--mm_projector_type mlp2x_gelu --mm_resampler_type fast_slow_resampler --num_frames 4 --video_fps 1 "
    "--frames_upbound 0 --image_aspect_ratio pad "
)
OLD = {
    "demo, video": EVERYWHERE + DEMO_RUN + VIDEO + "--data_path demo/data/train_vi_it.json --max_steps 450 "
    "--output_dir output/demo_exp2_seed0 --eval_data_path demo/data/heldout_combinations_vi_it.json "
    "--vision_tower demo/tower --mm_vision_select_layer -1 --mm_perceiver_latents 9 --mm_perceiver_latents_fast 1 "
    "--mm_perceiver_depth 0 --force_sample True --video_folder demo/data/clips",
    "demo, text": EVERYWHERE + DEMO_RUN + "--data_path demo/data/train_t_it.json --max_steps 150 "
    "--output_dir output/demo_exp1_seed0 --eval_data_path demo/data/heldout_combinations_t_it.json --text_only True",
    "own, video": EVERYWHERE + OWN_RUN + VIDEO + "--data_path {data} --output_dir output/clips_exp2_seed0 "
    "--vision_tower facebook/dinov2-large --mm_vision_select_layer -2 --mm_perceiver_latents 81 "
    "--mm_perceiver_latents_fast 9 --mm_perceiver_depth 1 --force_sample False --video_folder clips",
    "own, text": EVERYWHERE + OWN_RUN + "--data_path {data} --output_dir output/clips_exp1_seed0 --text_only True "
    "--video_folder clips --feature_cache output/feature_cache",
}  # fmt: skip
"""The trainer's arguments on a CPU without bf16; on own data, those of commit 78d988d's script, and text's folder."""
OLD_MAKE = {
    "demo": "--make_vision_tower demo/tower --vision_hidden_size 192 --vision_layers 1 --vision_heads 3 "
    "--image_size 126 --data_path demo/data/train_vi_it.json --output_dir output/demo_gpt2_4x128_seed0 --seed 0 "
    "--vocab_size 1000 --on_bad_sample stop --n_layer 4 --n_embd 128 --n_head 4 --n_positions 128 --model_type gpt2",
    "own": "--data_path {data} --output_dir output/clips_gpt2_12x768_seed0 --seed 0 --vocab_size 30000 "
    "--on_bad_sample stop --n_layer 12 --n_embd 768 --n_head 12 --n_positions 1024 --model_type gpt2",
}  # fmt: skip


def no_gpu(use_cpu: bool) -> tuple[int, str]:
    return 0, "fp32"


def planned(*argv: str, hardware: Any = no_gpu, **environ: str) -> Plan:
    return plan(environ, argv, hardware, repository=ROOT)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def parse():
    parser = TrainerParser()
    llava_st.add_flags(parser)

    def parsed(argv: list[str]) -> dict[str, Any]:
        return {k: v for k, v in vars(parser.parse_args(with_recipe(argv)[0])).items() if k != "recipe"}

    return parsed


@pytest.fixture
def data(tmp_path) -> str:
    (tmp_path / "clips.json").write_text("[]")
    return str(tmp_path / "clips.json")


@pytest.mark.parametrize("name", OLD)
def test_the_trainer_is_given_the_same_flags(name, parse, data):
    environ = {"EXP_ID": "1" if "text" in name else "2"}
    if name.startswith("own"):
        environ |= {"DATA_PATH": data, "VIDEO_FOLDER": "clips"}
    assert parse(planned(**environ).steps["TRAIN"]) == parse(shlex.split(OLD[name].format(data=data)))


def test_the_other_steps_are_the_same(data):
    demo, own = planned().steps, planned(DATA_PATH=data, VIDEO_FOLDER="clips").steps
    assert demo["DATA"] == ["--output_dir", "demo/data", "--num_train", "2500"] and own["DATA"] == []
    assert demo["MAKE"] == OLD_MAKE["demo"].split() and own["MAKE"] == shlex.split(OLD_MAKE["own"].format(data=data))
    assert planned(EXP_ID="1").steps["SCORE"] == []
    score = " ".join(demo["SCORE"])
    assert "--attributes demo/data/attributes.json" in score and "--limit" not in score
    assert score.endswith("--data_path demo/data/heldout_clips_vi_it.json demo/data/heldout_combinations_vi_it.json")
    assert "--limit 200 --seed 0" in " ".join(own["SCORE"]) and own["SCORE"][-2:] == ["--data_path", data]
    assert {"data_path", "model_name_or_path", "vision_tower"} <= set(planned().pending)
    assert set(planned(DATA_PATH=data).pending) == {"model_name_or_path"}


def test_the_old_variables_keep_working(parse, data):
    before = dict(
        DATA_PATH=data, BATCH_SIZE="3", NUM_WORKERS="2", RESUME="True", VISION_MODEL="tower", MODEL_PATH="model",
        N_POSITIONS="256", PRECISION="bf16", SAVE_STEPS="7", MAX_STEPS="9", EVAL_DATA_PATH="e.json", SEED="3",
        ON_BAD_SAMPLE="skip", ALLOW_ABSOLUTE_PATHS="1", FROM_SCRATCH="1", REPORT_TO="none", OUTPUT_DIR="run",
        FEATURE_CACHE="off", IMAGE_FOLDER="i", MM_PERCEIVER_LATENTS="16", CAPTION_LIMIT="5",
    )  # fmt: skip
    found = planned(**before)
    flags = parse(found.steps["TRAIN"])
    expected = {
        "per_device_train_batch_size": 3, "dataloader_num_workers": 2, "resume_from_checkpoint": "True",
        "vision_tower": "tower", "model_name_or_path": "model", "model_max_length": 256, "bf16": True, "save_steps": 7,
        "max_steps": 9, "eval_data_path": "e.json", "seed": 3, "on_bad_sample": "skip", "allow_absolute_paths": True,
        "from_scratch": True, "report_to": "none", "output_dir": "run", "feature_cache": "off", "image_folder": "i",
        "mm_perceiver_latents": 16,
    }  # fmt: skip
    assert {name: flags[name] for name in expected} == expected
    assert found.steps["MAKE"] == [] and found.pending == {}
    assert "--limit 5 --seed 3" in " ".join(found.steps["SCORE"])
    assert sorted(note.split("=")[0] for note in found.notes) == sorted(before)


def test_an_argument_beats_a_variable_beats_the_recipe(parse, data, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "seed: 1\nlearning_rate: 1\nmax_steps: 4\noutput_dir: fromrecipe\nlaunch: {n_layer: 3, n_embd: 8}\n"
    )
    found = planned("--seed", "3", "--recipe", str(recipe), SEED="2", LEARNING_RATE="2", DATA_PATH=data, N_LAYER="5")
    flags = parse(found.steps["TRAIN"])
    assert (flags["seed"], flags["learning_rate"], flags["max_steps"]) == (3, 2.0, 4)
    assert flags["model_name_or_path"] == "output/clips_gpt2_5x8_seed3" and found.variables["SEED"] == "3"
    assert found.variables["OUTPUT_DIR"] == "fromrecipe"
    assert planned("--output_dir", "x", DATA_PATH=data).variables["OUTPUT_DIR"] == "x", (
        "where the stop file is looked for"
    )


@pytest.mark.parametrize(
    "written", ['{"conv_L_cache": 3, "conv_bias": false}', '\'{"conv_L_cache": 3, "conv_bias": false}\'']
)
def test_settings_of_a_fresh_config_are_a_mapping_or_json(data, tmp_path, written):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"launch: {{model_type: lfm2, config_overrides: {written}}}\n")
    steps = planned("--recipe", str(recipe), DATA_PATH=data).steps
    assert steps["MAKE"][-2:] == ["--config_overrides", '{"conv_L_cache": 3, "conv_bias": false}']
    assert "output/clips_lfm2_12x768_seed0" in steps["TRAIN"]
    own = planned("--recipe", str(recipe), DATA_PATH=data, CONFIG_OVERRIDES='{"conv_bias": true}').steps["MAKE"]
    assert own[-1] == '{"conv_bias": true}'
    with pytest.raises(ValueError, match="CONFIG_OVERRIDES: a JSON object is expected, not '3'"):
        planned("--recipe", str(recipe), DATA_PATH=data, CONFIG_OVERRIDES="3")


def test_the_grounding_demo_is_drawn_and_scored_by_its_own_commands():
    steps = planned(RECIPE="grounding_demo").steps
    assert steps["DATA"][:2] == ["--output_dir", "demo_grounding/data"] and steps["DATA"][-1] == "--grounding"
    train = dict(zip(steps["TRAIN"][::2], steps["TRAIN"][1::2], strict=True))
    assert train["--data_path"] == "demo_grounding/data/train.json"
    assert train["--eval_data_path"] == "demo_grounding/data/validation_gains.json"
    assert train["--video_folder"] == train["--image_folder"] == "demo_grounding/data/visual"
    assert steps["SCORE"] == [] and planned().steps["GROUND"] == []
    run = train["--output_dir"]
    assert steps["GROUND"][:3] == [run, "--data_path", "demo_grounding/data/test.json"]
    assert "output/feature_cache" in steps["GROUND"]
    with pytest.raises(ValueError, match="which no text alone can tell"):
        planned(RECIPE="grounding_demo", EXP_ID="1")


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    """As `python -m llava.study` and `llava-study` are called; installed, the package has them."""
    (tmp_path / "mine.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    for repository in (ROOT, tmp_path / "site-packages"):
        for environ in ({}, {"RECIPE": "italian"}):
            found = plan({"DATA_PATH": "mine.json"} | environ, [], no_gpu, repository=repository)
            assert Path(found.steps["TRAIN"][1]).is_file() and found.steps["TRAIN"][1].endswith("recipes/italian.yaml")


def test_recipes_by_name(data):
    assert planned(RECIPE="tiny").steps["DATA"] == ["--output_dir", "demo_tiny/data", "--num_train", "6"]
    assert planned("--recipe", "recipes/tiny.yaml").variables["OUTPUT_DIR"] == "output/tiny_exp2_seed0"
    assert planned(RECIPE="instruct", DATA_PATH=data).steps["TRAIN"][1] == "recipes/instruct.yaml"
    with pytest.raises(ValueError, match=r"recipes/italian\.yaml brings no data: set DATA_PATH"):
        planned(RECIPE="italian")
    with pytest.raises(FileNotFoundError, match=r"nothing: no such file"):
        planned(RECIPE="nothing")


def test_adapters_are_not_trained_on_a_model_that_was_just_made(data):
    for stage in ("2", "3"):
        with pytest.raises(UserError, match=rf"MODEL_PATH=output/stage{int(stage) - 1}"):
            planned(RECIPE=f"llava_st_stage{stage}", DATA_PATH=data)
        assert not planned(RECIPE=f"llava_st_stage{stage}", DATA_PATH=data, MODEL_PATH="before").steps["MAKE"]
    assert planned(RECIPE="llava_st_stage1", DATA_PATH=data).steps["MAKE"]
    with pytest.raises(UserError, match="lora_enable is set and MODEL_PATH is not"):
        planned("--lora_enable", "True", DATA_PATH=data)
    assert planned("--lora_enable", "False", DATA_PATH=data).steps["MAKE"]


def test_text_alone_leaves_out_what_is_about_videos(parse, data):
    found = planned(EXP_ID="1", DATA_PATH=data, NUM_FRAMES="8", VIDEO_FOLDER="clips")
    assert "without effect on text alone: NUM_FRAMES" in found.notes
    assert parse(found.steps["TRAIN"])["num_frames"] == 4
    assert planned("--text_only", "True", DATA_PATH=data).variables["EXPERIMENT"] == "1 (text only)"


@pytest.mark.parametrize("from_recipe", [False, True])
def test_both_experiments_move_numbers_alike(parse, data, tmp_path, from_recipe):
    """Places of text alone are those of the square that the other experiment sees."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("image_aspect_ratio: square\n" if from_recipe else "seed: 1\n")
    given = {"RECIPE": str(recipe), "DATA_PATH": data} | ({} if from_recipe else {"IMAGE_ASPECT_RATIO": "square"})
    text, video = (planned(EXP_ID=e, **given) for e in "12")
    assert parse(text.steps["TRAIN"])["image_aspect_ratio"] == parse(video.steps["TRAIN"])["image_aspect_ratio"]
    assert parse(text.steps["TRAIN"])["image_aspect_ratio"] == "square"
    assert not any("without effect" in note for note in text.notes)


@pytest.mark.parametrize("from_recipe", [False, True])
def test_both_experiments_can_tell_copies_of_a_clip(parse, data, tmp_path, from_recipe):
    """Else one holds out a clip whose copy the other trains on."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("video_folder: clips\n" if from_recipe else "seed: 1\n")
    given = {"RECIPE": str(recipe), "DATA_PATH": data} | ({} if from_recipe else {"VIDEO_FOLDER": "clips"})
    text, video = (parse(planned(EXP_ID=e, **given).steps["TRAIN"]) for e in "12")
    assert (text["video_folder"], text["feature_cache"]) == ("clips", "output/feature_cache")
    assert (video["video_folder"], video["feature_cache"]) == ("clips", "output/feature_cache")


def test_captions_are_made_of_what_was_held_out(data):
    assert planned(DATA_PATH=data).variables["HOLDS_OUT"] == "1"
    assert planned(DATA_PATH=data, EVAL_DATA_PATH="other.json").variables["HOLDS_OUT"] == "0"
    assert planned().variables["HOLDS_OUT"] == "0", "the demo brings its own"


def test_precision_and_devices(parse, data):
    def flags(hardware: tuple[int, str], *argv: str, **environ: str) -> tuple[bool, bool, bool, str]:
        found = planned(*argv, hardware=lambda use_cpu: hardware, DATA_PATH=data, **environ)
        values = parse(found.steps["TRAIN"])
        return values["bf16"], values["fp16"], values["use_cpu"], found.variables["PRECISION"]

    assert flags((1, "bf16")) == (True, False, False, "bf16")
    assert flags((0, "fp32")) == (False, False, True, "fp32")
    assert flags((1, "bf16"), PRECISION="fp16") == (False, True, False, "fp16")
    assert flags((1, "bf16"), "--fp16", "True") == (False, True, False, "fp16")
    assert flags((1, "bf16"), BF16="False") == (False, False, False, "fp32")
    asked = []
    planned(hardware=lambda use_cpu: asked.append(use_cpu) or (0, "fp32"), USE_CPU="1", DATA_PATH=data)
    assert asked == [True]
    assert planned(DATA_PATH=data).variables["NEEDS_TORCHRUN"] == "0"
    assert planned("--deepspeed", "scripts/zero1.json", DATA_PATH=data).variables["NEEDS_TORCHRUN"] == "1"


def test_all_that_is_wrong_is_said_at_once_before_the_hardware_is_asked():
    def never(use_cpu: bool) -> tuple[int, str]:
        raise AssertionError("asked")

    with pytest.raises(ValueError) as error:
        planned("--learing_rate", "1", "--seed", "x", hardware=never, EXP_ID="3", LR="1", USE_PLAIN_LM="0",
                MAX_STEPS="many", PRECISION="int8")  # fmt: skip
    for part in (
        "--learing_rate",
        "--seed x",
        "EXP_ID=3",
        "LR=1",
        "USE_PLAIN_LM=0",
        "MAX_STEPS=many",
        "PRECISION=int8",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"EXP_ID=2 is video and text"):
        planned("--text_only", "True", EXP_ID="2")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/clips_it.json", "clips_it"), ("{a,b}.json", "_a_b_"), ("x/a.json,y/b.jsonl", "x_a.json_y_b")],
)
def test_data_name(path, name):
    assert data_name(path) == name


def test_the_shell_reads_what_was_meant():
    text = planned("--run_name", "it's $HOME", DATA_PATH="{a,b}.json").shell(["x", "y"])
    assert "TRAIN=(" in text and shlex.quote("it's $HOME") in text and text.endswith("UNMADE=x,y")


def test_help_is_in_groups():
    text = help_text()
    for part in ("Variables of the launch script:", "Model:", "Data:", "Training:", "transformers.TrainingArguments:"):
        assert f"\n{part}\n" in text
    for name in ("  EXP_ID ", "  BATCH_SIZE ", "  LLAVA_VERSION ", "  MODEL_PATH ", "  LEARNING_RATE ", "  NUM_GPUS "):
        assert name in text
    assert "experiment_faults" not in text.lower() and max(map(len, text.splitlines())) < 1500
