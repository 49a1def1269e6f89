"""Generation that goes on from a cache, and lengths."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, GPT2LMHeadModel, Pipeline, pipeline

from llava.data.prompt import expand_placeholders
from llava.model.generation import CACHE, NEW_TOKENS
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from tests.conftest import SPEC

GREEDY = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, SPEC.num_frames, 3, 56, 56, generator=generator)


def ids_of(tokenizer, *texts: str) -> torch.Tensor:
    return torch.tensor([tokenizer(expand_placeholders(text, SPEC))["input_ids"] for text in texts])


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@pytest.mark.parametrize("again", [False, True])
def test_a_cache_that_holds_the_video_is_gone_on_from(tokenizer, build, pixels, monkeypatch, name, again):
    model = build()
    ids, shown = ids_of(tokenizer, "<video> Un gatto", "<video> Un gatto"), {"pixel_values_videos": pixels}
    first = model.generate(ids, **shown, max_new_tokens=3, return_dict_in_generate=True, **GREEDY)
    longer = torch.cat([first.sequences, ids_of(tokenizer, " nero", " nero")], dim=1)
    expected = model.generate(longer, **shown, max_new_tokens=4, **GREEDY)
    encoded = []
    monkeypatch.setattr(model.vision_tower, "forward", lambda *a, **k: encoded.append(a))
    found = model.generate(longer, **{name: first[CACHE]}, **(shown if again else {}), max_new_tokens=4, **GREEDY)
    assert torch.equal(found, expected) and not encoded


def test_a_second_video_after_the_cache_is_encoded_alone(tokenizer, build, pixels):
    model = build()
    ids, longer = ids_of(tokenizer, "<video> Un gatto"), ids_of(tokenizer, "<video> Un gatto <video> Un")
    assert torch.equal(longer[:, : ids.shape[1]], ids)
    with torch.no_grad():
        first = model(ids, pixel_values_videos=pixels[:1], use_cache=True)[CACHE]
    expected = model.generate(longer, pixel_values_videos=pixels, max_new_tokens=4, **GREEDY)
    found = model.generate(longer, past_key_values=first, pixel_values_videos=pixels[1:], max_new_tokens=4, **GREEDY)
    assert torch.equal(found, expected)


def test_a_cache_that_does_not_fit_is_an_error(tokenizer, build, pixels):
    model = build()
    ids = ids_of(tokenizer, "<video> Un gatto")
    with torch.no_grad():
        first = model(ids, pixel_values_videos=pixels[:1], use_cache=True)[CACHE]
    length = ids.shape[1]
    with pytest.raises(ValueError, match=f"holds {length} positions and the ids are {length}: give the whole text"):
        model.generate(ids, past_key_values=first)
    with pytest.raises(ValueError, match="two names of one argument"):
        model.generate(ids, past_key_values=first, cache=first)
    with pytest.raises(ValueError, match=r"0 video\(s\), but 2 were given"):
        model.generate(torch.cat([ids, ids[:, -1:]], 1), past_key_values=first, pixel_values_videos=pixels)


def test_a_length_that_nobody_gives_is_a_few_captions(tokenizer, build):
    model = build(vision=False)
    ids = ids_of(tokenizer, "Un gatto")
    assert model.generate(ids, **GREEDY).shape[1] == ids.shape[1] + NEW_TOKENS
    assert model.generate(ids, max_length=ids.shape[1] + 2, **GREEDY).shape[1] == ids.shape[1] + 2
    long = ids[:, :1].expand(1, model.config.n_positions - 5)
    assert model.generate(long, **GREEDY).shape[1] == model.config.n_positions


def test_a_saved_limit_is_cut_to_the_room_and_yields_to_what_a_call_says(tokenizer, build, tmp_path):
    build(vision=False).save_pretrained(tmp_path)
    model = LlavaGPT2ForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.max_new_tokens == NEW_TOKENS
    ids = ids_of(tokenizer, "Un gatto")
    length = ids.shape[1]
    assert model.generate(ids, **GREEDY).shape[1] == length + NEW_TOKENS
    assert model.generate(ids, max_length=length + 2, **GREEDY).shape[1] == length + 2
    assert (
        model.generate(ids, generation_config=GenerationConfig(max_length=length + 2, **GREEDY)).shape[1] == length + 2
    )
    assert model.generate(ids, max_new_tokens=NEW_TOKENS + 3, **GREEDY).shape[1] == length + NEW_TOKENS + 3
    long = ids[:, :1].expand(1, model.config.n_positions - 5)
    assert model.generate(long, **GREEDY).shape[1] == model.config.n_positions


@pytest.mark.skipif(
    not hasattr(Pipeline, "_prepare_generate_kwargs"), reason="pipelines of this transformers do not ask the model"
)
def test_a_pipeline_asks_for_no_more_than_a_short_model_has(tokenizer, build, tmp_path):
    """Pipelines want 256 new tokens of a model whose generation config says nothing; the demo has 128 positions."""
    build(vision=False).save_pretrained(tmp_path)
    model = LlavaGPT2ForCausalLM.from_pretrained(tmp_path)
    words = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "<|endoftext|>" * (model.config.n_positions - 100)
    assert words(prompt, do_sample=False)[0]["generated_text"].startswith(prompt)
    with pytest.raises(ValueError, match="ask for max_new_tokens=100 at most"):
        words(prompt, do_sample=False, max_new_tokens=256)


def test_settings_may_come_as_a_configuration_and_prompts_as_embeddings(tokenizer, build, pixels, monkeypatch):
    model = build()
    ids, shown = ids_of(tokenizer, "<video> Un gatto"), {"pixel_values_videos": pixels[:1]}
    expected = model.generate(ids, **shown, max_new_tokens=4, suppress_tokens=[5], **GREEDY)
    config = GenerationConfig(max_new_tokens=4, suppress_tokens=[5], **GREEDY)
    assert torch.equal(model.generate(ids, generation_config=config, **shown), expected)
    assert config.suppress_tokens == [5], "the caller's own is left as it is"
    embeds, _ = model.prepare_inputs_labels_for_multimodal_video(ids, **shown)
    assert torch.equal(model.generate(inputs_embeds=embeds, generation_config=config), expected[:, ids.shape[1] :])
    with pytest.raises(ValueError, match="have theirs in them already"):
        model.generate(inputs_embeds=embeds, **shown)
    passed = {}
    monkeypatch.setattr(GPT2LMHeadModel, "generate", lambda self, ids, **options: passed.update(options))
    model.generate(ids, generation_config=GenerationConfig(), **shown)
    assert not {"suppress_tokens", "max_new_tokens"} & set(passed), "transformers warns of settings in both places"
    assert passed["generation_config"].max_new_tokens == NEW_TOKENS


@pytest.mark.parametrize("new", [{"max_new_tokens": 6}, {"max_length": 513}, {"max_new_tokens": 6, "max_length": 20}])
def test_a_text_beyond_the_last_position_is_an_error(tokenizer, build, new):
    model = build(vision=False)
    long = ids_of(tokenizer, "Un gatto")[:, :1].expand(1, 507)
    with pytest.raises(ValueError, match=r"takes 507 positions and 6 new.*has 512 \(max_pos.*max_new_tokens=5 at most"):
        model.generate(long, **new)
    with pytest.raises(ValueError, match="takes 512 positions, but the model has 512.*shorter prompt"):
        model.generate(long[:, :1].expand(1, 512))
    padded = torch.cat([torch.zeros(1, 8), torch.ones(1, 507)], 1)  # Padding has no position.
    assert model.generate(long[:, :1].expand(1, 515), attention_mask=padded.long(), **GREEDY).shape[1] == 520
