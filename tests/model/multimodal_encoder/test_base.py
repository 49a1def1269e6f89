"""Every kind of tower gives transformers' own hidden states of its patches, and nothing else runs."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from llava.config.video import VideoSpec
from llava.model.builder import add_visual_tokens, load_language_model
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SigLIPVisionTower
from tests.conftest import SPEC
from tests.model.multimodal_encoder.towers import ALONE, PREFIX, edit_config, save_tower

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
KINDS = sorted(PREFIX)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tower of each kind; those of the vision models alone are the ones in the whole checkpoints."""
    root = tmp_path_factory.mktemp("towers")
    made = {kind: save_tower(kind, root / kind) for kind in KINDS if kind not in ALONE.values()}
    for whole, alone in ALONE.items():
        made[alone] = save_tower(alone, root / alone)
        AutoModel.from_pretrained(made[whole]).vision_model.save_pretrained(made[alone])
    return {kind: str(folder) for kind, folder in made.items()}


def reference(folder: str, kind: str, pixels: torch.Tensor = PIXELS, **options):
    """Hidden states of the whole model, as transformers gives them."""
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return getattr(model, "vision_model", model)(pixels, output_hidden_states=True, **options).hidden_states


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_transformers_hidden_states_of_the_patches(folders, kind):
    hidden = reference(folders[kind], kind)
    for layer in (0, 1, 2, 3, -1, -2, -4):
        tower = load_vision_tower(folders[kind], layer)
        features = tower(PIXELS)
        assert features.shape == (3, 16, 24) and tower.width == 24
        assert torch.equal(features, hidden[layer][:, PREFIX[kind] :])
        if PREFIX[kind]:
            with_class = load_vision_tower(folders[kind], layer, "cls_patch")(PIXELS)
            assert torch.equal(with_class, torch.cat([hidden[layer][:, :1], features], 1))


@pytest.mark.parametrize("kind", KINDS)
def test_features_lie_in_reading_order(folders, kind):
    tower, changed = load_vision_tower(folders[kind], 0), PIXELS[:1].clone()
    changed[:, :, 14:28, 42:56] += 1
    differs = (tower(changed) != tower(PIXELS[:1])).any(-1)[0].nonzero().flatten().tolist()
    assert differs == [7], "second row, fourth column"


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_selected_layer_does_not_run(folders, kind):
    tower = load_vision_tower(folders[kind])
    before, unused = tower(PIXELS), tower.unused_parameters()
    tower.requires_grad_(True)
    tower(PIXELS).square().sum().backward()
    assert unused == [name for name, p in tower.named_parameters() if p.grad is None]
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name in unused:
                parameter.fill_(torch.nan)
    assert torch.equal(tower(PIXELS), before)
    assert any(".2." in name for name in unused) and not any(".1." in name for name in unused)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_layer_the_patches_depend_on_themselves_alone(folders, kind):
    tower = load_vision_tower(folders[kind], 0)
    tower.requires_grad_(True)
    tower(PIXELS).square().sum().backward()
    untouched = [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()]
    assert tower.unused_parameters() == untouched


@pytest.mark.parametrize("whole", sorted(ALONE))
def test_the_vision_model_of_a_whole_checkpoint_is_the_same_tower(folders, whole, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        towers = [load_vision_tower(folders[kind]) for kind in (whole, ALONE[whole])]
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert torch.equal(towers[0](PIXELS), towers[1](PIXELS))
    assert towers[0].checksum() == towers[1].checksum()
    assert not caplog.text, "text weights that are left in the file are no news"


@pytest.mark.parametrize("kind", KINDS)
def test_the_checksum_is_of_weights_and_architecture(folders, kind, tmp_path):
    tower = load_vision_tower(folders[kind])
    other = load_vision_tower(str(save_tower(kind, tmp_path / "other", seed=1)))
    assert tower.has_checksum(tower.checksum()) and not other.has_checksum(tower.checksum())
    same = load_vision_tower(str(save_tower(kind, tmp_path / "same")))
    assert (same.checksum() == tower.checksum()) == (kind not in ALONE.values())
    for name, value in {"layer_norm_eps": 1e-3, **({"rope_theta": 50.0} if kind == "dinov3_vit" else {})}.items():
        changed = load_vision_tower(str(edit_config(save_tower(kind, tmp_path / name), **{name: value})))
        assert changed.checksum() != same.checksum(), name
        assert not torch.equal(changed(PIXELS), same(PIXELS)), name


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_of_frame_is_seen_as_transformers_sees_it(folders, kind):
    """Positions are fitted; without that, CLIP refuses another size and SigLIP fails."""
    pixels, options = torch.randn(1, 3, 84, 84), {}
    if kind.startswith(("siglip", "clip")):
        options["interpolate_pos_encoding"] = True
    tower = load_vision_tower(folders[kind])
    assert tower.grid(84) == (6, 6)
    assert torch.equal(tower(pixels), reference(folders[kind], kind, pixels, **options)[-2][:, PREFIX[kind] :])
    assert "6 x 6 patches of 84 pixels (made for 56), 24 features each" in tower.describe(84)
    assert "2 of 3 layers run, 4 x 4 patches of 56 pixels, 24" in tower.describe(56)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_what_torch_counts(folders, kind):
    for layer in (0, 1, -1):
        tower = load_vision_tower(folders[kind], layer)
        # It does not count the attention of every kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tower(PIXELS[:1])
        assert tower.flops(56) == counter.get_total_flops()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_autocast_of_a_training_step_does_not_change_a_frozen_tower(folders, kind, precision):
    tower = load_vision_tower(folders[kind])
    plain = tower(PIXELS)
    tower.precision = precision
    alone = tower(PIXELS)
    assert ((alone - plain).norm() / plain.norm() < 0.02) and torch.equal(alone, plain) == (precision == "fp32")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(tower(PIXELS), alone)


def test_a_size_that_patches_do_not_fill_is_refused_unless_the_tower_was_made_for_it(tmp_path):
    """SigLIP so400m has patches of 14 and frames of 384, and 27 x 27 positions."""
    tower = load_vision_tower(str(save_tower("siglip", tmp_path, image_size=60)))
    assert tower.grid(60) == (4, 4) and tower(torch.randn(1, 3, 60, 60)).shape == (1, 16, 24)
    with pytest.raises(ValueError, match="image size 61 is not a multiple of patch size 14"):
        tower.grid(61)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dinov2", {"image_size": [56, 28]}, r"image_size is \[56, 28\]: only squares"),
        ("dinov3_vit", {"patch_size": [14, 7]}, r"patch_size is \[14, 7\]: only squares"),
        ("dinov2", {"num_channels": 1}, "num_channels is 1: frames have 3"),
        ("clip", {"image_size": [56, 28]}, r"image_size is \[56, 28\]: only squares"),
        ("clip", {"hidden_size": 10**7}, r"\(vision_config\): .*hidden_size is 10000000"),
        ("clip", {"hidden_size": 32}, "weights have other shapes than the config says: .*embed"),
        ("siglip", {"num_hidden_layers": 4}, r"weights are missing for .*layers\.3\."),
    ],
)
def test_a_tower_that_cannot_be_right_is_refused(kind, changes, message, tmp_path):
    folder = edit_config(save_tower(kind, tmp_path), **changes)
    with pytest.raises(ValueError, match=f"--vision_tower .*{message}"):
        load_vision_tower(str(folder))


@pytest.mark.parametrize(("kind", "wrong"), [("siglip", CLIPVisionTower), ("clip", SigLIPVisionTower)])
def test_a_class_that_counts_other_tokens_is_an_error(folders, kind, wrong):
    with pytest.raises(ValueError, match=f"tokens a frame, expected .* 16 patches: {wrong.__name__} is the class of"):
        wrong.from_pretrained(folders[kind])(PIXELS)


def test_a_layer_and_a_token_that_do_not_exist_are_named_together(folders):
    with pytest.raises(
        ValueError, match="--vision_tower .*mm_vision_select_layer 4 .*; .*siglip_vision_model has no cl"
    ):
        load_vision_tower(folders["siglip"], 4, "cls_patch")
    with pytest.raises(ValueError, match="mm_vision_select_feature must be one of"):
        load_vision_tower(folders["clip"], -2, "cls")


def give_eyes(assets, tokenizer, folder: str, spec: VideoSpec = SPEC, **options):
    """The tiny GPT-2 of 32 features with the tower of a folder."""
    torch.manual_seed(0)
    model = load_language_model(str(assets.gpt2))
    add_visual_tokens(tokenizer, model)
    tower = load_vision_tower(folder)
    model.initialize_vision_modules(tower, folder, spec, tower.processor, **options)
    return model.eval()


@pytest.mark.parametrize("storage", ["reference", "checkpoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_sees_images_and_videos_and_reloads(assets, tokenizer, folders, kind, storage, tmp_path):
    model = give_eyes(assets, tokenizer, folders[kind], storage=storage)
    assert (model.config.mm_hidden_size, model.config.hidden_size, model.config.mm_patch_grid) == (24, 32, [4, 4])
    videos = torch.randn(2, 2, 3, 56, 56)
    rows = model.encode_videos(videos)
    assert rows.shape == (2, SPEC.rows, 32)
    if storage == "checkpoint":
        with torch.no_grad():
            for parameter in model.vision_tower.parameters():
                parameter.add_(0.01)
        rows = model.encode_videos(videos)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.encode_videos(videos), rows)
    assert torch.equal(again.encode_images(videos[0]), model.encode_images(videos[0]))
    assert type(again.vision_tower) is type(model.vision_tower)
    for name, weight in model.vision_tower.state_dict().items():
        assert torch.equal(again.vision_tower.state_dict()[name], weight), name
