"""What the trainer asks of a language model with coordinates, asked of the families that differ in their head or their
embeddings: tied and not, scaled, with a soft cap.
"""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from llava.constants import COORDINATE_PLACEHOLDERS, IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.coordinates import CoordinateTokens
from llava.data.packing import TrainingCollator
from llava.data.prompt import expand_placeholders, preprocess_plain_lm
from llava.eval.loss import token_losses
from llava.model.builder import (
    COORDINATE_GROUPS,
    MM_PARTS,
    add_coordinate_tokens,
    parameter_groups,
    part_of,
    set_trainable,
)
from llava.model.lora import LoraSettings, add_adapters, merge_adapters
from llava.model.packed_attention import take_way
from tests.conftest import SPEC, make_tokenizer
from tests.model.contract.conftest import Family
from tests.model.contract.test_graphs import WAITING, Operations

FAMILIES = ("gpt2", "llama", "qwen3", "gemma2", "gemma3_text")
PARTS = "mm_language_model,mm_mlp_adapter,mm_vision_resampler,mm_coordinates"
TEXTS = {
    "<video> Un gatto da <TEMP-INPUT> si muove {<TEMP-OUTPUT><TEMP-OUTPUT>}": (0.123, 0.5, 0.891),
    "Una barca [<WIDTH-OUTPUT><HEIGHT-OUTPUT><WIDTH-099><HEIGHT-042>] e basta": (0.31, 1.0),
    "<video> Il cane [<WIDTH-INPUT><HEIGHT-INPUT><WIDTH-OUTPUT><HEIGHT-OUTPUT>]": (0.2, 0.0, 0.777, 0.333),
}


@pytest.fixture(scope="module")
def grounded(made, tmp_path_factory):
    """A family with coordinates, the same one at each call; tests leave it as it is."""

    @cache
    def make(name: str) -> Family:
        family, tokenizer = made(name), make_tokenizer()
        model = copy.deepcopy(family.model)
        tokenizer.add_tokens(list(model.config.visual_token_ids), special_tokens=True)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            add_coordinate_tokens(tokenizer, model)
        set_trainable(model, PARTS)
        return Family(name, family.folder, family.plain, model.eval(), tokenizer)

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, grounded) -> Family:
    return grounded(request.param)


def samples(family: Family) -> list[dict]:
    tokens = CoordinateTokens.of(family.tokenizer)
    found = []
    for i, (text, values) in enumerate(TEXTS.items()):
        has_clip = "<video>" in text
        turns = [{"from": "gpt", "value": expand_placeholders(text, SPEC)}]
        sample = preprocess_plain_lm([turns], family.tokenizer, has_image=has_clip)
        labels, numbers = tokens.place(sample["input_ids"][0], sample["labels"][0], values)
        found.append({"sample_id": str(i), "input_ids": sample["input_ids"][0], "labels": labels})
        found[-1]["coordinates"] = numbers
        if has_clip:
            generator = torch.Generator().manual_seed(i)
            found[-1]["pixel_values_videos"] = torch.randn(1, SPEC.num_frames, 3, 56, 56, generator=generator)
    return found


def batch_of(family: Family) -> dict:
    return DataCollatorForSupervisedDataset(family.tokenizer.eos_token_id)(samples(family))


def plain_logits(model, batch: dict, places: bool = True) -> torch.Tensor:
    """With every coordinate looked up one by one, in a plain model of the class whose head has the tables' rows."""
    model = copy.deepcopy(model)
    tables, names = model.coordinates, {i: n for n, i in model.config.coordinate_token_ids.items()}
    words = {"TEMP": "temporal", "HEIGHT": "spatial_height", "WIDTH": "spatial_width"}
    with torch.no_grad():
        model.coordinates = None
        patches = model._project

        def project(pixels, features):
            found = patches(pixels, features)
            for v, t, p in torch.cartesian_prod(*map(torch.arange, found.shape[:3])).tolist():
                rows, columns = model.config.mm_patch_grid
                parts = (("temporal", t, found.shape[1], True), ("spatial_height", p // columns, rows, False))
                for axis, at, size, corners in (*parts, ("spatial_width", p % columns, columns, False)):
                    both = (getattr(tables, f"{axis}_{way}_embeddings") for way in ("input", "output"))
                    mean = sum(both) / 2
                    resized = F.interpolate(mean.T[None], size=size, mode="linear", align_corners=corners)[0].T
                    found[v, t, p] += resized[at]
            return found

        model._project = project if places else patches
        embeds, _ = model.prepare_inputs_labels_for_multimodal_video(
            batch["input_ids"], pixel_values_videos=batch["pixel_values_videos"], num_videos=batch["num_videos"]
        )
        for row, at in torch.cartesian_prod(*map(torch.arange, batch["input_ids"].shape)).tolist():
            name = names.get(int(batch["input_ids"][row, at]))
            if name is None:
                continue
            axis, which = name.strip("<>").split("-")
            table = getattr(tables, f"{words[axis]}_input_embeddings")
            place = float(batch["coordinates"][row, at]) * 99 if name in COORDINATE_PLACEHOLDERS else int(which)
            low = int(place)
            embeds[row, at] = table[low] * (1 - place + low) + table[min(low + 1, 99)] * (place - low)
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone())
        for i, name in names.items():
            if name not in COORDINATE_PLACEHOLDERS:
                axis, which = name.strip("<>").split("-")
                head.weight[i] = getattr(tables, f"{words[axis]}_output_embeddings")[int(which)]
        return type(model).class_forward(model, inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits


def plain_losses(logits: torch.Tensor, family: Family, batch: dict) -> torch.Tensor:
    """Target by target, (B, L - 1)."""
    logs, losses = logits.log_softmax(-1), torch.zeros_like(batch["labels"][:, 1:], dtype=torch.float32)
    tokens = family.tokenizer.convert_ids_to_tokens
    for row, at in (batch["labels"][:, 1:] != IGNORE_INDEX).nonzero().tolist():
        label, number = int(batch["labels"][row, at + 1]), float(batch["coordinates"][row, at + 1])
        if number < 0:
            losses[row, at] = -logs[row, at, label]
            continue
        axis, low = tokens(label).strip("<>").split("-")[0], int(number * 99)
        share = number * 99 - low
        for k, weight in ((low, 1 - share), (min(low + 1, 99), share)):
            target = family.tokenizer.convert_tokens_to_ids(f"<{axis}-{k:03d}>")
            losses[row, at] -= weight * logs[row, at, target]
    return losses


def test_logits_and_losses_are_those_of_a_plain_computation(family):
    batch = batch_of(family)
    found, logits = family.model(**batch), plain_logits(family.model, batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], logits[real], rtol=1e-4, atol=1e-5)
    losses = plain_losses(logits, family, batch)
    torch.testing.assert_close(found.token_losses, losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(token_losses(family.model, batch), losses, rtol=1e-4, atol=1e-4)
    one = {k: v[1:2] for k, v in batch.items() if torch.is_tensor(v) and k not in ("pixel_values_videos", "num_videos")}
    own = family.model.own_loss(**{k: v for k, v in one.items() if k != "num_images"})
    torch.testing.assert_close(own, losses[1].sum() / (one["labels"] != IGNORE_INDEX).sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.loss, losses.sum() / (batch["labels"] != IGNORE_INDEX).sum(), rtol=1e-4, atol=0)


def test_a_gradient_reaches_every_table_and_no_dead_row(family):
    model = family.copy()
    model(**batch_of(family)).loss.backward()
    trains = {n: p for n, p in model.named_parameters() if n.startswith("coordinates.")}
    assert len(trains) == 6 and all(bool(p.grad.any()) for p in trains.values())
    assert set(parameter_groups(model).values()) >= set(COORDINATE_GROUPS)
    tokens = model.coordinates.token_ids
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        assert not weight.grad[tokens].any()


def test_a_batch_without_coordinates_gives_the_tables_a_gradient_of_zeros(family):
    """Other processes wait for it."""
    model, batch = family.copy(), batch_of(family)
    plain = {"input_ids": batch["input_ids"][1:2, :3], "labels": batch["labels"][1:2, :3]}
    model(**plain).loss.backward()
    tables = dict(model.coordinates.named_parameters())
    assert all(p.grad is not None for p in tables.values())
    assert not any(p.grad.any() for n, p in tables.items() if "input" in n)
    model.zero_grad()
    plain["labels"] = torch.full_like(plain["labels"], IGNORE_INDEX)
    model(**plain, num_items_in_batch=torch.tensor(3)).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in tables.values())


def test_packed_samples_have_the_losses_they_have_alone(family):
    found, pad = samples(family), family.tokenizer.eos_token_id
    alone = family.model(**DataCollatorForSupervisedDataset(pad)(found), return_logits=False)
    labels = batch_of(family)["labels"]
    templates = family.model.visual_templates()
    expected = alone.token_losses[labels[:, 1:] != IGNORE_INDEX]
    for options in ({"multiple": 8}, {"flat": True}, {"flat": True, "multiple": 16}):
        model = family.copy().eval()
        if options.get("flat"):
            if family.name == "gemma2":
                continue  # Its soft cap of the attention has no such kernel.
            take_way(model, "varlen")
        batch = TrainingCollator(pad, templates=templates, **options)(found)
        if options.get("flat"):
            assert batch["coordinates"].shape == batch["input_ids"].shape and len(batch["input_ids"]) == 1
        order = [int(name) for name in batch["sample_ids"]]
        together = model(**batch, return_logits=False).token_losses
        segments, supervised = batch["segment_ids"][:, 1:], batch["labels"][:, 1:] != IGNORE_INDEX
        losses = {order[s]: together[supervised & (segments == s)] for s in range(len(order))}
        torch.testing.assert_close(torch.cat([losses[i] for i in range(len(order))]), expected, rtol=1e-4, atol=1e-4)


def prompt_of(family: Family) -> dict:
    """A clip, a number that is told, and room for what is asked."""
    (sample, *_) = samples(family)
    length = int((sample["coordinates"] >= 0).nonzero()[1])
    ids = sample["input_ids"][None, :length].repeat(2, 1)
    generator = torch.Generator().manual_seed(5)
    return {
        "input_ids": ids, "coordinates": sample["coordinates"][None, :length].repeat(2, 1),
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(2, SPEC.num_frames, 3, 56, 56, generator=generator),
    }  # fmt: skip


def writes_coordinates(family: Family):
    """The model with tables for writing that win against words."""
    model = family.copy().eval()
    with torch.no_grad():
        for name, table in model.coordinates.named_parameters():
            if "output" in name:
                table.mul_(30)
    return model


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"do_sample": False, "num_beams": 3}]
)
def test_cached_generation_of_coordinates_equals_uncached(family, options):
    model, found = writes_coordinates(family), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(
            model.generate(
                **prompt_of(family), max_new_tokens=5, pad_token_id=family.tokenizer.eos_token_id, use_cache=use_cache,
                **options,
            )
        )  # fmt: skip
    assert torch.equal(*found)
    new = found[0][:, prompt_of(family)["input_ids"].shape[1] :]
    assert bool(torch.isin(new, model.coordinates.token_ids).any())


def test_what_was_generated_is_fed_back_as_the_model_reads_it(family):
    """The plain loop, whose every step is a forward pass of the whole text; placeholders are never written."""
    model, prompt = writes_coordinates(family), prompt_of(family)
    ids, numbers = prompt["input_ids"][:1], prompt["coordinates"][:1]
    never = [*model.config.visual_token_ids.values(), *(model.coordinates.ids[n] for n in COORDINATE_PLACEHOLDERS)]
    clips = prompt["pixel_values_videos"][:1]
    for _ in range(4):
        logits = model(ids, coordinates=numbers, pixel_values_videos=clips).logits[:, -1]
        logits[:, never] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        numbers = F.pad(numbers, (0, 1), value=-1.0)
    given = {k: v[:1] for k, v in prompt.items()}
    found = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert torch.equal(found, ids)


def test_a_prompt_without_its_numbers_is_an_error(family):
    prompt = {k: v for k, v in prompt_of(family).items() if k != "coordinates"}
    with pytest.raises(ValueError, match="<TEMP-INPUT> without a number"):
        family.model.generate(**prompt, max_new_tokens=1)


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_a_checkpoint_opens_bit_for_bit(grounded, name, tmp_path):
    family = grounded(name)
    family.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours, theirs = family.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and sum(n.startswith("coordinates.") for n in ours) == 6
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert torch.equal(family.model.coordinates.index_of, again.coordinates.index_of)
    batch = batch_of(family)
    assert torch.equal(family.model(**batch).logits, again(**batch).logits)


SWITCHES = ("mm_coordinates_in_vision", "mm_coordinates_reparameterized")


def without(family: Family, switch: str) -> torch.nn.Module:
    """The model of the same weights whose config says that it does without one ingredient."""
    config = copy.deepcopy(family.model.config)
    assert getattr(config, switch) is True
    setattr(config, switch, False)
    model = type(family.model)(config)
    model.vision_tower = copy.deepcopy(family.model.vision_tower)
    model.load_state_dict(family.model.state_dict())
    set_trainable(model, PARTS)
    return model.eval()


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_patches_may_be_left_without_places(grounded, name):
    """What is computed is then that of a model whose numbers are read and written alone, and batches of words still
    give the tables their gradient of zeros."""
    family = grounded(name)
    model, batch = without(family, SWITCHES[0]), batch_of(family)
    found = model(**batch)
    expected = plain_logits(model, batch, places=False)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], expected[real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.logits[real], family.model(**batch).logits[real], atol=1e-3)
    text = {k: v[1:2, :3] for k, v in batch.items() if k in ("input_ids", "labels")}
    model.train()(**text).loss.backward()
    assert all(p.grad is not None for p in model.coordinates.parameters())
    model.zero_grad()
    clip = {k: batch[k][:1] for k in ("pixel_values_videos", "num_videos", "input_ids", "labels", "coordinates")}
    model(**clip).loss.backward()
    tables = dict(model.coordinates.named_parameters())
    assert not tables["spatial_width_input_embeddings"].grad.any(), "nothing in this sample reads a width"
    assert tables["temporal_input_embeddings"].grad.any()


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_tables_may_learn_row_by_row(grounded, name):
    """The same values; the gradient with neighbours is the own one plus halves of those beside it."""
    family = grounded(name)
    alone, together, batch = without(family, SWITCHES[1]), family.copy(), batch_of(family)
    losses = [model(**batch).loss for model in (alone, together)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    places = torch.arange(100.0)
    halves = 0.5 ** (places[:, None] - places).abs()
    for (name, own), table in zip(alone.coordinates.named_parameters(), together.coordinates.parameters(), strict=True):
        scale = float(table.grad.abs().max())
        torch.testing.assert_close(own.grad + halves @ own.grad, table.grad, rtol=1e-4, atol=1e-5 * scale)
        assert not torch.allclose(own.grad, table.grad, rtol=0.1, atol=1e-5 * scale), name


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_checkpoint_keeps_what_it_does_without(grounded, switch, tmp_path):
    """And one from before the switches, whose config does not name them, has everything."""
    family = grounded("gpt2")
    model, batch = without(family, switch), batch_of(family)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert getattr(again.config, switch) is False
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.coordinates.reparameterized is (switch == SWITCHES[0])
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in SWITCHES}))
    older = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert older.coordinates.reparameterized
    assert torch.equal(older(**batch).logits, family.model(**batch).logits)


def training_batch(family: Family) -> dict:
    """With features in place of pixels, as training lays them out."""
    features = []
    for sample in samples(family):
        if "pixel_values_videos" in sample:
            del sample["pixel_values_videos"]
            patches = family.model.config.mm_patch_grid[0] * family.model.config.mm_patch_grid[1]
            sample["video_features"] = torch.zeros(1, SPEC.num_frames, patches, family.model.config.mm_hidden_size)
        features.append(sample)
    pad = family.tokenizer.eos_token_id
    batch = TrainingCollator(pad, templates=family.model.visual_templates(), multiple=8)(features)
    return batch | {"num_items_in_batch": torch.tensor(int((batch["labels"] != IGNORE_INDEX).sum()))}


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_a_training_step_never_waits_for_the_device(grounded, name):
    """On `meta`, where there are no values, whatever asks for one raises."""
    family = grounded(name)
    model = family.copy().to("meta")
    inputs = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in training_batch(family).items()}
    model(**inputs).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)


def test_no_operation_of_a_step_sizes_its_result_by_values(grounded, monkeypatch):
    """Which a device would be waited for; a look at values on CPU is left out, as it is elsewhere."""
    family = grounded("gpt2")
    batch, model = training_batch(family), family.copy()
    for module in ("loss", "coordinates"):
        monkeypatch.setattr(f"llava.model.{module}.can_look", lambda values: False)
    with Operations() as seen:
        model(**batch).loss.backward()
    assert "embedding_dense_backward" in seen.names and not seen.names & WAITING


def test_a_training_step_is_one_graph(grounded):
    """`fullgraph` refuses a graph with a break."""
    family = grounded("gpt2")
    batch = training_batch(family)
    torch.compiler.reset()
    model, plain = family.copy(), family.copy()
    loss, expected = torch.compile(model, backend="eager", fullgraph=True)(**batch).loss, plain(**batch).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, table), own in zip(model.coordinates.named_parameters(), plain.coordinates.parameters(), strict=True):
        torch.testing.assert_close(table.grad, own.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_checkpointing_and_half_precision_have_the_gradients_of_the_plain_step(grounded, monkeypatch):
    """Activations and pieces of the logits that are computed again, and bf16 as far as it goes."""
    family = grounded("llama")
    batch, found = training_batch(family), []
    for again, kind in ((False, None), (True, None), (False, torch.bfloat16)):
        model = family.copy()
        if again:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            monkeypatch.setattr("llava.model.loss.CHUNK_LOGITS", 4 * model.config.vocab_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is not None):
            model(**batch).loss.backward()
        found.append({n: p.grad for n, p in model.coordinates.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)
        assert float(F.cosine_similarity(found[2][name].flatten(), grad.flatten(), dim=0)) > 0.99


def test_weights_in_half_precision_read_numbers_whole(grounded):
    """Tables and words in bf16; the numbers stay as they are, and a token is its row to the bit."""
    family = grounded("llama")
    model = family.copy().eval().to(torch.bfloat16)
    batch = batch_of(family)
    embeds = model.embed(batch["input_ids"], batch["coordinates"])
    assert embeds.dtype == torch.bfloat16
    at = batch["input_ids"] == model.coordinates.ids["<HEIGHT-042>"]
    assert torch.equal(embeds[at][0], model.coordinates.spatial_height_input_embeddings[42])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(torch.bfloat16)
    with torch.no_grad():
        found, expected = model(**batch).loss, family.model(**batch_of(family)).loss
    assert float(found) == pytest.approx(float(expected), rel=0.02)


def test_adapters_train_beside_the_tables(grounded):
    """The words and the language model stay as they are."""
    pytest.importorskip("peft", reason='LoRA needs peft: pip install -e ".[lora]"')
    family = grounded("llama")
    model, batch = family.copy(), training_batch(family)
    add_adapters(model, LoraSettings(r=2, dropout=0.0))
    set_trainable(model, PARTS)
    model(**batch).loss.backward()
    trained = {part_of(n) for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert trained == set(PARTS.split(","))
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad and part_of(n) == MM_PARTS[0])
    expected = model.eval()(**batch).loss
    merge_adapters(model)
    torch.testing.assert_close(model(**batch).loss, expected)
