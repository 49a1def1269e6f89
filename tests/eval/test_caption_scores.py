"""Scores of free text: words, CIDEr-D by hand, and both beside the reference implementation."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest

from llava.eval import caption_scores
from llava.eval.caption_scores import BLEU, CHRF, CIDER, METRICS, choose_metrics, cider_d, score_texts, tokenise

SACREBLEU = "sacrebleu is not installed (pip install -e '.[metrics]')"
COCO = "pycocoevalcap is not installed (pip install --no-deps pycocoevalcap)"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Gli anni '60, un po' dell'80.", ["gli", "anni", "60", "un", "po'", "dell'", "80"]),
        ("L'uomo beve un po' d’acqua.", ["l'", "uomo", "beve", "un", "po'", "d'", "acqua"]),
        ("PERCHÉ no? È già lì!", ["perché", "no", "è", "già", "lì"]),
        ("un «gatto» nero, (e) 2 cani - insieme…", ["un", "gatto", "nero", "e", "2", "cani", "insieme"]),
        ("dice 'l'uomo corre' e un po' dopo 'sì'", ["dice", "l'", "uomo", "corre", "e", "un", "po'", "dopo", "sì"]),
        ("quell`altro\nun_due", ["quell'", "altro", "un", "due"]),
        ("... 🙂", []),
    ],
)
def test_words_of_an_italian_text(text, tokens):
    assert tokenise(text) == tokens
    assert tokenise(unicodedata.normalize("NFD", text)) == tokens, "accents typed apart are the same letters"


def test_cider_d_is_the_formula():
    references = {"A": [["a", "b"]], "B": [["c"]]}
    captions = [["a", "b"], ["a"], ["a", "a"], ["c"], []]
    expected = [
        10 * (1 + 1) / 4,  # One word and pairs are the same; there are no longer n-grams.
        10 * math.exp(-1 / 72) * (1 / math.sqrt(2)) / 4,  # One word less: sigma 6.
        10 * (1 / (2 * math.sqrt(2))) / 4,  # The second "a" is clipped, but counts in the length of the vector.
        0,
        0,
    ]
    assert cider_d(captions, ["A"] * 5, references) == pytest.approx(expected, abs=1e-12)


def test_cider_d_weighs_rare_words_and_takes_the_mean_over_references():
    references = {"A": [["un", "cane"], ["un"]], "B": [["un", "gatto"]], "C": [["il", "gatto"]]}
    un, cane = math.log(3 / 2), math.log(3)
    first = (1 + 1) / 4  # The reference itself.
    second = math.exp(-1 / 72) * un / math.hypot(un, cane) / 4
    assert cider_d([["un", "cane"]], ["A"], references)[0] == pytest.approx(10 * (first + second) / 2)
    everywhere = {clip: [["un"]] for clip in "AB"}
    assert cider_d([["un"]], ["A"], everywhere)[0] == 0, "a word of every clip says nothing"
    with pytest.raises(ValueError, match="1 clip: CIDEr-D .* needs two"):
        cider_d([["un"]], ["A"], {"A": [["un"]]})


def made_up(clips: int = 40) -> tuple[list[str], dict[int, list[str]]]:
    """Texts of drawn words, one to four references a clip; captions are changed references."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    weights = 1 / np.arange(1, 31) / (1 / np.arange(1, 31)).sum()
    references = {
        c: [" ".join(rng.choice(words, rng.integers(3, 14), p=weights)) for _ in range(rng.integers(1, 5))]
        for c in range(clips)
    }
    captions = []
    for texts in references.values():
        kept = texts[0].split()[rng.integers(3) :]
        captions.append(" ".join(w if rng.random() > 0.2 else str(rng.choice(words)) for w in kept))
    return captions, references


def test_cider_d_equals_the_coco_toolkit():
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=COCO)
    captions, references = made_up()
    mean, each = cider.Cider().compute_score(references, {i: [c] for i, c in enumerate(captions)})
    own = cider_d(
        [c.split() for c in captions], list(references), {c: [t.split() for t in r] for c, r in references.items()}
    )
    assert own == pytest.approx(np.array(each), abs=1e-9) and mean > 1
    assert score_texts(captions, list(references), references, [CIDER])[CIDER][0] == pytest.approx(mean, abs=1e-9)


def test_bleu_equals_the_coco_toolkit():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=COCO)
    pytest.importorskip("sacrebleu", reason=SACREBLEU)
    captions, references = made_up()
    scores, _ = bleu.Bleu(4).compute_score(references, {i: [c] for i, c in enumerate(captions)}, verbose=0)
    own = score_texts(captions, list(references), references, [BLEU])[BLEU][0]
    assert own == pytest.approx(100 * scores[3], abs=1e-5) and own > 1


def test_bleu_and_chrf_are_sacrebleus_with_intervals_over_clips():
    metrics = pytest.importorskip("sacrebleu.metrics", reason=SACREBLEU)
    captions, references = made_up()
    streams = [[r[i] if i < len(r) else None for r in references.values()] for i in range(4)]
    scores = score_texts(captions, list(references), references)
    assert list(scores) == list(METRICS)
    expected = {BLEU: metrics.BLEU(tokenize="none", smooth_method="none"), CHRF: metrics.CHRF(word_order=2)}
    for name, metric in expected.items():
        value, low, high = scores[name]
        assert value == pytest.approx(metric.corpus_score(captions, streams).score)
        assert low < value < high
    assert score_texts(["un gatto nero dorme"], [0], {0: ["Un gatto nero dorme!"]}, [BLEU])[BLEU][0] == pytest.approx(
        100
    )
    assert score_texts(["cane"], [0], {0: ["Un gatto."]}, [BLEU])[BLEU][0] == 0


def test_a_clip_counts_once_for_each_caption_however_many_references_it_has():
    references = {"a": ["un cane", "il cane nero"], "b": ["un gatto"]}
    once = score_texts(["un cane", "una foca"], ["a", "b"], references, [CIDER])
    assert score_texts(["un cane", "un cane", "una foca"], ["a", "a", "b"], references, [CIDER]) == once
    assert score_texts(["un cane"], ["a"], {"a": ["un cane"]}, [CIDER]) == {}, "one clip has no CIDEr-D"


def test_a_reference_without_words_is_none():
    with_dots = score_texts(["un cane", "x"], ["a", "b"], {"a": ["un cane", "..."], "b": ["..."]}, [CIDER])
    assert with_dots == score_texts(["un cane", "x"], ["a", "b"], {"a": ["un cane"], "b": ["..."]}, [CIDER])


def test_scores_are_chosen_and_english_ones_refused(monkeypatch):
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: object())
    assert choose_metrics() == list(METRICS)
    assert choose_metrics(["CHRF++", "cider-d"]) == [CIDER, CHRF]
    for name in ("METEOR", "spice"):
        with pytest.raises(ValueError, match=f"--metrics {name}: it is made for English .*choose among CIDEr-D"):
            choose_metrics([name])
    with pytest.raises(ValueError, match="--metrics ROUGE: there is no such score; choose among CIDEr-D, BLEU-4"):
        choose_metrics(["ROUGE"])


def test_without_sacrebleu_there_is_cider_d_alone(monkeypatch):
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: None)
    assert choose_metrics() == choose_metrics([CIDER]) == [CIDER]
    with pytest.raises(ValueError, match=r"BLEU-4: it needs sacrebleu, .*llava-italian-video\[metrics\]"):
        choose_metrics([BLEU])


def test_captions_of_parts_of_a_clip_are_resampled_with_it():
    """Four boxes of a clip that are described alike are not four clips."""
    references = {(clip, box): [f"un {word}"] for clip, word in enumerate("abcdef") for box in range(4)}
    captions = ["un " + ("abcdef"[clip] if clip % 2 else "x") for clip, _ in references]
    groups = {part: part[0] for part in references}
    alone = score_texts(captions, list(references), references, [CIDER])[CIDER]
    found = score_texts(captions, list(references), references, [CIDER], groups)[CIDER]
    assert found[0] == alone[0] and found[2] - found[1] > 1.5 * (alone[2] - alone[1])
