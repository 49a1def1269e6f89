"""Records for an evaluation from the command line: read, checked, and their vision features in the cache."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from llava.data.features import FeatureCache, extract_features
from llava.data.prompt import reserved_tokens
from llava.data.records import Record, apply_policy, load_records, missing_files
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM


def read_for_evaluation(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    model: LlavaGPT2ForCausalLM,
    cache: FeatureCache,
    video_folder: str | None = None,
    image_folder: str | None = None,
    num_workers: int = 0,
    limit: int | None = None,
) -> list[Record]:
    """The records of a file, or the first `limit`, after extraction of the features that `cache` lacks.

    Raises:
        DatasetError: with all problems of the file at once; an evaluation leaves nothing out.
    """
    records, problems = load_records(path, image_folder, video_folder, reserved=reserved_tokens(tokenizer))
    if limit is not None and len(records) > limit:
        print(f"{path}: the first {limit} of {len(records)} records")
        records = records[:limit]
    problems += missing_files(records)
    if not problems:
        problems = extract_features(
            records, cache, model.vision_tower, model.video_spec, model.processor_spec, model.device,
            num_workers=num_workers,
        )  # fmt: skip
    return apply_policy(records, problems, "stop")
