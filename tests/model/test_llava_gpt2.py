"""The model: losses, gradients, streams, checkpoints and generation."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from llava.constants import IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.prompt import expand_placeholders, preprocess_plain_lm
from llava.model.builder import add_visual_tokens, load_language_model, load_pretrained_model, set_trainable
from llava.model.language_model.llava_gpt2 import CACHE, LlavaGPT2ForCausalLM
from llava.model.loss import head_logits, supervised_loss
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import SPEC, save_tower

PIXELS = torch.Generator().manual_seed(1)


def pixels(videos: int = 1) -> torch.Tensor:
    return torch.randn(videos, SPEC.num_frames, 3, 56, 56, generator=PIXELS)


def make_batch(tokenizer, texts: list[str], **vision) -> dict:
    """A collated batch of plain-LM samples; `<video>` and `<image>` expanded, vision tensors passed through."""
    samples = []
    for i, text in enumerate(texts):
        turns = [{"from": "gpt", "value": expand_placeholders(text, SPEC)}]
        sample = preprocess_plain_lm([turns], tokenizer, has_image="<" in text)
        samples.append({"sample_id": f"s{i}", "input_ids": sample["input_ids"][0], "labels": sample["labels"][0]})
    batch = DataCollatorForSupervisedDataset(tokenizer.eos_token_id)(samples)
    batch["num_videos"] = torch.tensor([t.count("<video>") for t in texts])
    batch["num_images"] = torch.tensor([t.count("<image>") for t in texts])
    return batch | vision


def test_text_only_equals_plain_gpt2(assets, tokenizer, build):
    model, plain = build(vision=False), GPT2LMHeadModel.from_pretrained(assets.gpt2)
    ids = torch.tensor([tokenizer("Un gatto nero dorme.")["input_ids"]])
    vocabulary = plain.config.vocab_size
    assert torch.allclose(model(ids).logits[..., :vocabulary], plain(ids).logits, atol=1e-5)


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(11)])
def test_supervised_loss_equals_the_full_computation(num_items):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(3, 9, 8, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9)).masked_fill(torch.rand(3, 9) < 0.5, IGNORE_INDEX)
    loss, each = supervised_loss(hidden, labels, head, num_items)
    per_token = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
    )
    assert torch.allclose(each, per_token) and not each.requires_grad
    reduction = "mean" if num_items is None else "sum"
    full = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction=reduction
    )
    full = full if num_items is None else full / num_items
    assert torch.allclose(loss, full)
    ours = torch.autograd.grad(loss, [hidden, head.weight])
    theirs = torch.autograd.grad(full, [hidden, head.weight])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_supervised_loss_in_pieces_equals_the_whole(monkeypatch, smoothing):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(3, 9, 8, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9)).masked_fill(torch.rand(3, 9) < 0.5, IGNORE_INDEX)
    full = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
    )  # fmt: skip
    theirs = torch.autograd.grad(full, [hidden, head.weight])
    for pieces in (1 << 27, 150):
        monkeypatch.setattr("llava.model.loss.CHUNK_LOGITS", pieces)
        loss, _ = supervised_loss(hidden, labels, head, label_smoothing=smoothing)
        assert torch.allclose(loss, full)
        ours = torch.autograd.grad(loss, [hidden, head.weight])
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_a_padded_head_gives_the_same_logits():
    head, states = torch.nn.Linear(8, 50, bias=False), torch.randn(3, 8)
    assert torch.allclose(head_logits(states, head, 64), head(states), atol=1e-6)


def test_a_batch_without_targets_is_an_error_and_not_nan():
    with pytest.raises(ValueError, match="no position of the batch is supervised"):
        supervised_loss(torch.zeros(1, 4, 8), torch.full((1, 4), IGNORE_INDEX), torch.nn.Linear(8, 5))
    with pytest.raises(ValueError, match="no position of the batch is supervised"):
        supervised_loss(torch.zeros(1, 4, 8), torch.full((1, 4), IGNORE_INDEX), torch.nn.Linear(8, 5), torch.tensor(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_rank_without_targets_adds_nothing_to_those_of_others(smoothing):
    head, hidden = torch.nn.Linear(8, 5), torch.randn(1, 4, 8, requires_grad=True)
    labels = torch.full((1, 4), IGNORE_INDEX)
    loss, _ = supervised_loss(hidden, labels, head, torch.tensor(7), label_smoothing=smoothing)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any() and not head.weight.grad.any() and not head.bias.grad.any()


def test_every_trainable_tensor_differs_after_two_steps(tokenizer, build):
    """The embedding included, which is tied to the head: freezing one would freeze the vocabulary."""
    model = build().train()
    assert model.lm_head.weight is model.transformer.wte.weight
    trainable = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert "transformer.wte.weight" in trainable
    assert all(n.startswith("vision_tower.") for n in frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        batch = make_batch(tokenizer, ["<video> Un gatto nero.", "<video> Il cane."], pixel_values_videos=pixels(2))
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    now = dict(model.named_parameters())
    assert [n for n, before in trainable.items() if torch.equal(before, now[n])] == []
    assert [n for n, before in frozen.items() if not torch.equal(before, now[n])] == []
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("stream", ["fast", "slow"])
def test_each_stream_alone_reaches_the_loss(tokenizer, build, stream):
    model = build().train()
    batch = make_batch(tokenizer, ["<video> Un gatto nero."], pixel_values_videos=pixels())
    model(**batch).loss.backward()
    module = getattr(model.vision_resampler, stream)
    dead = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("stream", ["fast", "slow"])
def test_a_changed_frame_changes_caption_logits_through_each_stream_alone(tokenizer, build, stream):
    model = build()
    batch = make_batch(tokenizer, ["<video> Un gatto nero."], pixel_values_videos=pixels())
    changed = batch["pixel_values_videos"].clone()
    changed[0, 1] = changed[0, 1].flip(-1)
    other = "slow" if stream == "fast" else "fast"
    rows = getattr(SPEC, f"{other}_rows")
    getattr(model.vision_resampler, other).forward = lambda x: x.new_zeros(len(x), rows, 32)
    before = model(**batch).logits[0, SPEC.rows :]
    after = model(**batch | {"pixel_values_videos": changed}).logits[0, SPEC.rows :]
    assert (before - after).abs().max() > 1e-6


def test_the_order_of_frames_matters(tokenizer, build):
    model = build()
    batch = make_batch(tokenizer, ["<video> Un gatto nero."], pixel_values_videos=pixels())
    reverse = batch | {"pixel_values_videos": batch["pixel_values_videos"].flip(1)}
    assert (model(**batch).logits[0, -1] - model(**reverse).logits[0, -1]).abs().max() > 1e-6


@pytest.mark.parametrize("layer", [0, 1, -1, -2, 3])
def test_the_selected_layer_is_honoured(build, layer):
    model = build(select_layer=layer)
    frames = torch.randn(2, 3, 56, 56)
    tower = model.vision_tower
    hidden = tower.vision_model(frames, output_hidden_states=True).hidden_states
    assert torch.equal(tower(frames), hidden[layer][:, 1:])


def test_a_layer_that_does_not_exist_is_an_error(build):
    with pytest.raises(ValueError, match="mm_vision_select_layer 4"):
        build(select_layer=4)


def test_padding_does_not_change_a_samples_loss(tokenizer, build):
    model = build()
    clip = pixels()
    alone = make_batch(tokenizer, ["<video> Il cane."], pixel_values_videos=clip)
    long = "<video> Due uomini giocano a scacchi in piazza e il cane corre nel prato."
    padded = make_batch(tokenizer, ["<video> Il cane.", long], pixel_values_videos=torch.cat([clip, pixels()]))
    padded["labels"][1] = IGNORE_INDEX
    assert torch.allclose(model(**alone).loss, model(**padded).loss, atol=1e-6)


def test_a_mixed_batch_equals_its_samples(tokenizer, build):
    """Text, image, video, and a sample of two videos and an image, in one batch and alone."""
    model = build()
    texts = ["Un gatto.", "<image> Il lago.", "<video> Il cane.", "<video> prima <image> poi <video> dopo."]
    videos, images = pixels(3), torch.randn(2, 3, 56, 56)
    batch = make_batch(tokenizer, texts, pixel_values_videos=videos, pixel_values=images)
    together = model(**batch).logits
    own = [{}, {"pixel_values": images[:1]}, {"pixel_values_videos": videos[:1]},
           {"pixel_values_videos": videos[1:], "pixel_values": images[1:]}]  # fmt: skip
    for b, (text, vision) in enumerate(zip(texts, own, strict=True)):
        alone = model(**make_batch(tokenizer, [text], **vision)).logits[0]
        assert torch.allclose(alone, together[b, : len(alone)], atol=1e-5), text


def test_features_equal_pixels(tokenizer, build):
    model = build()
    clip = pixels(2)
    features = model.vision_tower(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
    texts = ["<video> Un gatto.", "<video> Il cane."]
    with_pixels = model(**make_batch(tokenizer, texts, pixel_values_videos=clip)).loss
    assert torch.allclose(with_pixels, model(**make_batch(tokenizer, texts, video_features=features)).loss)


@pytest.mark.parametrize("videos", [0, 1, 3])
def test_a_count_mismatch_raises(tokenizer, build, videos):
    model = build()
    batch = make_batch(tokenizer, ["<video> Un gatto.", "<video> Il cane."])
    batch["num_videos"] = torch.tensor([1, videos - 1]) if videos else torch.tensor([0, 0])
    vision = {"pixel_values_videos": pixels(videos)} if videos else {}
    with pytest.raises(ValueError, match=r"sample 's[01]': 10 video positions .* (0|20) feature rows"):
        model(**batch, **vision)


def test_a_text_batch_in_training_gives_vision_zero_gradients_not_none(tokenizer, build):
    model = build().train()
    model(**make_batch(tokenizer, ["Un gatto nero."])).loss.backward()
    vision = [p for n, p in model.named_parameters() if n.startswith(("mm_projector", "vision_resampler"))]
    assert vision
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in vision)
    assert model.transformer.wte.weight.grad.abs().sum() > 0


def test_an_overflow_in_unused_rows_does_not_poison_a_text_batch(tokenizer, build):
    model = build().train()
    with torch.no_grad():
        model.vision_resampler.slow.norm.weight.fill_(torch.inf)
    loss = model(**make_batch(tokenizer, ["Un gatto nero."])).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.transformer.wte.weight.grad).all()


def test_a_checkpoint_reloads_with_vision_and_identical_logits(tmp_path, tokenizer, build):
    model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vision_tower."):
                parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, LlavaGPT2ForCausalLM)
    assert again.lm_head.weight is again.transformer.wte.weight
    batch = make_batch(tokenizer, ["<video> Un gatto."], pixel_values_videos=pixels())
    assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in again.named_parameters()}
    assert all(torch.equal(p, dict(again.named_parameters())[n]) for n, p in model.named_parameters())


def test_the_tower_is_frozen_after_loading_and_stays_in_evaluation_mode(tmp_path, build):
    build().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert not any(p.requires_grad for p in model.vision_tower.parameters())
    assert not model.vision_tower.vision_model.training


def test_the_tower_stays_out_of_the_checkpoint_unless_asked(tmp_path, build):
    from safetensors import safe_open

    def keys(folder):
        with safe_open(folder / "model.safetensors", "pt") as file:
            return [k for k in file.keys() if k.startswith("vision_tower.")]  # noqa: SIM118

    build().save_pretrained(tmp_path / "reference")
    model = build(storage="checkpoint")
    model.save_pretrained(tmp_path / "checkpoint")
    assert keys(tmp_path / "reference") == []
    assert len(keys(tmp_path / "checkpoint")) == len(model.vision_tower.state_dict())


def test_a_stored_tower_needs_no_folder(tmp_path, tokenizer, assets, build):
    model = build(storage="checkpoint")
    model.config.mm_vision_tower = "/nowhere"
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = make_batch(tokenizer, ["<video> Un gatto."], pixel_values_videos=pixels())
    assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_another_tower_is_noticed(tmp_path, assets, build):
    build().save_pretrained(tmp_path / "model")
    save_tower(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="not the one that this model was trained with"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", vision_tower=str(tmp_path / "other"))
    shutil.copytree(assets.tower, tmp_path / "moved")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model", vision_tower=str(tmp_path / "moved"))
    with pytest.raises(FileNotFoundError, match="--vision_tower"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", vision_tower=str(tmp_path / "absent"))


def test_missing_weights_are_an_error(tmp_path, build):
    from safetensors.torch import load_file, save_file

    build().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["mm_projector.1.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="mm_projector.1.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_another_kind_of_model_is_refused(assets, tmp_path):
    shutil.copytree(assets.gpt2, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"model_type": "t5"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'t5', which transformers has no causal language model for"):
        load_language_model(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="model type 't5', expected llava_<type>"):
        load_pretrained_model(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_pretrained_model(tmp_path / "nothing")


def test_unknown_parts_are_errors(build):
    with pytest.raises(ValueError, match="mm_everything"):
        set_trainable(build(), ["mm_everything"])


@pytest.mark.parametrize("parts", ["mm_mlp_adapter", "mm_language_model", "mm_vision_tower,mm_vision_resampler"])
def test_exactly_the_named_parts_train(build, parts):
    from llava.model.builder import part_of

    model = build(parts=parts)
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == set(parts.split(","))


def test_a_trainable_tower_gets_gradients(tokenizer, build):
    model = build(parts="mm_vision_tower", select_layer=3).train()
    model(**make_batch(tokenizer, ["<video> Un gatto."], pixel_values_videos=pixels())).loss.backward()
    layers = [p for n, p in model.vision_tower.named_parameters() if ".encoder." in n]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layers)


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"do_sample": False, "num_beams": 3}]
)
def test_cached_generation_equals_uncached(tokenizer, build, options):
    model = build()
    ids = torch.tensor([tokenizer(expand_placeholders("<video> Un", SPEC))["input_ids"]] * 2)
    clips, generated = pixels(2), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        generated.append(
            model.generate(
                ids, attention_mask=torch.ones_like(ids), pixel_values_videos=clips, max_new_tokens=8,
                pad_token_id=tokenizer.eos_token_id, use_cache=use_cache, **options,
            )
        )  # fmt: skip
    assert torch.equal(*generated)
    assert torch.equal(generated[0][:, : ids.shape[1]], ids)


def test_generation_sees_the_video_and_greedy_equals_a_plain_loop(tokenizer, build):
    model = build()
    ids = torch.tensor([tokenizer(expand_placeholders("<video>", SPEC))["input_ids"]])
    clip = pixels()
    expected = ids
    for _ in range(6):
        step = model(expected, pixel_values_videos=clip).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, step], dim=1)
    found = model.generate(ids, pixel_values_videos=clip, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_keys_and_values_are_taken_under_both_of_their_names(tokenizer, build, name):
    """transformers 5.24 renamed them: unseen, they were a prompt in pieces at the second token."""
    model = build()
    ids = torch.tensor([tokenizer(expand_placeholders("<video> Un gatto", SPEC))["input_ids"]])
    embeds, _ = model.prepare_inputs_labels_for_multimodal_video(ids, pixel_values_videos=pixels())
    with torch.no_grad():
        first = model(inputs_embeds=embeds, use_cache=True)[CACHE]
        assert first.get_seq_length() == ids.shape[1]
        longer = torch.cat([ids, ids[:, -1:]], dim=1)
        inputs = model.prepare_inputs_for_generation(
            longer, **{name: first}, next_sequence_length=1, prompt_embeds=embeds, use_cache=True
        )
        assert inputs[CACHE] is first and inputs["input_ids"].shape == (1, 1)
        whole = torch.cat([embeds, model.get_input_embeddings()(ids[:, -1:])], dim=1)
        expected = model(inputs_embeds=whole).logits[:, -1]
        found = model(input_ids=ids[:, -1:], **{name: first}, use_cache=True).logits[:, -1]
    assert torch.allclose(found, expected, atol=1e-4)


def test_left_padding_does_not_change_what_is_generated(tokenizer, build):
    from llava.eval.captioning import generate

    model = build()
    clips = pixels(2)
    prompts = [expand_placeholders(t, SPEC) for t in ("<video>", "<video> Due uomini giocano a")]
    together = generate(model, tokenizer, prompts, {"max_new_tokens": 8}, pixel_values_videos=clips)
    alone = [
        generate(model, tokenizer, [p], {"max_new_tokens": 8}, pixel_values_videos=clips[i : i + 1])[0]
        for i, p in enumerate(prompts)
    ]
    assert together == alone


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["pixel_values_videos", "video_features"])
def test_values_that_are_not_finite_are_an_error_and_no_empty_caption(tokenizer, build, name, value):
    from llava.eval.captioning import generate

    model = build()
    vision = (
        pixels(2)
        if name == "pixel_values_videos"
        else model.vision_tower(pixels(2).flatten(0, 1)).unflatten(0, (2, -1))
    )
    vision[1, 0, 0, 0] = value
    prompts = [expand_placeholders("<video>", SPEC)] * 2
    with pytest.raises(ValueError, match=rf"{name}: items \[1\] of 2 hold NaN or infinite"):
        generate(model, tokenizer, prompts, **{name: vision})


def test_a_text_model_refuses_video(tokenizer, build):
    model = build(vision=False)
    ids = torch.tensor([tokenizer("Un gatto")["input_ids"]])
    with pytest.raises(ValueError, match="without rows"):
        model(ids, pixel_values_videos=pixels())
    with pytest.raises(ValueError, match="text alone"):
        model.generate(ids, pixel_values_videos=pixels())


def test_visual_tokens_must_be_registered_before_video(assets, tokenizer, build):
    model = build()
    model.config.visual_token_ids = None
    with pytest.raises(ValueError, match="add_visual_tokens"):
        model(torch.tensor([[1, 2]]), pixel_values_videos=pixels())
    add_visual_tokens(tokenizer, model)


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 2, 3])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_unused_parameters_of_a_tower_are_those_without_gradient(assets, layer, feature):
    tower = load_vision_tower(str(assets.tower), layer, feature)
    tower.requires_grad_(True)
    tower(torch.randn(2, 3, 56, 56)).square().sum().backward()
    silent = {n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set(tower.unused_parameters())
