"""What others ask of a checkpoint to score sentences: the calls of lm-eval and of the BabyLM pipeline."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from llava import export
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.records import Record
from llava.data.text_format import recorded_format
from llava.eval.loss import token_losses
from llava.model.builder import load_pretrained_model
from llava.train.text_format import make_format
from tests.data.test_captions import talk

PAIRS = [
    ("Un gatto nero dorme sul divano.", "Un gatto nera dorme sul divano."),
    ("La bambina legge un libro azzurro.", "Il bambina legge un libro azzurro."),
]
SENTENCES = [sentence for pair in PAIRS for sentence in pair]


@pytest.fixture(params=["video", "text", "text-only export"])
def folder(request, build, tokenizer, tmp_path):
    """A checkpoint with vision, one without, and an export of the language model of one with vision."""
    model = build(vision=request.param != "text")
    make_format("plain", tokenizer, model)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    if request.param == "text-only export":
        export.export(tmp_path / "run", tmp_path / "plain", text_only=True)
        return tmp_path / "plain"
    return tmp_path / "run"


@pytest.fixture
def ours(folder):
    """Log-probability of each sentence without its end, by the loss of evaluation and the run's own preprocessing."""
    tokenizer, model = load_pretrained_model(folder.parent / "run")
    form = recorded_format(model.config, tokenizer)
    records = [Record(str(i), talk("", text), (), (), None, {}, f"d[{i}]") for i, text in enumerate(SENTENCES)]
    dataset = LazySupervisedDataset(records, tokenizer, form.preprocess, 64, text_format=form)
    found = []
    for i in range(len(dataset)):
        losses = token_losses(model, DataCollatorForSupervisedDataset(0)([dataset[i]]))[0]
        found.append(-float(losses[:-1].sum()))
    return found


def summed(model, ids: list[int], scored: int) -> float:
    """Log-probability of the last `scored` tokens after those before them."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logs = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1].log_softmax(-1)
    return float(logs.gather(1, row[0, 1:, None])[-scored:].sum())


def test_what_lm_eval_does_gives_our_numbers(folder, ours):
    """As `TemplateLM.loglikelihood` and `HFLM.tok_encode` of lm-eval 0.4.13, which the next test calls."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for sentence, expected in zip(SENTENCES, ours, strict=True):
        for written in (sentence, f" {sentence}"):  # With the space that lm-eval puts between context and choice.
            words = tokenizer.encode(written, add_special_tokens=False)
            assert summed(model, [prefix, *words], len(words)) == pytest.approx(expected, abs=1e-4)
        context, rest = sentence.rsplit(" ", 1)
        whole, before = tokenizer.encode(f"{context} {rest}"), tokenizer.encode(context)
        assert (
            whole == [prefix, *tokenizer.encode(sentence, add_special_tokens=False)] and whole[: len(before)] == before
        )


def test_lm_eval_itself_gives_our_numbers(folder, ours):
    if find_spec("lm_eval") is None or find_spec("accelerate") is None:
        pytest.skip('lm-eval is not installed: pip install "lm_eval[hf]"')
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2)
    asked = [Instance("loglikelihood", {}, ("", sentence), i) for i, sentence in enumerate(SENTENCES)]
    found = [value for value, _ in scorer.loglikelihood(asked, disable_tqdm=True)]
    assert found == pytest.approx(ours, abs=1e-4)
    # Perplexity puts the start in front of what the tokenizer begins with it already, as of any model that has one.
    rolled = [Instance("loglikelihood_rolling", {}, (sentence,), i) for i, sentence in enumerate(SENTENCES)]
    twice = scorer.loglikelihood_rolling(rolled, disable_tqdm=True)
    assert all(found < expected - 0.1 for found, expected in zip(twice, ours, strict=True))
    scorer = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", batch_size=2, add_bos_token=False)
    assert scorer.loglikelihood_rolling(rolled, disable_tqdm=True) == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("completion", [1.0, 0.4])
def test_what_the_babylm_pipeline_does_gives_our_numbers(folder, ours, completion):
    """As `process_causal_sentences` and `compute_causal_results` of its edition of 2025: a processor, or the tokenizer
    where there is none, offsets, and the sum over the tokens that end after the completion begins."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, padding_side="right", revision=None, trust_remote_code=True)
    for sentence, expected in zip(SENTENCES, ours, strict=True):
        encoded = processor(text=sentence, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) == 1:
            ids, offsets = ids[0], offsets[0]
        begins = len(sentence) - int(completion * len(sentence)) + offsets[0][0]
        chosen = [i for i, (_, end) in enumerate(offsets) if end > begins]
        row = torch.LongTensor(ids)[None]
        with torch.no_grad():
            logs = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].log_softmax(-1)
        score = sum(float(logs[i - 1, row[0, i]]) for i in chosen if i > 0)
        if completion == 1.0:
            assert score == pytest.approx(expected, abs=1e-4), "the first word counts, and the start does not"
        else:
            assert 0 > score > expected and len(chosen) < len(ids)


def test_offsets_are_those_of_the_text_that_was_given(folder):
    processor = AutoProcessor.from_pretrained(folder)
    text = "  Un gatto.  "
    encoded = processor(text=text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    offsets = offsets[0].tolist() if torch.is_tensor(offsets) else offsets
    read = [text[first:last].strip() for first, last in offsets]
    assert read[0] == "" and "".join(read) == "Ungatto."
