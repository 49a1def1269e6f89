"""The turns of a record, in LLaVA's form and in that of chat templates, as `{"from", "value"}`.

`{"from": "human", "value": "<video> …"}` stays as it is. `{"role": "user", "content": "<video> …"}` becomes it, also
with a list of parts, `[{"type": "video"}, {"type": "text", "text": "…"}]`, in which each video or image is a
placeholder. A list of such turns may also be called `messages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN

ROLES = ("human", "gpt", "system", "user", "assistant")
"""`from` of a turn. LLaVA writes human and gpt; the last three are the same idea in other data sets."""
FROM = {"user": "human", "assistant": "gpt"}
"""`role` of a turn, as `from`."""
PARTS = {"video": DEFAULT_VIDEO_TOKEN, "image": DEFAULT_IMAGE_TOKEN}
KEYS = ("conversations", "messages")


def read_turns(raw: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """The turns of a record as `{"from", "value"}`, and what is wrong with them."""
    if raw.get("conversations") and raw.get("messages"):
        return [], ["turns under 'conversations' and others under 'messages'; keep one of the two"]
    turns: Any = raw.get("messages") or raw.get("conversations")
    if not isinstance(turns, list) or not turns:
        return [], [f"conversations must be a list of turns with at least one, got {turns!r:.80}"]
    wrong: list[str] = []
    read = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            wrong.append(f"turn {i} must be an object, got {type(turn).__name__}")
            continue
        if "from" not in turn and "value" not in turn and ("role" in turn or "content" in turn):
            turn, messages = _from_role(turn)
        elif "role" in turn or "content" in turn:
            messages = ["from and value beside role or content; keep one of the two forms"]
        elif turn.get("from") not in ROLES:
            messages = [f"from must be human or gpt, got {turn.get('from')!r:.80}"]
        else:
            is_text = isinstance(turn.get("value"), str)
            messages = [] if is_text else [f"value must be a text, got {turn.get('value')!r:.80}"]
        wrong += [f"turn {i}: {message}" for message in messages]
        read.append(turn)
    return read, wrong


def _from_role(turn: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """A turn of `role` and `content` as one of `from` and `value`, and what is wrong with it."""
    role, content = turn.get("role"), turn.get("content")
    wrong = [] if role in ROLES else [f"role must be user, assistant or system, got {role!r:.80}"]
    others = [key for key in turn if key not in ("role", "content") and turn[key]]
    if others:
        wrong.append(f"key {others[0]!r:.80} is not read beside role and content; delete it")
    if isinstance(content, list):
        content, messages = _join(content)
        wrong += messages
    elif not isinstance(content, str):
        wrong.append(f"content must be a text, or a list of parts, got {content!r:.80}")
    return {"from": FROM.get(str(role), str(role)), "value": str(content)}, wrong


def _join(parts: list[Any]) -> tuple[str, list[str]]:
    """The text of a list of parts, with placeholders, and what is wrong with them."""
    texts: list[str] = []
    wrong = []
    before = ""
    for i, part in enumerate(parts):
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        known = {"type", "text"} if kind == "text" else {"type"}
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in PARTS:
            texts.append(PARTS[kind])
        else:
            form = '{"type": "text", "text": …}, {"type": "video"} or {"type": "image"}'
            wrong.append(f"part {i}: expected {form}, got {part!r:.80}")
            continue
        unread = [key for key, value in part.items() if key not in known and value is not None]
        if unread:
            remedy = f'write a file under the record\'s "{kind}"' if kind in PARTS else "delete it"
            wrong.append(f"part {i}: key {unread[0]!r:.80} is not read; {remedy}")
        if kind == before == "text":
            wrong.append(f"part {i}: two texts next to each other; write them as one, with what stands between them")
        before = kind
    return "".join(texts), wrong
