"""What a run shows its training records, as its flags ask: their own clips or others', and which of them none."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.config.flags import Settings
from llava.data.arms import arm_record, describe
from llava.data.blind import BlindDraw
from llava.data.columns import RecordIds
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.features.content import ContentHashes
from llava.data.other_clips import OtherClips, other_clips
from llava.data.records import MODALITIES, apply_policy, modality_codes
from llava.errors import UserError
from llava.train.checkpoint.resume import on_first_process
from llava.train.prepared_data import prepared_tokens
from llava.train.run_data import cache_root, texts_of

logger = logging.getLogger(__name__)


def give_arm(dataset: LazySupervisedDataset, settings: Settings, earlier: Mapping[str, Any] | None = None) -> None:
    """Sets what `--other_clips` and `--blind_share` ask for on the training samples, and logs it.

    Args:
        earlier: the record of the run that is resumed.

    Raises:
        UserError: when there is nothing to exchange or to leave out, or the clips are not those of the resumed run.
        DatasetError: for records that cannot be text alone.
    """
    data_args, training_args = settings.data, settings.training
    if data_args.other_clips is None and not data_args.blind_share:
        return
    sees = modality_codes(dataset.records) != MODALITIES.index("text")
    if not sees.any():
        raise UserError("--other_clips and --blind_share: no training record has a video or an image; leave them out")
    if data_args.other_clips is not None:
        dataset.others = on_first_process(lambda: _exchange(dataset, settings), training_args)
    if data_args.blind_share:
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        dataset.blind = BlindDraw(RecordIds(dataset.records).hashes, sees, data_args.blind_share, seed)
        dataset.alone = text_samples(dataset, settings)
    arm = arm_record(dataset)
    before = ((earlier or {}).get("arm") or {}).get("other_clips")
    now = (arm or {}).get("other_clips")
    if before and now and before["digest"] != now["digest"]:
        raise UserError(
            f"--other_clips {data_args.other_clips}: the run that is resumed exchanged {before['clips']:,} clips in "
            f"another way than these {now['clips']:,}: files of clips have changed since; put them back as they were, "
            "or start a new run in another --output_dir"
        )
    logger.info("shown in training: %s", describe(arm))


def text_samples(dataset: LazySupervisedDataset, settings: Settings) -> LazySupervisedDataset:
    """The samples of the same records as an experiment on text alone makes them, numbers where the frames have them.

    Raises:
        DatasetError: for records that cannot be cut to `--model_max_length`.
    """
    records = texts_of(dataset.records)
    prepared = prepared_tokens(records, dataset.tokenizer, dataset.text_format, settings)
    limit = dataset.max_length
    _, problems = measure_lengths(records, dataset.tokenizer, None, dataset.text_format, limit, prepared)
    apply_policy(records, problems, "stop")
    alone = LazySupervisedDataset(
        records, dataset.tokenizer, dataset.preprocess, limit, dataset.spec, dataset.processor,
        text_format=dataset.text_format, prepared=prepared,
    )  # fmt: skip
    if alone.differs_from_prepared() is not None:
        alone.prepared = None
    return alone


def _exchange(dataset: LazySupervisedDataset, settings: Settings) -> OtherClips:
    seed = settings.data.other_clips
    assert seed is not None
    if dataset.cache is not None:
        return other_clips(dataset.records, dataset.cache.contents, seed)
    with tempfile.TemporaryDirectory() as nowhere:
        root = Path(nowhere) if settings.data.feature_cache == "off" else cache_root(settings)
        return other_clips(dataset.records, ContentHashes(root / "contents"), seed)
