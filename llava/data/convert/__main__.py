"""Makes records for the trainer from captions as others write them.

    python -m llava.data.convert captions.csv --video_folder clips --output train.json

Reads CSV and TSV (WebVid's columns and others), JSON and JSON lines of objects, MSR-VTT, VATEX, MSVD, COCO captions,
Parquet, datasets that were saved to disk, and folders of clips with .txt, .srt or .vtt beside them; and annotations of
where and when (ST-Align's benchmark, RefCOCO, Charades-STA, HC-STVG, VidSTG), which become questions and answers with
coordinates. It says which form it found and which columns it takes. What has no file is not written: FILE.missing.txt
lists the clips, FILE.left_out.txt everything else that was left out. A source with splits gives a file for each.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.config.commands import parse, refuse
from llava.config.video import VideoSpec
from llava.data.convert.build import Tally, build, summary
from llava.data.convert.clips import IMAGES, VIDEOS, ClipIndex
from llava.data.convert.columns import Asked
from llava.data.convert.fields import MarkedSource
from llava.data.convert.grounding import open_marked
from llava.data.convert.marked import Wanted, build_marked
from llava.data.convert.rows import COMMAND
from llava.data.convert.sniff import Opened, open_form
from llava.data.convert.write import Writer, part_path, write_lists
from llava.data.grounding.prompts import LANGUAGES, PROMPTS
from llava.data.json_records import DatasetError
from llava.data.mixture import DEFAULT_SEED
from llava.errors import UserError, run_command, show
from llava.progress import progress


@dataclass
class ConvertFlags:
    """What is read, and what is written."""

    _argument_group_name = "conversion"

    source: str = field(metadata={"positional": True, "help": "A file or folder of captions."})
    output: str = field(metadata={"help": "The file of records: .json (a list) or .jsonl (one a line)."})
    video_folder: str | None = field(default=None, metadata={"help": "Where the clips lie, in folders of any depth."})
    image_folder: str | None = field(default=None, metadata={"help": "Where the images lie, for captions of images."})
    text_only: bool = field(
        default=False, metadata={"help": "Records without clips, for text-only training where the clips are not there."}
    )
    clip_column: str | None = field(default=None, metadata={"help": "Column or key that names the clip."})
    caption_column: str | None = field(default=None, metadata={"help": "Column or key of the captions."})
    split_column: str | None = field(default=None, metadata={"help": "Column of the split; none for none."})
    start_column: str | None = field(
        default=None, metadata={"help": "Column of the first second of a segment; none where clips are cut already."}
    )
    end_column: str | None = field(default=None, metadata={"help": "Column of the second at which a segment ends."})
    language: str | None = field(default=None, metadata={"help": "Take captions of this language alone: it, English."})
    header: bool = field(default=True, metadata={"help": "Whether the first row of a table names its columns."})
    encoding: str = field(default="utf-8", metadata={"help": "Of the source, such as latin-1 or cp1252."})
    tasks: str | None = field(
        default=None, metadata={"help": "Of annotations of where and when, the tasks to make: REC,TVG. All it serves."}
    )
    questions: str = field(
        default="it", metadata={"help": "Language in which those tasks are asked.", "choices": tuple(PROMPTS)}
    )
    num_frames: int = field(
        default=VideoSpec.num_frames,
        metadata={"help": "Frames of a video that training sees; boxes are given at these."},
    )
    annotations: str | None = field(
        default=None,
        metadata={
            "help": "Folder of VidOR's files, with the boxes of VidSTG; instances.json, with those of RefCOCO's refs."
        },
    )
    seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of the wordings of questions."})
    overwrite: bool = field(default=False, metadata={"help": "Replace files of an earlier conversion."})

    def __post_init__(self) -> None:
        if Path(self.output).suffix not in (".json", ".jsonl"):
            raise UserError(f"--output {show(self.output)}: end it in .json (a list) or .jsonl (one record a line)")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise UserError(
                f"--encoding {show(self.encoding)}: is not known; use utf-8, latin-1, cp1252 ..."
            ) from error

    def wanted(self, served: Sequence[str]) -> Wanted:
        """What is to be made of annotations whose form serves some tasks.

        Raises:
            DatasetError: when it serves none of those that are asked for.
        """
        named = tuple(served) if self.tasks is None else tuple(t.strip().upper() for t in self.tasks.split(","))
        if unserved := [t for t in named if t not in served]:
            raise DatasetError(f"--tasks {show(unserved[0])}: this form serves {', '.join(served)}")
        return Wanted(named, self.questions, self.num_frames, self.seed)

    def asked(self) -> Asked:
        """What the flags say of columns."""
        return Asked(
            self.clip_column, self.caption_column, self.language, self.start_column, self.end_column, self.split_column
        )


def open_index(flags: ConvertFlags, opened: Opened | MarkedSource) -> ClipIndex | None:
    """The files that the captions may be of; None for records of text alone.

    Raises:
        DatasetError: when no flag says where they are.
    """
    if flags.text_only:
        if isinstance(opened, MarkedSource):
            raise DatasetError("--text_only: where and when something is cannot be learnt without its clips")
        return None
    if opened.is_image:
        folder, flag, extensions = flags.image_folder, "--image_folder", IMAGES
    else:
        beside = flags.source if opened.form == "folder of clips" else None
        folder, flag, extensions = flags.video_folder or beside, "--video_folder", VIDEOS
    if folder is None:
        raise DatasetError(
            f"{flag} DIR is needed: the folder in which the files lie that the captions are of. To train on the "
            "captions alone, add --text_only"
        )
    index = ClipIndex(folder, extensions, flag)
    if not index.count:
        raise DatasetError(f"{flag} {show(folder)}: holds no file ending in {', '.join(sorted(extensions))}")
    return index


def records_of(
    flags: ConvertFlags, opened: Opened | MarkedSource, index: ClipIndex | None, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, record) of everything in a source that can be trained on."""
    hidden = not sys.stderr.isatty()
    if isinstance(opened, MarkedSource):
        assert index is not None
        items = progress(opened.items, desc="annotations", unit="row", disable=hidden)
        yield from build_marked(items, index, tally, flags.wanted(opened.tasks))
    else:
        rows = progress(opened.rows, desc="captions", unit="row", disable=hidden)
        yield from build(rows, index, tally, flags.asked().code, opened.is_image)


def language_of(questions: str, marked: MarkedSource) -> str:
    """In which language annotations are asked about, and how another is chosen."""
    if marked.asks:
        return f"the source's own, in {LANGUAGES[marked.asks]}; --questions has no effect"
    others = " or ".join(f"--questions {code} for {name}" for code, name in LANGUAGES.items() if code != questions)
    return f"in {LANGUAGES[questions]} (--questions {questions}), whatever language the source is in; {others}"


def check_command(flags: ConvertFlags, split: str) -> str:
    """A look at every file, with the frames at which boxes are given."""
    folder = "--image_folder" if flags.image_folder else "--video_folder"
    given = f"{folder} {shlex.quote(str(flags.image_folder or flags.video_folder))}"
    path = shlex.quote(str(part_path(Path(flags.output), split)))
    frames = "" if flags.image_folder else f" --num_frames {flags.num_frames} --force_sample True"
    return f"python -m llava.data.check --data_path {path} {given} --mm_coordinates True{frames}"


def next_command(flags: ConvertFlags, tally: Tally) -> str:
    """What to type next: a look at every file where the source had no splits, else the run."""
    output = Path(flags.output)
    folders = {"video": flags.video_folder, "image": flags.image_folder}
    if not flags.text_only and not any(folders.values()):
        folders["video"] = flags.source
    named = {kind: folder for kind, folder in folders.items() if folder and not flags.text_only}
    splits = {split.casefold(): part_path(output, split) for split in tally.written}
    train = next((splits[k] for k in ("train", "training") if k in splits), None)
    held_out = next((splits[k] for k in ("validation", "validate", "val", "dev", "test") if k in splits), None)
    if train is None or held_out is None:
        path = train or next(iter(splits.values()))
        given = " ".join(f"--{kind}_folder {shlex.quote(folder)}" for kind, folder in named.items())
        return f"python -m llava.data.check --data_path {shlex.quote(str(path))} {given}".rstrip()
    settings = [f"DATA_PATH={shlex.quote(str(train))}", f"EVAL_DATA_PATH={shlex.quote(str(held_out))}"]
    settings += [f"{kind.upper()}_FOLDER={shlex.quote(folder)}" for kind, folder in named.items()]
    return " ".join([*(["EXP_ID=1"] if flags.text_only else []), *settings, "bash train_italian_video.sh"])


def main(argv: Sequence[str] | None = None) -> int:
    """Converts, and prints the form, the columns, the counts and the next command; returns the exit code."""
    (flags,) = parse(__doc__, ConvertFlags, argv=argv, prog=COMMAND)
    output, tally, writer = Path(flags.output), Tally(), Writer(Path(flags.output), flags.overwrite, Path(flags.source))
    try:
        marked = open_marked(flags.source, flags.encoding, flags.asked().code, flags.annotations)
        opened = marked or open_form(flags.source, flags.asked(), flags.encoding, flags.header)
        print(f"{show(flags.source)}: {opened.form} ({opened.why})")
        if marked is not None:
            print(f"questions: {language_of(flags.questions, marked)}")
        if isinstance(opened, Opened):
            if opened.columns is not None:
                print(f"columns: {opened.columns}")
            if flags.image_folder and not flags.video_folder:
                opened = replace(opened, is_image=True)
        index = open_index(flags, opened)
        with ExitStack() as stack:
            stack.callback(writer.discard)
            for split, record in records_of(flags, opened, index, tally):
                writer.write(split, record)
            stack.pop_all()
        writer.finish()
        listed = write_lists(output, tally)
    except (DatasetError, OSError) as error:
        refuse(error, COMMAND)
    print("\n".join(summary(tally, listed, index is not None, "captions" if marked is None else "annotations")))
    if not tally.written:
        reason = "look at what is counted above"
        if tally.missing:
            reason += f"; is {'--image_folder' if flags.image_folder else '--video_folder'} right?"
            reason += "" if marked else " --text_only takes the captions alone"
        refuse(f"no record was written: {reason}", COMMAND)
    for split, count in tally.written.items():
        print(f"written: {part_path(output, split)}, {count:,} records")
    print(f"next: {next_command(flags, tally) if marked is None else check_command(flags, next(iter(tally.written)))}")
    return 0


if __name__ == "__main__":
    run_command(main)
