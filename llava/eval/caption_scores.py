"""Scores of free text against references: CIDEr-D, BLEU-4 and chrF++, with intervals over clips. Pure.

Letters in shapes: N captions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar
from unicodedata import normalize

import numpy as np

from llava.errors import UserError
from llava.eval.statistics import bootstrap_ratio, bootstrap_sums

CIDER, BLEU, CHRF = "CIDEr-D", "BLEU-4", "chrF++"
METRICS = (CIDER, BLEU, CHRF)
INSTALL = 'pip install "llava-italian-video[metrics]", or sacrebleu alone'
ENGLISH = {
    "METEOR": "its stems, synonyms (WordNet) and paraphrases are English",
    "SPICE": "its parser draws scene graphs from English sentences alone",
}
"""Scores that are refused, and why."""
ORDER = 4
SIGMA = 6.0
"""Words: width of CIDEr-D's penalty for another length."""
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032`\u00b4", "'"))
MARKS = "\u0300-\u036f"
TOKEN = re.compile(rf"(?P<opening>(?<![^\W_{MARKS}])'(?=[^\W\d_]))|(?:[^\W_][{MARKS}]*)+'?")

Clip = TypeVar("Clip", bound=Hashable)
Triple = tuple[float, float, float]
"""A score and the ends of its 95 % interval."""


def tokenise(text: str) -> list[str]:
    """The words of an Italian text, in lower case, accents composed (NFC), without punctuation.

    An elision is split after its apostrophe (`l'uomo` is `l'`, `uomo`), a cut word keeps it (`po'`), however the
    apostrophe is typed. A quotation in single quotes loses both of them: one before a word, and the next one after a
    word at which no other word follows. Before a number it stands for a century (`gli anni '60`).
    """
    # Lower case takes some letters apart again.
    text = normalize("NFC", normalize("NFC", text).lower()).translate(APOSTROPHES)
    tokens: list[str] = []
    quoted = False
    for match in TOKEN.finditer(text):
        if match["opening"]:
            quoted = True
            continue
        token = match[0]
        if quoted and token.endswith("'") and not text[match.end() : match.end() + 1].isalnum():
            token, quoted = token[:-1], False
        tokens.append(token)
    return tokens


def cider_d(
    captions: Sequence[Sequence[str]],
    clips: Sequence[Clip],
    references: Mapping[Clip, Sequence[Sequence[str]]],
) -> np.ndarray:
    """CIDEr-D of each caption, (N,), from 0 to 10 (Vedantam et al. 2015, sections 4 and 5).

    For n = 1 to 4: the cosine of the n-grams' counts x ln(clips / clips that have it in a reference), each count of
    the caption clipped at the reference's, times a Gaussian of the difference in words (sigma 6); mean over n and the
    references, times 10. Counts are whole numbers, as in the authors' code, and not shares of the text.

    Args:
        captions, clips: (N,) tokens of each caption, and the clip that it belongs to.
        references: token lists of each clip; all clips of the set, since they decide how rare an n-gram is.

    Raises:
        ValueError: for fewer than two clips, where every n-gram would weigh nothing.
    """
    if len(references) < 2:
        raise UserError(f"{len(references)} clip: CIDEr-D weighs words by how few clips have them, and needs two")
    holders = Counter(gram for texts in references.values() for gram in set().union(*map(_grams, texts)))
    log_clips = math.log(len(references))

    def weigh(tokens: Sequence[str]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in _grams(tokens).items():
            vectors[len(gram) - 1][gram] = count * (log_clips - math.log(max(1, holders[gram])))
        return vectors

    weighed = {clip: [(weigh(text), len(text)) for text in texts] for clip, texts in references.items()}
    scores = []
    for tokens, clip in zip(captions, clips, strict=True):
        own = weigh(tokens)
        each = [
            math.exp(-((len(tokens) - length) ** 2) / (2 * SIGMA**2)) * sum(map(_clipped_cosine, own, vectors)) / ORDER
            for vectors, length in weighed[clip]
        ]
        scores.append(10 * sum(each) / len(each))
    return np.array(scores)


def _grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(tokens) - n + 1))


def _clipped_cosine(own: Mapping[Any, float], reference: Mapping[Any, float]) -> float:
    norms = math.hypot(*own.values()) * math.hypot(*reference.values())
    product = sum(min(weight, reference[gram]) * reference[gram] for gram, weight in own.items() if gram in reference)
    return product / norms if norms else 0.0


def choose_metrics(names: Sequence[str] = ()) -> list[str]:
    """The scores that are meant, in any case of letters; without names those of `METRICS` that can be computed here.

    Raises:
        ValueError: for a score for English, for an unknown one, and for one whose library is not installed.
    """
    has_sacrebleu = find_spec("sacrebleu") is not None
    if not names:
        return list(METRICS) if has_sacrebleu else [CIDER]
    known = {name.lower(): name for name in METRICS}
    for name in names:
        if reason := ENGLISH.get(name.upper()):
            raise UserError(f"--metrics {name}: it is made for English ({reason}); choose among {', '.join(METRICS)}")
        if name.lower() not in known:
            raise UserError(f"--metrics {name}: there is no such score; choose among {', '.join(METRICS)}")
        if known[name.lower()] != CIDER and not has_sacrebleu:
            raise UserError(f"--metrics {name}: it needs sacrebleu, which is not installed: {INSTALL}")
    return [metric for metric in METRICS if metric.lower() in {name.lower() for name in names}]


def score_texts(
    captions: Sequence[str],
    clips: Sequence[Clip],
    references: Mapping[Clip, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    groups: Mapping[Clip, Hashable] | None = None,
) -> dict[str, Triple]:
    """Scores of a set of captions, each with its 95 % bootstrap interval over clips (NaN ends for a single clip).

    CIDEr-D (0 to 10) is the mean over captions; how rare a word is stays as it is when clips are resampled. BLEU-4
    (Papineni et al. 2002; the closest reference's length, no smoothing) and chrF++ (Popovic 2017; of each caption its
    best reference), 0 to 100, are sacrebleu's of the whole set. A caption that several records of a clip share counts
    once, so that a clip does not weigh more for having more references.

    Args:
        captions, clips: (N,) texts, and the clip that each belongs to.
        references: texts of each clip; one without words counts only where a clip has no other.
        groups: what is resampled together, where captions are of parts of clips (a box, a span): the clip of each part.

    Returns:
        scores by name; CIDEr-D is missing for a single clip, which it cannot be computed of.
    """
    pairs = list(dict.fromkeys(zip(clips, captions, strict=True)))
    order = {clip: i for i, clip in enumerate(references)}
    owners = [order[clip] for clip, _ in pairs]
    numbers = {group: i for i, group in enumerate(dict.fromkeys((groups or {}).values()))}
    clusters = owners if groups is None else [numbers[groups[clip]] for clip, _ in pairs]
    written = [tokenise(text) for _, text in pairs]
    expected = {order[clip]: _with_words([tokenise(text) for text in texts]) for clip, texts in references.items()}
    scores: dict[str, Triple] = {}
    for metric in metrics:
        if metric != CIDER:
            scores[metric] = _sacrebleu(metric, written, owners, clusters, expected)
        elif len(expected) > 1:
            scores[metric] = bootstrap_ratio(cider_d(written, owners, expected).tolist(), [1.0] * len(pairs), clusters)
    return scores


def _with_words(texts: list[list[str]]) -> list[list[str]]:
    return [text for text in texts if text] or texts[:1]


def _sacrebleu(
    metric: str,
    captions: Sequence[Sequence[str]],
    owners: Sequence[int],
    clusters: Sequence[int],
    references: Mapping[int, Sequence[Sequence[str]]],
) -> Triple:
    """BLEU-4 or chrF++ of tokens; sacrebleu's own bootstrap resamples captions, and not clips."""
    from sacrebleu.metrics import BLEU as Bleu
    from sacrebleu.metrics import CHRF as Chrf

    scorer = Bleu(tokenize="none", smooth_method="none", force=True) if metric == BLEU else Chrf(word_order=2)
    texts = {clip: [" ".join(tokens) for tokens in lists] for clip, lists in references.items()}
    most = max(map(len, texts.values()))
    # As sacrebleu takes them: None where a clip has fewer.
    streams: list[Any] = [[texts[c][i] if i < len(texts[c]) else None for c in owners] for i in range(most)]
    # What each caption adds to the sums; sacrebleu's tests of significance go the same way.
    parts = np.array(scorer._extract_corpus_statistics([" ".join(tokens) for tokens in captions], streams))

    def score(sums: np.ndarray) -> float:
        return float(scorer._compute_score_from_stats(sums.astype(int).tolist()).score)

    return bootstrap_sums(parts, clusters, score)
