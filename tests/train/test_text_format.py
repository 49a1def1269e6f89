"""Instruction tuning end to end: a question in, a caption out, on a tokenizer that had no tokens for it."""

from __future__ import annotations

import html
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llava.data.chat import Chat
from llava.eval import captioning, controls
from llava.eval.captioning import Captioner
from llava.serve.cli import main as cli
from llava.train.checkpoint.files import write_manifest
from llava.train.preflight.run import PreflightError
from llava.train.train import main
from tests.conftest import CAPTIONS, record
from tests.train.runs import alarms, flags, train

QUESTION = "Che cosa si vede?"
STEPS = {"model_max_length": 128, "max_steps": 150, "learning_rate": 1e-2, "per_device_train_batch_size": 6}


@pytest.fixture(scope="module")
def questions(assets, tmp_path_factory):
    """The fixtures' clips in instruction form, one of them in two exchanges."""
    records = [record(f"q{i}", text, f"clip{i}.mp4", QUESTION) for i, text in enumerate(CAPTIONS)]
    records[5]["conversations"] += [{"from": "human", "value": "È vero?"}, {"from": "gpt", "value": "Sì."}]
    path = tmp_path_factory.mktemp("chat") / "questions.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def run(assets, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "run"
    train(assets, folder, data_path=questions, version="qwen_2", **STEPS)
    return folder


def test_a_run_keeps_its_format_and_trains_in_silence(run):
    config = json.loads((run / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert config["text_format"]["version"] == "chatml"
    assert tokenizer.chat_template == config["text_format"]["template"]
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert json.loads((run / "generation_config.json").read_text())["eos_token_id"] == ends
    checks = {c["check"]: c for c in json.loads((run / "preflight.json").read_text())["checks"]}
    assert {c["status"] for c in checks.values()} <= {"ok", "note"}, checks
    assert "<|im_end|> are supervised, nothing else" in checks["text format"]["finding"]
    assert "decode to their record" in checks["words, video"]["finding"]
    assert alarms(run) == []
    flags = json.loads((run / "llava_run.json").read_text())["flags"]
    assert (flags["version"], flags["use_plain_lm"]) == ("chatml", False)


def test_samples_are_shown_in_the_colours_of_who_speaks(run):
    page = html.unescape((run / "preflight_samples.html").read_text())
    said: dict[str, str] = {}
    for code, text in re.findall(r'<span style="color: (#[0-9a-f]+);[^>]*>([^<]*(?:<\|?\w+\|?>[^<]*)*)</span>', page):
        said[code] = said.get(code, "") + text
    assert said["#008000"] == f"{CAPTIONS[0]}<|im_end|>", "green is what the assistant says and where it ends"
    assert said["#808000"].strip() == QUESTION, "yellow is the question"
    assert "<vid_patch>×6" in said["#008080"], "cyan is the clip"
    assert said["#808080"].startswith("<|im_start|>user\\n<|im_end|>\\n<|im_start|>assistant"), "grey is markup"


def test_captions_are_asked_for_in_the_runs_format(assets, run, questions, tmp_path, capsys):
    captioner = Captioner.from_pretrained(run, device="cpu")
    clips = [assets.clips / f"clip{i}.mp4" for i in range(6)]
    assert captioner(clips, QUESTION) == CAPTIONS
    assert captioner.caption(clips[0], QUESTION).ended
    shown = [{"from": "human", "value": f"<video> {QUESTION}"}, {"from": "gpt", "value": CAPTIONS[5]}]
    pixels = torch.zeros(1, 2, 3, 56, 56)
    more = [*shown, {"from": "human", "value": "È vero?"}]
    assert captioner.answer([more, more], pixel_values_videos=torch.cat([pixels] * 2))[0].text == "Sì."
    capsys.readouterr()
    assert cli(["--model-path", str(run), "--video", str(clips[1]), "--prompt", QUESTION, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{clips[1]}\t{CAPTIONS[1]}\n"
    with pytest.raises(SystemExit):
        cli(["--model-path", str(run), "--video", str(clips[1]), "--prompt", "<|im_end|>", "--device", "cpu"])
    assert "contains <|im_end|>" in capsys.readouterr().err
    common = ["--model-path", str(run), "--data_path", str(questions), "--video_folder", str(assets.clips),
              "--feature_cache", str(tmp_path / "cache"), "--num_workers", "0"]  # fmt: skip
    output = tmp_path / "captions.json"
    assert captioning.main([*common, "--output", str(output), "--control"]) == 0
    result = json.loads(output.read_text())
    assert result["scores"]["questions (training clips), true video"]["exact match"] == 1
    assert max(entry["nats_per_token"] for entry in result["captions"]["questions (training clips), true video"]) < 0.5
    assert controls.main([*common, "--output", str(output)]) == 0
    assert json.loads(output.read_text())["gains"]["video"]["per_caption"][0] > 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_equals_never_having_stopped(assets, questions, tmp_path, accumulation):
    options = {
        "model_max_length": 128, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "data_path": questions,
        "version": "chatml", "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    whole = train(assets, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    assert train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options) == whole
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="--version.*: was 'chatml', is 'llama_3'"):
        train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options | {"version": "llama_3"})


def test_text_alone_predicts_the_same_words(assets, questions, tmp_path):
    options = {
        "data_path": questions,
        "eval_data_path": questions,
        "version": "llama_2",
        "max_steps": 2,
        "model_max_length": 128,
    }
    train(assets, tmp_path / "video", **options)
    train(assets, tmp_path / "text", 1, text_only=True, **options)
    digests = [
        json.loads((tmp_path / name / "llava_run.json").read_text())["data"]["eval"]["targets"]
        for name in ("video", "text")
    ]
    assert digests[0] == digests[1]
    counts = [
        json.loads((tmp_path / name / "eval_results.json").read_text())["eval_common_tokens"]
        for name in ("video", "text")
    ]
    assert counts[0] == counts[1]


def test_a_dated_template_of_the_tokenizer_goes_on_with_its_date(assets, questions, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(assets.gpt2)
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    )
    shutil.copytree(assets.gpt2, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "data_path": questions, "version": "tokenizer",
        "model_name_or_path": tmp_path / "model", "preflight": "off", "model_max_length": 128,
    }  # fmt: skip

    from llava.data import chat, chat_formats

    def on(year: int) -> None:
        real, day = chat_formats.pin_template, chat_formats.datetime(year, 2, 3)
        monkeypatch.setattr(chat, "pin_template", lambda template: real(template, day))

    on(2001)
    whole = train(assets, tmp_path / "run", **options)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    on(2002)
    assert train(assets, tmp_path / "run", resume_from_checkpoint="auto", **options) == whole
    assert "03 Feb 2001" in (tmp_path / "run" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"version": "v0"}, r"--version v0: there is no such format; use one of plain, chatml \(qwen_1_5, qwen_2\)"),
        ({"version": "chatml", "use_plain_lm": True}, "--use_plain_lm True --version chatml: one of them"),
        ({"use_plain_lm": False}, "there is no chat mode without a format"),
        ({"version": "tokenizer"}, "has no chat template"),
        (
            {"version": "chatml", "mm_tunable_parts": "mm_mlp_adapter"},
            r"does not know <\|im_start\|>, <\|im_end\|>, and",
        ),
    ],
)
def test_wrong_formats_stop_before_training(assets, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        main(flags(assets, tmp_path / "run", **overrides))


def supervise(what: str):
    """`Chat._labels` with a fault."""
    real = Chat._labels

    def labels(self, text, spans, ids, offsets):
        found = real(self, text, spans, ids, offsets)
        if what == "everything":
            return list(ids)
        if what == "no end":
            return [-100 if i == self.end_ids[-1] else i for i in found] if self.end_ids else found
        asked = [i for i, (a, b) in enumerate(offsets) if "vede" in text[a:b]]
        return [ids[i] if what == "the question" and i in asked else label for i, label in enumerate(found)]

    return labels


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("everything", "questions and markup are targets"),
        ("no end", r"<\|im_end\|> is not supervised once for each answer"),
        ("the question", "supervise other words than their record has"),
    ],
)
def test_pre_flight_names_wrong_labels_of_a_chat(assets, questions, tmp_path, monkeypatch, what, message):
    records = json.loads(questions.read_text())[:4]
    for each in records:
        each["conversations"][0]["value"] = "<video> vede"
    (tmp_path / "data.json").write_text(json.dumps(records))
    tokenizer = AutoTokenizer.from_pretrained(assets.gpt2)
    tokenizer.add_tokens(["vede"])
    shutil.copytree(assets.gpt2, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = GPT2LMHeadModel.from_pretrained(assets.gpt2)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    options = {"data_path": tmp_path / "data.json", "version": "chatml", "model_max_length": 128}
    monkeypatch.setattr(Chat, "_labels", supervise(what))
    with pytest.raises(PreflightError, match=message):
        train(assets, tmp_path / "run", model_name_or_path=tmp_path / "model", **options)


def test_a_run_from_before_there_were_formats_is_plain(assets, questions, tmp_path):
    options = {"data_path": questions, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    options |= {"model_max_length": 128, "preflight": "off"}
    whole = train(assets, tmp_path / "run", text_start="none", **options)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    for name in ("llava_run.json", "config.json"):
        values = json.loads((checkpoint / name).read_text())
        values.pop("text_format")
        for flag in ("version", "text_start"):
            values.get("flags", {}).pop(flag, None)
        (checkpoint / name).write_text(json.dumps(values))
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="--version: was 'plain', is 'chatml' .cannot change"):
        train(assets, tmp_path / "run", resume_from_checkpoint="auto", version="chatml", **options)
    with pytest.raises(ValueError, match="--text_start: was 'none', is 'eos' .cannot change"):
        train(assets, tmp_path / "run", resume_from_checkpoint="auto", text_start="eos", **options)
    assert train(assets, tmp_path / "run", resume_from_checkpoint="auto", **options) == whole


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["Chi?", "Un <|im_end|> gatto."], "reserved token"),
        (["Chi?", "Un gatto.", "<video> Dove?"], "misplaced placeholder"),
        (["", "Un gatto.", "Dove?", " "], "empty caption"),
    ],
)
def test_records_are_read_by_the_rules_of_a_chat(assets, tmp_path, turns, message):
    data = [record("a", "Un gatto.", "clip0.mp4")]
    data[0]["conversations"] = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    if "<video>" not in str(turns):
        data[0]["conversations"][0]["value"] = f"<video> {turns[0]}"
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        train(assets, tmp_path / "run", data_path=tmp_path / "data.json", version="chatml")


def test_the_environment_decides_for_plain_lm_and_says_so(assets, questions, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("USE_PLAIN_LM", "1")
    train(assets, tmp_path / "run", data_path=questions, version="llama_v2", max_steps=1, model_max_length=128)
    assert "USE_PLAIN_LM=1 in the environment decides over --version llama_v2" in caplog.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["text_format"]["version"] == "plain"
    assert json.loads((tmp_path / "run" / "llava_run.json").read_text())["flags"]["version"] == "plain"


def test_another_language_model_in_its_own_format(assets, questions, tmp_path):
    """A Llama, whose tokenizer writes the beginning of a text itself."""
    tokenizer = AutoTokenizer.from_pretrained(assets.gpt2)
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    begin = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.save_pretrained(tmp_path / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, bos_token_id=begin[1], eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    options = {"data_path": questions, "version": "llava_llama_3", "model_name_or_path": tmp_path / "model"}
    train(assets, tmp_path / "run", **options, **STEPS | {"max_steps": 100})
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    clips = [assets.clips / f"clip{i}.mp4" for i in range(6)]
    assert captioner(clips, QUESTION) == CAPTIONS
    asked = captioner.text_format.prompt([{"from": "human", "value": QUESTION}])
    assert asked.count(begin[1]) == 1 and asked[0] == begin[1]
    assert captioner.tokenizer.convert_ids_to_tokens(list(captioner.text_format.end_ids)) == [
        "<|endoftext|>", "<|eot_id|>",
    ]  # fmt: skip
