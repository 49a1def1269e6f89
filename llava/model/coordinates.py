"""Coordinates as words: a number from 0 to 1 is told, asked for and shown by tables of vectors (LLaVA-ST's LAPE).

Each of the axes time, height and width has a table for what the model reads and one for what it writes, a row for each
of its coordinates. A number between two coordinates is read as a mixture of their rows and is a target shared by both.
Neighbouring rows learn together (Li et al. 2025, "LLaVA-ST", section 3.2). What is added to a patch of a frame is the
mean of both tables at its place, so that a place is seen, read and written in the same terms.

Letters in shapes: B batch, L positions, K coordinates of an axis, D width of the language model, N any number of
positions, V vocabulary, T frames, P patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava.constants import (
    COORDINATE_AXES,
    COORDINATE_PLACEHOLDERS,
    COORDINATE_TOKENS,
    IGNORE_INDEX,
    NUM_COORDINATES,
)
from llava.errors import UserError
from llava.model.loss import SoftTargets, can_look

AXES = ("temporal", "spatial_height", "spatial_width")
TABLES = tuple(f"{axis}_{way}_embeddings" for way in ("input", "output") for axis in AXES)
"""The six tables under LLaVA-ST's names, in the order of `CoordinateTables.forward`."""
CYCLES = (0.25, 16.0)
"""Slowest and fastest wave, from 0 to 1, of the function that fresh tables are: from a quarter of the axis to a few
coordinates, so that near numbers look alike and far ones do not."""
OFF = 1e-3
"""How much further than half a coordinate a number may be from its label: rounding of fp32."""


class _NeighboursLearn(torch.autograd.Function):
    """Tables as they are, whose rows' gradients reach their neighbours: W + R W - stopgrad(R W), R_ij = 2^-|i-j|.

    Written as a sum, the value would be off by rounding in half precision.
    """

    @staticmethod
    def forward(ctx: Any, tables: torch.Tensor) -> torch.Tensor:
        return tables.view_as(tables)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        places = torch.arange(grad.shape[-2], device=grad.device, dtype=torch.float32)
        near = torch.exp2(-(places[:, None] - places).abs())
        with torch.autocast(grad.device.type if grad.device.type != "meta" else "cpu", enabled=False):
            wide = grad.float()
            return (wide + near.T @ wide).to(grad.dtype)


def between(table: torch.Tensor, low: torch.Tensor, high: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(rows, D) and places (...) with the share of `high` in each -> (..., D), mixed in fp32 at least."""
    first, second = F.embedding(low, table), F.embedding(high, table)
    kind = torch.promote_types(table.dtype, torch.float32)
    return torch.lerp(first.to(kind), second.to(kind), share.to(kind).unsqueeze(-1))


def resized(table: torch.Tensor, size: int, corners: bool) -> torch.Tensor:
    """(K, D) -> (size, D): linear interpolation, with aligned corners or at the centres of `size` equal cells."""
    last = table.shape[0] - 1
    at = torch.arange(size, device=table.device, dtype=torch.float32)
    # A single frame is the first one.
    places = at * (last / max(size - 1, 1)) if corners else (at + 0.5) * ((last + 1) / size) - 0.5
    places = places.clamp(0, last)
    low = places.floor().clamp(max=max(last - 1, 0))
    return between(table, low.long(), (low.long() + 1).clamp(max=last), places - low)


class CoordinateTables(nn.Module):
    """The tables of all axes, and where their tokens are in the vocabulary.

    Args:
        width: D.
        ids: of every coordinate token and placeholder, by name, in any order and any place of the vocabulary.
        reparameterized: whether a row's gradient reaches its neighbours; what the tables hold is the same either way.
    """

    token_ids: torch.Tensor
    index_of: torch.Tensor

    def __init__(self, width: int, ids: Mapping[str, int], reparameterized: bool = True) -> None:
        super().__init__()
        self.reparameterized = reparameterized
        self.names = (*COORDINATE_TOKENS, *COORDINATE_PLACEHOLDERS)
        lacks = [name for name in self.names if name not in ids]
        if lacks:
            raise UserError(f"coordinate_token_ids in config.json lacks {lacks[0]} and {len(lacks) - 1} more")
        self.ids = {name: int(ids[name]) for name in self.names}
        for name in TABLES:
            setattr(self, name, nn.Parameter(torch.empty(NUM_COORDINATES, width)))
        self.register_buffer("token_ids", torch.empty(len(COORDINATE_TOKENS), dtype=torch.long), persistent=False)
        # The last entry stands for all ids beyond it.
        size = max(self.ids.values()) + 2
        self.register_buffer("index_of", torch.empty(size, dtype=torch.long), persistent=False)
        self.fill_ids()

    @torch.no_grad()
    def fill_ids(self) -> None:
        """Writes the ids into the buffers, which checkpoints do not hold."""
        every = torch.tensor(list(self.ids.values()))
        self.token_ids.copy_(every[: len(COORDINATE_TOKENS)])
        index = torch.full((len(self.index_of),), -1)
        index[every] = torch.arange(len(every))
        self.index_of.copy_(index)

    @torch.no_grad()
    def draw(self, input_std: float, output_std: float) -> None:
        """Fresh tables: of each axis one smooth random function of the number, from torch's global generator, the same
        for reading and writing but for its standard deviation.
        """
        width = self.temporal_input_embeddings.shape[1]
        numbers = torch.arange(NUM_COORDINATES)[:, None] / (NUM_COORDINATES - 1)
        slow, fast = map(math.log, CYCLES)
        for i in range(len(COORDINATE_AXES)):
            cycles = torch.exp(slow + (fast - slow) * torch.rand(width))
            waves = math.sqrt(2) * torch.cos(2 * math.pi * (cycles * numbers + torch.rand(width)))
            waves = waves / waves.std()
            for name, std in ((TABLES[i], input_std), (TABLES[i + len(COORDINATE_AXES)], output_std)):
                getattr(self, name).copy_(waves * std)

    def forward(self) -> torch.Tensor:
        """(2, axes, K, D): the tables for reading and for writing. They are read nowhere else, since weights that are
        spread over processes are together within this call alone.
        """
        tables = torch.stack([getattr(self, name) for name in TABLES])
        if self.reparameterized:
            tables = _NeighboursLearn.apply(tables)
        return tables.unflatten(0, (2, len(COORDINATE_AXES)))

    def _index(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, L) as places among tokens and then placeholders; -1 for all others, `IGNORE_INDEX` among them."""
        return torch.where(ids < 0, -1, self.index_of[ids.clamp(0, len(self.index_of) - 1)])

    def embed(self, inputs_embeds: torch.Tensor, input_ids: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """Swaps the embeddings of coordinate tokens and placeholders for rows of the tables for reading.

        Computed at every position, whatever stands there: nothing waits for the device, and the tables have a gradient,
        of zeros, in a batch without coordinates too, which other processes wait for.

        Args:
            inputs_embeds: (B, L, D) of the words.
            input_ids: (B, L).
            numbers: (B, L), from 0 to 1 at placeholders; None where there are none.

        Raises:
            ValueError: for placeholders without numbers and numbers elsewhere; not looked for while training on a
                device, where the collator's are those of the dataset, nor token by token.
        """
        index, tokens = self._index(input_ids), len(COORDINATE_TOKENS)
        if can_look(input_ids) or (input_ids.shape[1] > 1 and _is_evaluated(input_ids)):
            self.check_numbers(input_ids, numbers)
        told = torch.zeros_like(index, dtype=torch.float32) if numbers is None else _whole(numbers)
        is_token = index < tokens
        axis = torch.where(is_token, index // NUM_COORDINATES, (index - tokens) // 2).clamp(min=0)
        place = torch.where(is_token, (index % NUM_COORDINATES).float(), told.clamp(0, 1) * (NUM_COORDINATES - 1))
        low, start = place.floor(), axis * NUM_COORDINATES
        rows = between(self()[0].flatten(0, 1), start + low.long(), start + place.ceil().long(), place - low)
        return torch.where((index >= 0).unsqueeze(-1), rows.to(inputs_embeds.dtype), inputs_embeds)

    def check_numbers(self, input_ids: torch.Tensor, numbers: torch.Tensor | None) -> None:
        """Whether there is a number from 0 to 1 at each placeholder, and at no other position.

        Raises:
            ValueError: naming the first row and position where not.
        """
        places = self._index(input_ids) >= len(COORDINATE_TOKENS)
        given = torch.zeros_like(places) if numbers is None else numbers >= 0
        if numbers is not None and not bool((numbers <= 1).all()):  # NaN is neither.
            raise UserError("coordinates must be numbers from 0 to 1 at placeholders and -1 elsewhere")
        wrong = (places != given).nonzero()
        if len(wrong):
            row, at = wrong[0].tolist()
            name = next((n for n, i in self.ids.items() if i == int(input_ids[row, at])), "no placeholder")
            raise UserError(
                f"row {row}, position {at}: {name} {'without' if places[row, at] else 'with'} a number (coordinates "
                f"{'gives ' + str(int(given.sum())) if numbers is not None else 'is not given'}, the text has "
                f"{int(places.sum())} placeholders): give one for each, at its position"
            )

    def soft_targets(self, labels: torch.Tensor, numbers: torch.Tensor) -> SoftTargets:
        """Labels (B, L), which hold the nearest coordinate, and the numbers asked for: the other one and its share.

        Raises:
            ValueError: where a look costs nothing, for a label that is not the nearest coordinate of its number.
        """
        numbers, index = _whole(numbers), self._index(labels)
        soft = (numbers >= 0) & (index >= 0) & (index < len(COORDINATE_TOKENS)) & (labels != IGNORE_INDEX)
        away = numbers.clamp(0, 1) * (NUM_COORDINATES - 1) - (index % NUM_COORDINATES).float()
        shares = torch.where(soft, away.abs(), 0.0)
        if can_look(labels) and bool((shares > 0.5 + OFF).any()):
            row, at = (shares > 0.5 + OFF).nonzero()[0].tolist()
            raise UserError(
                f"row {row}, position {at}: the label is not the coordinate nearest to {float(numbers[row, at])}: "
                "labels and numbers are of different samples; both come from llava.data.coordinates.place"
            )
        other = (index + away.sign().long()).clamp(0, len(COORDINATE_TOKENS) - 1)
        return SoftTargets(torch.where(soft, self.token_ids[other], labels.clamp(min=0)), shares)

    def logits(self, states: torch.Tensor, logits: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        """The head's logits (..., V) of states (..., D), with those of coordinate tokens from the tables for writing.

        Args:
            tables: of `forward`.
        """
        own = F.linear(states, tables[1].flatten(0, 1).to(states.dtype))
        return logits.index_copy(-1, self.token_ids, own.to(logits.dtype))

    def whole_logits(self, head: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """As `logits`, written down plainly as a measure for it: every token of every axis by its name."""
        logits = head(states).clone()
        for name, rows in zip(COORDINATE_AXES, self()[1], strict=True):
            for k, row in enumerate(rows):
                logits[..., self.ids[f"<{name}-{k:03d}>"]] = states @ row.to(states.dtype)
        return logits

    def probabilities(self, labels: torch.Tensor, numbers: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
        """(B, L, V): what the targets are; a measure for `soft_targets`, which follows from the numbers alone."""
        wanted = torch.zeros(*labels.shape, vocabulary, device=labels.device)
        names = {i: name for name, i in self.ids.items()}
        for row, at in (labels != IGNORE_INDEX).nonzero().tolist():
            label, number = int(labels[row, at]), -1.0 if numbers is None else float(numbers[row, at])
            if number < 0:
                wanted[row, at, label] = 1.0
                continue
            axis, place = names[label][1:].split("-")[0], min(number, 1.0) * (NUM_COORDINATES - 1)
            for k in (math.floor(place), math.ceil(place)):
                wanted[row, at, self.ids[f"<{axis}-{k:03d}>"]] += 1 - abs(place - k)
            wanted[row, at] /= wanted[row, at].sum()  # A whole number is its own floor and ceiling.
        return wanted

    def patches(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Adds its time, height and width to every patch: (..., T, extra + P, D) projected patches, `extra` leading
        tokens that have no place. Times are `i / (T - 1)`; an image is a single frame.
        """
        time, height, width = self().mean(0)
        frames, tokens = features.shape[-3:-1]
        rows = resized(height, grid[0], corners=False)[:, None] + resized(width, grid[1], corners=False)
        place = resized(time, frames, corners=True)[:, None] + rows.flatten(0, 1)
        place = F.pad(place, (0, 0, tokens - place.shape[1], 0))
        return features + place.to(features.dtype)


def _is_evaluated(values: torch.Tensor) -> bool:
    """Whether nothing trains, so that a device may be waited for."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or values.is_meta)


def _whole(numbers: torch.Tensor) -> torch.Tensor:
    """In the precision that they were given in; half precision would move them by whole coordinates."""
    if torch.finfo(numbers.dtype).bits < 32:
        raise UserError(f"coordinates came in {numbers.dtype}, which holds no number to a hundredth: give float32")
    return numbers
