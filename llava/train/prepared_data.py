"""Records and tokens of a run's data files, made once by its first process and memory-mapped by all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from llava.config.flags import Settings, TrainingArguments
from llava.data.chat_formats import PLAIN, reserved
from llava.data.prompt import reserved_tokens
from llava.data.record_table import RecordTable, open_records
from llava.data.records import Problem, Record
from llava.data.text_format import TextFormat
from llava.data.token_table import TokenTable, open_tokens
from llava.train.checkpoint.resume import on_first_process

Made = TypeVar("Made")

PREPARED_FOLDER = "data_cache"
"""Beside the folders of runs."""


def load_prepared(
    path: str, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> tuple[Sequence[Record], list[Problem]]:
    """What `llava.data.records.load_records` gives for a `--data_path`, with the videos and images that it names."""
    model_args, data_args, training_args = settings
    version = model_args.version
    return first_makes(
        lambda is_first: open_records(
            prepared_folder(settings),
            path,
            data_args.image_folder,
            data_args.video_folder,
            (*reserved_tokens(tokenizer, model_args.mm_coordinates), *reserved(version)),
            data_args.allow_absolute_paths,
            training_args.seed if training_args.data_seed is None else training_args.data_seed,
            version != PLAIN,
            check=is_first,
            show_progress=is_first,
        ),
        training_args,
    )


def prepared_tokens(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, text_format: TextFormat, settings: Settings
) -> TokenTable | None:
    """The tokens of records that lie in a table; None for others."""
    if not isinstance(records, RecordTable):
        return None
    return first_makes(
        lambda is_first: open_tokens(
            prepared_folder(settings), records, tokenizer, text_format, check=is_first, show_progress=is_first
        ),
        settings.training,
    )


def prepared_folder(settings: Settings) -> Path:
    """Where what is made once of data files lies, for all runs whose folders lie beside each other."""
    return Path(settings.training.output_dir).absolute().parent / PREPARED_FOLDER


def first_makes(make: Callable[[bool], Made], training_args: TrainingArguments) -> Made:
    """What `make` opens, after the first process has made it; where folders are not shared, every process makes it.

    Args:
        make: told whether this is the first process.

    Raises:
        ValueError, OSError: in all processes, what the first one raised.
    """
    made: list[Made] = []
    on_first_process(lambda: made.append(make(True)), training_args)
    return made[0] if made else make(False)
