"""What `bash train_italian_video.sh --help` prints."""

from __future__ import annotations

from typing import Any

from llava.config.known_flags import GROUPS, LIBRARY, OTHERS, Known, known_flags
from llava.config.launch import SHELL_VARIABLES, launch_settings
from llava.config.variables import ALIASES, variable


def help_text() -> str:
    """What can be set, in groups."""
    known, own = known_flags(), launch_settings()
    lines = [
        "bash train_italian_video.sh [--recipe FILE] [--FLAG VALUE ...]",
        "",
        "Trains on video and text, or on text alone, then captions clips that were held out. Without DATA_PATH it",
        "draws clips of its own. An argument beats a variable, which beats the recipe, which beats the default. Every",
        "flag of the trainer is set by a variable of its name in capitals too (LEARNING_RATE=1e-3), with LLAVA_ in",
        "front where other programs use the name.",
        "",
        "Variables of the launch script:",
        *(_row(variable(name), k.help or "", k.default) for name, k in own.items()),
        *(_row(name, text, None) for name, text in SHELL_VARIABLES.items()),
    ]
    groups: dict[str, list[Known]] = {}
    for flag in known.values():
        if flag.help is not None:
            groups.setdefault(flag.group, []).append(flag)
    short: dict[str, str] = {flag: alias for alias, flag in ALIASES.items()}
    for group in (*GROUPS.values(), LIBRARY):
        lines += ["", f"{group}:"]
        for flag in groups[group]:
            if flag.name not in (*own, "use_plain_lm", "local_rank"):
                text = f"(--{flag.name}) {flag.help}" if flag.name in short else flag.help or ""
                lines.append(_row(short.get(flag.name, variable(flag.name)), text, flag.default))
    lines += ["", f"{OTHERS} (docs/from-llava-st.md):", "  " + ", ".join(flag.name for flag in groups[OTHERS])]
    return "\n".join(lines)


def _row(name: str, text: str, default: Any) -> str:
    shown = "" if default is None or default == "" else f" [{default}]"
    text = text if len(text) <= 160 else f"{text[:157]}..."
    return f"  {name:<30} {text}{shown}"
