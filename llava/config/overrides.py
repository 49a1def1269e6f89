"""Settings of a fresh model's config as a JSON object, `--config_overrides`."""

from __future__ import annotations

import json
from typing import Any

from llava.errors import UserError


def read_overrides(text: str | None, name: str) -> dict[str, Any]:
    """The settings by name; none where there is no text.

    Args:
        name: of the flag or variable, for the message.

    Raises:
        ValueError: for what is no JSON object.
    """
    if not text:
        return {}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name}: a JSON object is expected, not {text!r:.80} ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: a JSON object is expected, not {text!r:.80}")
    return values
