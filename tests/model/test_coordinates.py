"""The tables of coordinates, against what LLaVA-ST's own modules gave and against plain computations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from llava.constants import COORDINATE_PLACEHOLDERS, COORDINATE_TOKENS, NUM_COORDINATES
from llava.model import coordinates
from llava.model.coordinates import TABLES, CoordinateTables, resized
from llava.model.loss import ClassHead, supervised_loss

GOLDEN = Path(__file__).parents[1] / "assets" / "coordinates_golden.safetensors"
NAMES = (*COORDINATE_TOKENS, *COORDINATE_PLACEHOLDERS)
FRAMES = [0, 37, 99]
"""Those of 100 that the golden values keep."""


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def make_tables(values: dict[str, torch.Tensor] | None = None, width: int = 24, first: int = 7) -> CoordinateTables:
    """Tables whose tokens begin at an id."""
    tables = CoordinateTables(width, {name: first + i for i, name in enumerate(NAMES)})
    torch.manual_seed(0)
    tables.draw(1.0, 1.0)
    if values is not None:
        with torch.no_grad():
            for name in TABLES:
                getattr(tables, name).copy_(values[name])
    return tables


def head_of(tables: CoordinateTables, weight: torch.Tensor) -> ClassHead:
    """A head of words (7, D) whose rows for coordinates and placeholders are large, and must not be used."""
    filled = torch.cat([weight, torch.full((len(COORDINATE_TOKENS), weight.shape[1]), 99.0)])
    return ClassHead(lambda states, _: tables.logits(states, F.linear(states, filled), tables()), len(filled))


def golden_rows(golden: dict[str, torch.Tensor]) -> None:
    tables = make_tables(golden)
    ids = torch.full((1, 8), tables.ids["<TEMP-INPUT>"])
    rows = tables.embed(torch.zeros(1, 8, 24), ids, golden["positions"].clamp(0, 1)[None])
    torch.testing.assert_close(rows[0], golden["rows"], rtol=0, atol=1e-5)
    rows[0].backward(golden["gradient_of_rows"])
    found = tables.temporal_input_embeddings.grad
    torch.testing.assert_close(found, golden["gradient_of_temporal_input"], rtol=0, atol=1e-5)


def golden_vision(golden: dict[str, torch.Tensor]) -> None:
    features = torch.zeros(1, 100, 9, 24)
    features[0, FRAMES] = golden["vision_before"]
    found = make_tables(golden).patches(features, (3, 3))[0, FRAMES]
    torch.testing.assert_close(found, golden["vision_after"], rtol=0, atol=1e-5)


def golden_losses(golden: dict[str, torch.Tensor]) -> None:
    tables = make_tables(golden)
    words = [tables.ids[name] for name in ("<TEMP-012>", "<HEIGHT-049>", "<WIDTH-099>")]
    labels = torch.tensor([[-100, 3, *words, 0]])
    numbers = torch.tensor([[-1, -1, 0.123, 0.5, 1.0, -1]])
    hidden = torch.cat([golden["hidden"], torch.zeros(1, 24)])[None]
    soft = tables.soft_targets(labels, numbers)
    loss, each = supervised_loss(hidden, labels, head_of(tables, golden["head"]), soft=soft)
    torch.testing.assert_close(each[0], golden["losses"], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, golden["losses"].mean(), rtol=0, atol=1e-5)


GOLDEN_TESTS = {"rows": golden_rows, "vision": golden_vision, "losses": golden_losses}


@pytest.mark.parametrize("what", GOLDEN_TESTS)
def test_golden_values(golden, what):
    GOLDEN_TESTS[what](golden)


def swapped_axes(patch: pytest.MonkeyPatch) -> None:
    order = [0, 2, 1, 3, 5, 4]
    patch.setattr(coordinates, "TABLES", tuple(TABLES[i] for i in order))


def no_vision(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CoordinateTables, "patches", lambda self, features, grid: features)


def hard_targets(patch: pytest.MonkeyPatch) -> None:
    soft = CoordinateTables.soft_targets

    def hard(*args):
        found = soft(*args)
        return type(found)(found.others, torch.zeros_like(found.shares))

    patch.setattr(CoordinateTables, "soft_targets", hard)


def output_for_input(patch: pytest.MonkeyPatch) -> None:
    forward = CoordinateTables.forward
    patch.setattr(CoordinateTables, "forward", lambda self: forward(self).flip(0))


@pytest.mark.parametrize(
    ("mutation", "noticed"),
    [
        (swapped_axes, {"vision", "losses"}),
        (no_vision, {"vision"}),
        (hard_targets, {"losses"}),
        (output_for_input, {"rows", "losses"}),
    ],
)
def test_mutations_are_noticed(golden, monkeypatch, mutation, noticed):
    mutation(monkeypatch)
    found = set()
    for what, check in GOLDEN_TESTS.items():
        try:
            check(golden)
        except AssertionError:
            found.add(what)
    assert found == noticed


def test_the_value_is_the_table_itself_in_half_precision():
    """As a sum in half precision it would not be: what is subtracted was rounded before."""
    tables = make_tables().to(torch.bfloat16)
    found, plain = tables().flatten(0, 1), torch.stack([getattr(tables, name) for name in TABLES])
    assert found.dtype == torch.bfloat16 and torch.equal(found, plain)
    places = torch.arange(NUM_COORDINATES)
    near = torch.exp2(-(places[:, None] - places).abs().float()).to(torch.bfloat16)
    assert not torch.equal((plain + near @ plain) - near @ plain, plain)


def test_neighbours_learn_by_halves():
    tables = make_tables().double()
    tables()[1, 2, 40].sum().backward()
    grad = tables.spatial_width_output_embeddings.grad[:, 0]
    expected = torch.exp2(-(torch.arange(100) - 40).abs().double()) + (torch.arange(100) == 40)
    torch.testing.assert_close(grad, expected)
    assert not any(getattr(tables, name).grad.any() for name in TABLES if name != "spatial_width_output_embeddings")


@pytest.mark.parametrize(("size", "corners"), [(1, True), (2, True), (10, True), (130, True), (4, False), (160, False)])
def test_resizing_is_that_of_torch(size, corners):
    table = torch.randn(100, 5, dtype=torch.float64)
    expected = F.interpolate(table.T[None], size=size, mode="linear", align_corners=corners)[0].T
    torch.testing.assert_close(resized(table, size, corners), expected, rtol=1e-4, atol=1e-4)


def test_an_image_has_the_first_time_and_a_class_token_no_place():
    tables = make_tables()
    with torch.no_grad():
        for name in TABLES[1:3] + TABLES[4:]:
            getattr(tables, name).zero_()
    found = tables.patches(torch.zeros(2, 1, 1 + 6, 24), (2, 3))
    time = (tables.temporal_input_embeddings[0] + tables.temporal_output_embeddings[0]) / 2
    assert not found[:, :, 0].any()
    torch.testing.assert_close(found[:, :, 1:], time.expand(2, 1, 6, 24))


def test_rows_of_patches_have_heights_and_columns_widths():
    tables = make_tables()
    with torch.no_grad():
        for name in TABLES:
            getattr(tables, name).zero_()
        tables.spatial_height_input_embeddings[:] = torch.linspace(0, 2, 100)[:, None]
    found = tables.patches(torch.zeros(1, 1, 6, 24), (3, 2))[0, 0, :, 0].view(3, 2)
    assert torch.equal(found[:, 0], found[:, 1]) and bool((found[:-1] < found[1:]).all())


def test_a_token_is_read_as_its_row_and_words_as_they_were():
    tables = make_tables()
    words = torch.randn(1, 4, 24)
    ids = torch.tensor([[3, tables.ids["<HEIGHT-041>"], 4000, tables.ids["<WIDTH-099>"]]])
    found = tables.embed(words, ids, None)
    assert torch.equal(found[0, [0, 2]], words[0, [0, 2]])
    assert torch.equal(found[0, 1], tables.spatial_height_input_embeddings[41])
    assert torch.equal(found[0, 3], tables.spatial_width_input_embeddings[99])


def test_ids_may_lie_anywhere():
    """The vocabulary may be padded, and others' tokenizers have them in another order."""
    names = list(reversed(NAMES))
    tables = CoordinateTables(24, {name: 50 + 3 * i for i, name in enumerate(names)})
    tables.draw(1.0, 1.0)
    ids = torch.tensor([[tables.ids["<TEMP-012>"], tables.ids["<TEMP-012>"] + 1]])
    found = tables.embed(torch.zeros(1, 2, 24), ids, None)
    assert torch.equal(found[0, 0], tables.temporal_input_embeddings[12]) and not found[0, 1].any()
    labels = torch.tensor([[tables.ids["<WIDTH-010>"]]])
    soft = tables.soft_targets(labels, torch.tensor([[9.6 / 99]]))
    assert soft.others.item() == tables.ids["<WIDTH-009>"] and soft.shares.item() == pytest.approx(0.4, abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "numbers", "message"),
    [
        (["<TEMP-INPUT>"], None, r"row 0, position 0: <TEMP-INPUT> without a number \(coordinates is not given"),
        (["<TEMP-INPUT>", 3], [-1.0, 0.5], "<TEMP-INPUT> without a number"),
        ([3], [0.5], "position 0: no placeholder with a number"),
        (["<TEMP-003>"], [0.5], "<TEMP-003> with a number"),
        (["<WIDTH-OUTPUT>"], [float("nan")], "numbers from 0 to 1"),
        (["<WIDTH-OUTPUT>"], [1.5], "numbers from 0 to 1"),
    ],
)
def test_numbers_stand_at_placeholders(ids, numbers, message):
    tables = make_tables()
    found = torch.tensor([[tables.ids.get(i, i) for i in ids]])
    given = None if numbers is None else torch.tensor([numbers])
    with pytest.raises(ValueError, match=message):
        tables.embed(torch.zeros(*found.shape, 24), found, given)


def test_a_label_must_be_the_nearest_coordinate():
    tables = make_tables()
    labels = torch.tensor([[-100, tables.ids["<TEMP-012>"]]])
    with pytest.raises(ValueError, match="row 0, position 1: the label is not the coordinate nearest to 0.5"):
        tables.soft_targets(labels, torch.tensor([[-1.0, 0.5]]))


def test_numbers_in_half_precision_are_refused():
    tables = make_tables()
    with pytest.raises(ValueError, match="bfloat16"):
        tables.embed(torch.zeros(1, 1, 24), torch.tensor([[3]]), torch.tensor([[-1.0]], dtype=torch.bfloat16))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("pieces", [False, True])
def test_a_shared_target_is_the_cross_entropy_of_its_distribution(monkeypatch, pieces, smoothing):
    """Label smoothing mixes it with an even one; in pieces as at once."""
    tables, torch_ = make_tables(width=8), torch
    torch_.manual_seed(1)
    weight = torch.randn(7, 8)
    labels = torch.tensor([[-100, 2, tables.ids["<TEMP-030>"], -100, tables.ids["<WIDTH-070>"], 5]] * 2)
    labels[1, 2] = -100
    numbers = torch.full(labels.shape, -1.0)
    numbers[:, 2], numbers[:, 4] = 30.4 / 99, 69.7 / 99
    head = head_of(tables, weight)
    hidden = torch.randn(2, 6, 8, requires_grad=True)
    if pieces:
        monkeypatch.setattr("llava.model.loss.CHUNK_LOGITS", 2 * head.out_features)
    loss, each = supervised_loss(
        hidden, labels, head, label_smoothing=smoothing, soft=tables.soft_targets(labels, numbers)
    )
    wide = torch.zeros(2, 6, head.out_features)
    for row, at in (labels != -100).nonzero().tolist():
        wide[row, at, labels[row, at]] = 1.0
    wide[0, 2, tables.ids["<TEMP-030>"]], wide[0, 2, tables.ids["<TEMP-031>"]] = 0.6, 0.4
    wide[:, 4, tables.ids["<WIDTH-070>"]], wide[:, 4, tables.ids["<WIDTH-069>"]] = 0.7, 0.3
    logs = head(hidden).log_softmax(-1)[:, :-1]
    expected = -(logs * wide[:, 1:]).sum(-1)
    torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
    supervised = wide[:, 1:].sum(-1)
    even = -(logs.mean(-1)) * supervised
    total = ((1 - smoothing) * expected + smoothing * even).sum() / supervised.sum()
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(total, hidden)[0], rtol=1e-3, atol=1e-4)


def test_fresh_tables_are_smooth_and_of_the_words_spread():
    torch.manual_seed(0)
    tables = CoordinateTables(64, {name: i for i, name in enumerate(NAMES)})
    tables.draw(0.02, 0.1)
    found = tables().detach()
    torch.testing.assert_close(found[1], 5 * found[0])
    assert float(found[0].std()) == pytest.approx(0.02, rel=0.01)
    assert not torch.allclose(found[0, 1], found[0, 2], atol=1e-3)
    similar = F.cosine_similarity(found[0, 0, :-1], found[0, 0, 1:], dim=-1)
    far = F.cosine_similarity(found[0, 0, :50], found[0, 0, 50:], dim=-1)
    assert float(similar.min()) > 0.8 and float(far.mean()) < 0.5
