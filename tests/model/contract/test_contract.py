"""What the trainer asks of a language model, asked of every family; `families.py` says how to add one."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.packing import TrainingCollator
from llava.data.prompt import expand_placeholders, preprocess_plain_lm
from llava.eval.captioning import generate
from llava.model.builder import (
    COORDINATE_GROUPS,
    GROUPS,
    KEY_BIASES,
    add_visual_tokens,
    load_language_model,
    parameter_groups,
)
from llava.model.capabilities import embedding_std, keeps_samples_apart
from llava.model.language_model import causal_lm
from llava.train.preflight.run import PREFLIGHT_FILE
from tests.conftest import CAPTIONS, SPEC
from tests.model.contract.families import LEAKING, tiny_config
from tests.model.test_llava_gpt2 import make_batch, pixels
from tests.train.runs import alarms, train

TEXTS = [f"<video> {CAPTIONS[0]}", f"<video> {CAPTIONS[4]}"]


def grads(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_grads(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_weights_are_those_of_the_plain_model_bit_for_bit(family):
    model = load_language_model(str(family.folder)).eval()
    ours, theirs = model.state_dict(), family.plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    ids = torch.tensor([family.tokenizer(CAPTIONS[0])["input_ids"]])
    assert torch.equal(model(ids).logits, family.plain(ids).logits)


def test_the_class_has_a_stable_name_in_its_module(family):
    cls = type(family.model)
    assert cls.__name__.startswith("Llava") and cls.__name__.endswith("ForCausalLM")
    assert getattr(causal_lm, cls.__name__) is cls
    assert getattr(causal_lm, cls.config_class.__name__) is cls.config_class
    assert cls.config_class.model_type == f"llava_{family.name}"


def test_a_gradient_reaches_every_tensor_that_trains(family):
    model = family.copy()
    model(**make_batch(family.tokenizer, TEXTS, pixel_values_videos=pixels(2))).loss.backward()
    # Softmax does not change with a key's bias.
    dead = [
        n for n, p in model.named_parameters()
        if p.requires_grad and not n.endswith(KEY_BIASES) and not (p.grad is not None and p.grad.any())
    ]  # fmt: skip
    assert dead == []
    assert all(not p.requires_grad for p in model.vision_tower.parameters())
    absent = {"head", "resampler base", "tower", *COORDINATE_GROUPS}
    assert set(parameter_groups(model).values()) >= set(GROUPS) - absent


@pytest.mark.parametrize("stream", ["fast", "slow"])
def test_each_stream_alone_reaches_the_words(family, stream):
    batch = make_batch(family.tokenizer, TEXTS[:1], pixel_values_videos=pixels())
    before = family.model(**batch).logits[:, SPEC.rows :]
    module = getattr(family.model.vision_resampler, stream)
    handle = module.register_forward_hook(lambda module, inputs, output: output.flip(1))
    try:
        after = family.model(**batch).logits[:, SPEC.rows :]
    finally:
        handle.remove()
    assert (before - after).abs().max() > 1e-5


def test_a_count_that_does_not_match_is_an_error(family):
    batch = make_batch(family.tokenizer, TEXTS, pixel_values_videos=pixels(3))
    with pytest.raises(ValueError, match=r"2 video\(s\), but 3 were given|30 feature rows"):
        family.model(**batch | {"num_videos": torch.tensor([1, 1])})
    batch["num_videos"] = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"sample 's1': 10 video positions .* 20 feature rows"):
        family.model(**batch)


def test_the_loss_at_supervised_positions_is_that_of_the_class_with_its_gradients(family):
    """Soft caps and scales of the logits included."""
    batch = make_batch(family.tokenizer, TEXTS, pixel_values_videos=pixels(2))
    ours, theirs = family.copy(), family.copy()
    loss, own = ours(**batch).loss, theirs.own_loss(**batch)
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-6)
    loss.backward()
    own.backward()
    assert_same_grads(grads(ours), grads(theirs))


def test_logits_of_chosen_positions_are_those_of_all(family):
    batch = make_batch(family.tokenizer, TEXTS[:1], pixel_values_videos=pixels())
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    places = torch.tensor([SPEC.rows, SPEC.rows + 2])
    everywhere = family.model(**inputs).logits
    torch.testing.assert_close(family.model(**inputs, logits_to_keep=places).logits, everywhere[:, places])


def packed(family, pack: bool) -> dict:
    """Six samples, those of text and of video in turn, as training lays them out."""
    samples = []
    for i, caption in enumerate(CAPTIONS):
        turns = [{"from": "gpt", "value": expand_placeholders(f"<video> {caption}" if i % 2 else caption, SPEC)}]
        found = preprocess_plain_lm([turns], family.tokenizer, has_image=bool(i % 2))
        samples.append({"sample_id": str(i), "input_ids": found["input_ids"][0], "labels": found["labels"][0]})
        if i % 2:
            generator = torch.Generator().manual_seed(i)
            samples[-1]["pixel_values_videos"] = torch.randn(1, SPEC.num_frames, 3, 56, 56, generator=generator)
    pad = family.tokenizer.eos_token_id
    if not pack:
        return DataCollatorForSupervisedDataset(pad)(samples)
    batch = TrainingCollator(pad, templates=family.model.visual_templates())(samples)
    assert len(batch["input_ids"]) < len(samples)
    return batch


def losses_by_sample(model, batch: dict) -> dict[str, torch.Tensor]:
    supervised = batch["labels"][:, 1:] != -100
    losses = model(**batch, return_logits=False).token_losses
    owner = batch.get("segment_ids", torch.arange(len(losses))[:, None].expand_as(batch["labels"]))[:, 1:]
    return {name: losses[supervised & (owner == i)] for i, name in enumerate(batch["sample_ids"])}


def test_packed_samples_have_the_losses_they_have_alone_or_are_not_packed(family):
    alone, together = (losses_by_sample(family.model, packed(family, pack)) for pack in (False, True))
    assert alone.keys() == together.keys()
    error = max(float((alone[name] - together[name]).abs().max()) for name in alone)
    if family.name in LEAKING:
        assert not keeps_samples_apart(family.model) and error > 1e-4
    else:
        assert keeps_samples_apart(family.model) and error < 1e-4


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"do_sample": False, "num_beams": 3}]
)
def test_cached_generation_equals_uncached(family, options):
    ids = torch.tensor([family.tokenizer(expand_placeholders("<video> Un", SPEC))["input_ids"]] * 2)
    clips, generated = pixels(2), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        generated.append(
            family.model.generate(
                ids, attention_mask=torch.ones_like(ids), pixel_values_videos=clips, max_new_tokens=6,
                pad_token_id=family.tokenizer.eos_token_id, use_cache=use_cache, **options,
            )
        )  # fmt: skip
    assert torch.equal(*generated)


def test_generation_is_the_plain_loop_and_sees_the_video(family):
    ids = torch.tensor([family.tokenizer(expand_placeholders("<video>", SPEC))["input_ids"]])
    clip, expected = pixels(), ids
    never = sorted(family.model.config.visual_token_ids.values())
    for _ in range(4):
        logits = family.model(expected, pixel_values_videos=clip).logits[:, -1]
        logits[:, never] = -torch.inf
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    found = family.model.generate(
        ids, attention_mask=torch.ones_like(ids), pixel_values_videos=clip, max_new_tokens=4, do_sample=False,
        eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_left_padding_does_not_change_what_is_generated(family):
    clips = pixels(2)
    prompts = [expand_placeholders(t, SPEC) for t in ("<video>", "<video> Due uomini giocano a")]
    options = {"max_new_tokens": 6}
    together = generate(family.model, family.tokenizer, prompts, options, pixel_values_videos=clips)
    alone = [
        generate(family.model, family.tokenizer, [p], options, pixel_values_videos=clips[i : i + 1])[0]
        for i, p in enumerate(prompts)
    ]
    assert together == alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_logits_of_words(family, side):
    ids = torch.tensor(family.tokenizer(CAPTIONS[0])["input_ids"])[:4]
    pad, mask = torch.full((3,), 5), torch.tensor([1] * 4 + [0] * 3)
    row, mask = (torch.cat([pad, ids]), mask.flip(0)) if side == "left" else (torch.cat([ids, pad]), mask)
    places = (mask.cumsum(0) - 1).clamp(min=0)
    padded = family.model(row[None], attention_mask=mask[None], position_ids=places[None]).logits
    torch.testing.assert_close(padded[:, mask.bool()], family.model(ids[None]).logits, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_opens_bit_for_bit_with_its_ties(family, tmp_path):
    family.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(family.model)
    ours, theirs = family.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    for model in (family.model, again):
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same == family.plain.config.tie_word_embeddings
    batch = make_batch(family.tokenizer, TEXTS[:1], pixel_values_videos=pixels())
    assert torch.equal(family.model(**batch).logits, again(**batch).logits)


def test_accumulated_batches_have_the_gradient_of_the_large_one(family):
    clips = pixels(2)
    whole, parts = family.copy(), family.copy()
    batch = make_batch(family.tokenizer, TEXTS, pixel_values_videos=clips)
    items = (batch["labels"] != -100).sum()
    whole(**batch, num_items_in_batch=items).loss.backward()
    for i, text in enumerate(TEXTS):
        piece = make_batch(family.tokenizer, [text], pixel_values_videos=clips[i : i + 1])
        parts(**piece, num_items_in_batch=items).loss.backward()
    assert_same_grads(grads(parts), grads(whole))


def test_a_rank_without_targets_adds_nothing_to_those_of_others(family):
    model = family.copy()
    batch = make_batch(family.tokenizer, TEXTS[:1], pixel_values_videos=pixels())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch, num_items_in_batch=torch.tensor(7)).loss
    loss.backward()
    assert loss == 0
    assert not any(grad.any() for grad in grads(model).values())


def test_fresh_rows_have_the_spread_of_the_words_beside_them(family):
    """GPT-2 keeps the spread that its loss curves were measured with."""
    rows = family.model.encode_videos(pixels(4)).detach()
    expected = 0.2 if family.name == "gpt2" else embedding_std(family.model)
    assert float(rows.std()) == pytest.approx(expected, rel=0.3)
    assert rows.shape[-1] == family.model.get_input_embeddings().embedding_dim


def test_a_vocabulary_that_is_larger_than_the_tokenizer_keeps_its_size(family, tmp_path):
    torch.manual_seed(0)
    words = len(family.tokenizer)
    AutoModelForCausalLM.from_config(tiny_config(family.name, words + 24)).save_pretrained(tmp_path)
    model = load_language_model(str(tmp_path))
    ids = add_visual_tokens(family.tokenizer, model)
    assert model.get_input_embeddings().num_embeddings == words + 24 == model.config.vocab_size
    assert max(ids.values()) < words


def test_a_run_is_silent(family, assets, feature_cache, tmp_path, caplog):
    """No check of pre-flight fails or warns, no alarm sounds, the checkpoint is the live model's."""
    with caplog.at_level("INFO"):
        train(
            assets, tmp_path / "run", model_name_or_path=family.folder, feature_cache=feature_cache, max_steps=4,
            controls=False,
        )  # fmt: skip
    checks = json.loads((tmp_path / "run" / PREFLIGHT_FILE).read_text())["checks"]
    # Of which class a tokenizer is read as, and so whether it puts a space in front, is transformers' affair.
    assert [c for c in checks if c["status"] in ("FAIL", "warning") and c["check"] != "text form"] == []
    assert "loss of the class, video" in {c["check"] for c in checks}
    assert alarms(tmp_path / "run") == []
    assert "is that of the live model" in caplog.text
    assert ("one sample a row" in caplog.text) == (family.name in LEAKING)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == f"llava_{family.name}"
