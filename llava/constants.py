"""Token strings and indices, under LLaVA's names, and names of files that several rooms share. Defined here and nowhere
else."""

IGNORE_INDEX = -100
FILLER_INDEX = -1
"""Index of no record: what a process gets in the last batch of an epoch when the records do not suffice for all."""
FILLER_ID = "(none: fills the last batch of the epoch)"
"""`sample_id` of what stands there, which supervises nothing."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_VIDEO_TOKEN = "<video>"

DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_END_TOKEN = "<im_end>"

DEFAULT_VID_START_TOKEN = "<vid_start>"
DEFAULT_VIDEO_PATCH_TOKEN = "<vid_patch>"
DEFAULT_VID_END_TOKEN = "<vid_end>"

DEFAULT_SLOW_VID_START_TOKEN = "<slow_vid_start>"
DEFAULT_SLOW_VID_END_TOKEN = "<slow_vid_end>"

PLACEHOLDERS = (DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)
"""What a record's text may contain, once for each file that the record names."""

VISUAL_TOKENS = (
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IM_END_TOKEN,
    DEFAULT_VID_START_TOKEN,
    DEFAULT_VIDEO_PATCH_TOKEN,
    DEFAULT_VID_END_TOKEN,
    DEFAULT_SLOW_VID_START_TOKEN,
    DEFAULT_SLOW_VID_END_TOKEN,
)
"""The eight tokens whose positions hold vision features; never written by a record's author."""

NUM_COORDINATES = 100
"""Steps from 0 to 1 along an axis, both ends included: coordinate `k` is the number `k / 99`."""
COORDINATE_AXES = ("TEMP", "HEIGHT", "WIDTH")
COORDINATE_TOKENS = tuple(f"<{axis}-{k:03d}>" for axis in COORDINATE_AXES for k in range(NUM_COORDINATES))
"""LLaVA-ST's words for when and where, axis by axis; a record may write them, and a model does."""
COORDINATE_PLACEHOLDERS = tuple(f"<{axis}-{way}>" for axis in COORDINATE_AXES for way in ("INPUT", "OUTPUT"))
"""Stand in a record's text for numbers that it gives: one that is told, and one that is asked for."""

RUN_RECORD = "llava_run.json"
"""In the folder of a run and of each checkpoint: what the run was started with, and on what."""
ALARMS_FILE = "alarms.jsonl"
HELD_OUT_FILE = "held_out.json"
"""The records that a run holds out by itself."""
REPORT_FILE = "report.html"
MILESTONE_FILE = "milestone.json"
"""In a model that was kept after so many words, and beside the last one: after how many, and at which step."""

ASIDE = ".tmp-"
"""Start of the names of folders that are being written or removed; what a kill leaves of them is worth nothing."""
