"""Pre-flight of the captions as texts: how different they are, what they are written in, and what they give away."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from transformers import PreTrainedTokenizerBase

from llava.data.captions import MODEL_ROLES, without_placeholders
from llava.data.coordinates import spell
from llava.data.prompt import tokenized
from llava.data.records import Record
from llava.data.target_words import target_entropies
from llava.data.variables import fill
from llava.train.preflight.data import Finding

MAX_RECORDS = 5_000
"""Records that are looked at, evenly spread."""
ENOUGH = 20
"""Captions below which shares are shown and not judged."""
MOJIBAKE = re.compile(
    r"[ÃÂ][\u0080-\u00bf]|â€|\ufffd|&(?:amp|quot|apos|lt|gt|nbsp|#\d+);|</?(?:p|b|i|br|div|span|em|strong|font)\s*/?>"
    r"|\\u[0-9a-fA-F]{4}|(?<!:)\\[nrt]"
)
"""UTF-8 read as Latin-1 or cp1252, the replacement character, entities and tags of HTML, escapes that were not read."""
BROKEN = 0.001
"""Share of such captions above which they are named: of the 142,200 captions of MSR-VTT-it 3 hold an entity."""
BLANKS = re.compile(r"[ \t\r\n]+")
URL = re.compile(r"(?:https?://|ftp://|www\.)\S+", re.IGNORECASE)
LABEL = re.compile(r"\W*\w+\s*[:=>|]")
"""A word and a mark that announces the text, as in `Caption: `."""
CONSTANT = 0.95
"""Share of captions that begin, or end, with the same words above which they are named."""
CONSTANT_WORDS = 2
"""Words that make it more than an article."""
TOKENS_PER_WORD = 2.0
"""On MSR-VTT-it a tokenizer of its own needs 1.6 tokens a word with 1,000 entries and 1.3 with 2,000, one of English
text 3.1 and 2.9, and so two to three times the targets."""
LARGE_VOCABULARY = 1_000
"""Entries below which a tokenizer cannot know its words."""
FREQUENT = 0.2
"""Share of one caption above which it is named."""
LEAKED = 0.05
"""Share of captions that stand in their prompt, or are a name, above which it is named."""
UNSEEN_FACTOR, UNSEEN_SHARE = 2.0, 0.1
"""Words of evaluation that training never saw, against those that a part of the training captions lacks."""


@dataclass(frozen=True)
class Caption:
    """What the model says in a record (`text`), what it is asked (`prompt`), and what it is shown (`clip`)."""

    record_id: str
    text: str
    prompt: str
    clip: object

    @property
    def words(self) -> list[str]:
        return re.findall(r"\w+", self.text.casefold())


def captions_of(records: Sequence[Record], limit: int = MAX_RECORDS) -> list[Caption]:
    """The captions of records, evenly spread when there are more than `limit`."""
    found = []
    for record in records[:: max(1, math.ceil(len(records) / limit))]:
        turns: dict[bool, list[str]] = {True: [], False: []}
        spelled = fill(record.conversations, record.coordinates, spell) if record.coordinates else record.conversations
        for turn in spelled:
            text = without_placeholders(turn["value"], " ")
            turns[turn["from"] in MODEL_ROLES].append(BLANKS.sub(" ", text).strip(" "))
        clip = (record.videos, record.images, record.split) if record.videos or record.images else record.id
        found.append(Caption(record.id, " ".join(turns[True]).strip(" "), " ".join(turns[False]).strip(" "), clip))
    return found


def check_captions(
    records: Sequence[Record],
    evaluation: Sequence[Record] | None,
    tokenizer: PreTrainedTokenizerBase,
    entropies: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Every line of the table about captions; no file is opened.

    Args:
        entropies: of the targets, as `target_entropies` counts them; counted here where they are not given.
    """
    captions = captions_of(records)
    findings = [
        check_variety(captions),
        check_encoding(captions),
        check_form(captions),
        check_leaks(captions),
        check_names(captions),
        check_tokenizer(captions, tokenizer, target_entropies(records, tokenizer) if entropies is None else entropies),
    ]
    if evaluation:
        findings.append(check_evaluation(captions, captions_of(evaluation)))
    return [f for f in findings if f is not None]


def check_variety(captions: Sequence[Caption]) -> Finding:
    """How many captions are distinct, the most frequent one, and how long they are."""
    counts = Counter(c.text for c in captions)
    text, often = counts.most_common(1)[0]
    lengths = [len(c.words) for c in captions]
    words = (
        f"{len(counts):,} of {len(captions):,} are distinct; the most frequent is {often / len(captions):.1%} of them "
        f"({_short(text)}); {median(lengths):g} words in the median, {max(lengths)} at most"
    )
    if len(captions) >= ENOUGH and len(counts) == 1 and len({c.clip for c in captions}) > 1:
        remedy = "look into the data file: every record has the same caption, so there is nothing to be learned"
        return Finding("captions", "FAIL", words, remedy)
    if len(captions) >= ENOUGH and often > FREQUENT * len(captions):
        remedy = "look whether that caption is a placeholder; the model will say it of any clip"
        return Finding("captions", "warning", words, remedy)
    return Finding("captions", "ok", words)


def check_encoding(captions: Sequence[Caption]) -> Finding:
    """Captions that were decoded wrongly or still hold HTML or escapes."""
    broken = [(c, match[0]) for c in captions if (match := MOJIBAKE.search(c.text))]
    if len(broken) <= BROKEN * len(captions):
        return Finding("encoding of captions", "ok", f"{len(broken)} of {len(captions):,} hold mojibake or HTML")
    first, piece = broken[0]
    words = f"{len(broken):,} of {len(captions):,} hold {piece!r} or the like, first {first.record_id!r}: "
    remedy = (
        "read the source as UTF-8 and unescape HTML (html.unescape) before writing the data file; the model learns to "
        "write what it reads"
    )
    return Finding("encoding of captions", "warning", words + _short(first.text), remedy)


def check_form(captions: Sequence[Caption]) -> Finding:
    """Captions that are addresses or JSON, and words that all captions begin or end with."""
    found = []
    for what, is_one in (("an address", URL.fullmatch), ("JSON", is_json)):
        named = [c for c in captions if is_one(c.text)]
        if len(named) > BROKEN * len(captions):
            first = f"first {named[0].record_id!r}: {_short(named[0].text)}"
            found.append(f"{len(named):,} of {len(captions):,} are {what} and no sentence ({first})")
    if len(captions) >= ENOUGH and len({c.text for c in captions}) > 1:
        for where, words in (("begin", constant_start(captions)), ("end", constant_start(captions, backwards=True))):
            if words:
                found.append(f"{CONSTANT:.0%} of {len(captions):,} or more {where} with {_short(words)}")
    if found:
        remedy = (
            "write the words of a caption alone into the data file: the model learns the rest by heart, and the loss "
            "falls without a word about the clip"
        )
        return Finding("form of captions", "warning", "; ".join(found), remedy)
    return Finding("form of captions", "ok", "no addresses, no JSON, no words that all begin or end with")


def is_json(text: str) -> bool:
    """Whether a text is an object or a list of JSON."""
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]"):
        return False
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def constant_start(captions: Sequence[Caption], backwards: bool = False) -> str:
    """The words that nearly all captions begin with (end with, `backwards`), if they are more than an article: at least
    `CONSTANT_WORDS`, or one that announces the text.
    """
    rows = [c.text.split() for c in captions]
    rows = [row[::-1] for row in rows] if backwards else rows
    shared: list[str] = []
    while True:
        counts = Counter(row[len(shared)] for row in rows if len(row) > len(shared))
        if not counts or counts.most_common(1)[0][1] < CONSTANT * len(captions):
            break
        shared.append(counts.most_common(1)[0][0])
        rows = [row for row in rows if row[: len(shared)] == shared]
    words = " ".join(shared[::-1] if backwards else shared)
    label = not backwards and LABEL.match(words + " ")
    return words if len(shared) >= CONSTANT_WORDS or label else ""


def check_leaks(captions: Sequence[Caption]) -> Finding | None:
    """Captions of two words or more that stand in their own prompt; None where no record has a prompt."""
    asked = [c for c in captions if c.prompt]
    if not asked:
        return None
    given = [c for c in asked if len(c.words) > 1 and c.text.casefold() in c.prompt.casefold()]
    words = f"{len(given):,} of {len(asked):,} captions with a prompt stand in it word by word"
    if len(given) > LEAKED * len(asked):
        remedy = "take the caption out of the prompt: the model copies it and need not look"
        return Finding("captions in prompts", "warning", f"{words}, first {given[0].record_id!r}", remedy)
    return Finding("captions in prompts", "ok", words)


def check_names(captions: Sequence[Caption]) -> Finding | None:
    """Captions that are the id or the file name of their record, as when columns were exchanged; None without any."""
    named = [c for c in captions if c.text.casefold() in names_of(c)]
    if not named:
        return None
    words = f"{len(named):,} of {len(captions):,} are the id or the file name of their record, first "
    words += f"{named[0].record_id!r}: {_short(named[0].text)}"
    if len(captions) >= ENOUGH and len(named) > LEAKED * len(captions):
        remedy = "look whether the data file was made from the wrong column"
        return Finding("captions that are names", "warning", words, remedy)
    return Finding("captions that are names", "ok", words)


def names_of(caption: Caption) -> set[str]:
    """What a record and its files are called, in lower case: its id, and each path's name with and without suffix."""
    videos, images = caption.clip[:2] if isinstance(caption.clip, tuple) else ((), ())
    paths = [Path(path) for path in (*videos, *images)]
    return {name.casefold() for name in (caption.record_id, *(n for p in paths for n in (p.name, p.stem)))}


def check_tokenizer(
    captions: Sequence[Caption], tokenizer: PreTrainedTokenizerBase, entropies: Mapping[str, float]
) -> Finding:
    """Tokens that a word takes, and the unigram entropy of the targets, which the plateau alarm is measured by."""
    texts = [c.text for c in captions if c.text]
    lengths = [len(ids) for ids in tokenized(tokenizer, texts)]
    tokens, written = sum(lengths), sum(len(text.split()) for text in texts)
    rate = tokens / max(written, 1)
    words = (
        f"{rate:.2f} tokens a word, {median(lengths):g} a caption in the median; unigram entropy of the "
        f"targets: {', '.join(f'{kind} {value:.2f} nats' for kind, value in entropies.items())}; ln(vocabulary) is "
        f"{math.log(len(tokenizer)):.2f}"
    )
    if rate > TOKENS_PER_WORD and len(tokenizer) >= LARGE_VOCABULARY and written >= ENOUGH:
        remedy = "its words are those of another language: train a tokenizer on the captions (llava-make-model)"
        return Finding("tokens of words", "warning", words, remedy)
    return Finding("tokens of words", "ok", words)


def check_evaluation(captions: Sequence[Caption], evaluation: Sequence[Caption]) -> Finding:
    """Whether evaluation captions are written like training captions: in their words and their length.

    The words that training never saw are counted among those of evaluation, and among those of a tenth of the training
    clips with the rest as training: what is unseen by chance.
    """
    clips = list(dict.fromkeys(c.clip for c in captions))
    aside = set(clips[::10])
    apart = [c for c in captions if c.clip in aside]
    usual = unseen_share(apart, (c for c in captions if c.clip not in aside))
    unseen = unseen_share(evaluation, captions)
    lengths = [median(len(c.words) for c in some) for some in (evaluation, captions)]
    words = (
        f"{unseen:.1%} of the words of {len(evaluation):,} evaluation captions are in no training caption, where a "
        f"tenth of the training captions has {usual:.1%} that are in no other; {lengths[0]:g} words against "
        f"{lengths[1]:g} in the median"
    )
    enough = min(len(evaluation), len(apart)) >= ENOUGH
    longer = max(lengths) > 2 * max(min(lengths), 1)
    if enough and (unseen > max(UNSEEN_FACTOR * usual, usual + UNSEEN_SHARE) or longer):
        remedy = "look whether --eval_data_path holds captions of another kind, source or language"
        return Finding("evaluation captions", "warning", words, remedy)
    return Finding("evaluation captions", "ok", words)


def unseen_share(captions: Iterable[Caption], known: Iterable[Caption]) -> float:
    """Share of the words of some captions that occur in no caption of `known`."""
    vocabulary = {word for c in known for word in c.words}
    words = [word for c in captions for word in c.words]
    return sum(word not in vocabulary for word in words) / max(len(words), 1)


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")
