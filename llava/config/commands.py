"""Command lines: dataclasses whose fields are the flags, read by transformers' parser.

A command keeps its own flags in a dataclass beside its `main`, and takes those that it shares with others from
`llava.config.groups`. A field is written as in transformers' argument classes, with two things added: the metadata
`"positional": True` make it an argument without a flag, and a class attribute `ranges` says what the numbers of a class
may be, beside `llava.config.ranges.RANGES`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from transformers.hf_argparser import HfArgumentParser
from transformers.utils import logging as library_logs

from llava.config.known_flags import unknown as nearest
from llava.config.ranges import RANGES, out_of_range
from llava.errors import FLAGS, FileIsThere, UserError, exhausted, fitted, show

WRONG = 2
"""Exit status of a command that was asked for something that it cannot do."""


def parse(
    description: str | None, *kinds: type, argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[Any, ...]:
    """What a command line says, as one instance of each dataclass.

    A flag is accepted with underscores and with hyphens and never shortened; a boolean is `--flag`, `--flag True`, or
    `--no_flag` where it is on by default.

    Args:
        description: what `--help` says first.
        kinds: dataclasses of flags; `--help` lists each as a group, under its `_argument_group_name` if it has one.
            The ValueError of a `__post_init__` is what is said of flags that do not go together.
        argv: the words; those of the process by default.
        prog: what users type, such as `python -m llava.data.check`.

    Raises:
        SystemExit: with status 2 after all wrong flags were printed, each with its remedy; with 0 after `--help`.
    """
    parser = Parser(kinds, prog=prog, description=cleandoc(description or ""))
    values, unknown = parser.parse_known_args(None if argv is None else list(argv))
    known = [name for action in parser._actions for name in action.option_strings]
    problems = unknown_flags(unknown, known)
    absent = [(name, about) for dest, name, about in parser.needed if getattr(values, dest) in (None, [])]
    problems += [f"{name} is needed: {about}" for name, about in absent]
    lacking = bool(problems)
    ranges = {name: allowed for kind in kinds for name, allowed in getattr(kind, "ranges", {}).items()}
    outside = out_of_range(vars(values), RANGES | ranges)
    problems += outside.values()
    for name in outside:
        # The rest is looked at as if this one were right, so that all is said at once.
        setattr(values, name, parser.get_default(name))
    made = []
    for kind in () if lacking else kinds:
        try:
            made.append(kind(**{f.name: getattr(values, f.name) for f in fields(kind) if f.init}))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        refuse(problems[0] if len(problems) == 1 else "\n  - ".join(("wrong flags:", *problems)), parser.prog)
    return tuple(made)


def refuse(message: object, prog: str) -> NoReturn:
    """Ends a command that cannot do what it was asked for, with the reason and status 2.

    Raises:
        SystemExit: always.
    """
    reason = exhausted(str(message)) if isinstance(message, OSError) else None
    text = fitted(show(reason or message, keep="\n"))
    print(f"{prog}: {text}", file=sys.stderr)
    sys.exit(WRONG)


def check_output(flag: str, path: Path | None) -> None:
    """Refuses a file that could not be written once the work is done.

    Raises:
        ValueError: naming the flag, when the path is a folder or lies in none.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it first")


def check_new_folder(folder: Path, called: str) -> None:
    """Refuses a folder that a command is to make and that holds something.

    Raises:
        FileExistsError: naming it, and the argument that it was given by.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileIsThere(f"{folder}: is there already; {called} is a folder that this command makes")


def unknown_flags(words: Sequence[str], known: Iterable[str]) -> list[str]:
    """What is said of the words of a command line that belong to no flag, with the nearest of those that are known."""
    # transformers' parser knows each flag in two spellings, with "_" and with "-".
    names = {name.replace("-", "_").replace("__", "--", 1): None for name in known}
    problems = []
    for word in (w.partition("=")[0] for w in words if w.startswith("--")):
        problems.append(f"{word}: there is no such flag; {nearest('--' + word[2:].replace('-', '_'), names)}")
    if words and not problems:
        problems.append(f"{' '.join(words)}: belongs to no flag; a value with spaces or braces needs quotes")
    return problems


def quiet_libraries() -> None:
    """Commands say themselves what they do: transformers shows errors alone and no bars of loading weights, DeepSpeed
    nothing about a machine without GPU, and huggingface_hub no line for each time that it did not reach the hub."""
    library_logs.set_verbosity_error()
    library_logs.disable_progress_bar()
    logging.getLogger("DeepSpeed").addFilter(_is_not_about_the_cpu)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_is_no_retry)
    # The log of a run says how much of its time it waits for data.
    warnings.filterwarnings("ignore", message="This DataLoader will create")


def _is_not_about_the_cpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def _is_no_retry(record: logging.LogRecord) -> bool:
    """What the last one ended in is the error of the command; waiting for a rate limit is told."""
    message = record.getMessage()
    return "thrown while requesting" not in message and not message.startswith("Retrying in")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each flag in one spelling, with its default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            return super()._format_action_invocation(action)
        flag = action.option_strings[0]
        is_switch = action.nargs == 0 or action.const is True
        return flag if is_switch else f"{flag} {self._format_args(action, action.dest.upper())}"


class Parser(HfArgumentParser):
    """transformers' parser with positional arguments, whose errors are messages and not a page of usage.

    Attributes:
        needed: (name, what users type, help) of each argument that must be given. They are asked for by `parse`, which
            says so beside all else that is wrong.
    """

    def __init__(self, kinds: Sequence[Any], **options: Any) -> None:
        super().__init__(kinds, formatter_class=Help, allow_abbrev=False, **options)
        self.needed: list[tuple[str, str, str]] = []
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):
                action.help, action.default = f"no --{action.dest}", None
            if action.required:
                name = action.option_strings[0] if action.option_strings else str(action.metavar)
                self.needed.append((action.dest, name, action.help or ""))
                action.required = False
        self.usage = " ".join(("%(prog)s", *(name for _, name, _ in self.needed), "[flags]"))

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: Field) -> None:
        options: dict[str, Any] = dict(field.metadata)
        if not options.pop("positional", False):
            HfArgumentParser._parse_dataclass_field(parser, field)
            return
        several = get_origin(field.type) is list
        options |= {"type": get_args(field.type)[0], "nargs": "*"} if several else {"type": field.type, "nargs": "?"}
        added = parser.add_argument(field.name, **{"metavar": field.name.upper()} | options)
        added.required = field.default is MISSING and field.default_factory is MISSING
        added.default = [] if several else None if added.required else field.default

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As in argparse; from here on, messages name the flags of this command alone."""
        quiet_libraries()
        FLAGS.clear()
        FLAGS.update(name for action in self._actions for name in action.option_strings if "-" not in name[2:])
        return super().parse_known_args(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        flag = re.match(r"argument (--\w+)(?:/[^:]+)?: ", message)
        refuse(f"{flag[1]}: {message[flag.end() :]}" if flag else message, self.prog)
