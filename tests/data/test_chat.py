"""Chat formats to the token: who is supervised, where a prompt ends, and what must be refused."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava.config.video import VideoSpec
from llava.constants import IGNORE_INDEX, VISUAL_TOKENS
from llava.data.chat import Chat
from llava.data.chat_formats import FORMATS, TOKENIZER, add_tokens
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.forms import differing_forms
from llava.data.prompt import pad_token_id
from llava.data.records import Record, text_alone
from tests.conftest import SPEC, make_tokenizer
from tests.data.test_captions import talk

WORD = r" ?\w+| ?[^\w\s]+|\s"
"""A word and a mark take the space before them into their token, as in GPT-2."""
WORDS = "Sii breve. Chi? Un gatto. Dove? Qui. Sì. Aa user model system assistant INST SYS USER ASSISTANT : / [ ] << >>"
TALK = [
    {"from": "system", "value": "Sii breve."},
    {"from": "human", "value": "<video> Chi?"},
    {"from": "gpt", "value": "Un gatto."},
    {"from": "human", "value": "Dove?"},
    {"from": "gpt", "value": " Qui.\n"},
]
ROLE = {"from": "role", "value": "content", "human": "user", "gpt": "assistant"}

# Supervised tokens are marked by a +.
EXPECTED = {
    "chatml": [
        "<|im_start|>", "system", "\n", "Sii", " breve", ".", "<|im_end|>", "\n",
        "<|im_start|>", "user", "\n", "<vid_start>", " Chi", "?", "<|im_end|>", "\n",
        "<|im_start|>", "assistant", "\n", "+Un", "+ gatto", "+.", "+<|im_end|>", "\n",
        "<|im_start|>", "user", "\n", "Dove", "?", "<|im_end|>", "\n",
        "<|im_start|>", "assistant", "\n", "+Qui", "+.", "+<|im_end|>", "\n",
    ],
    "llama_3": [
        "<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>", "\n", "\n", "Sii", " breve", ".",
        "<|eot_id|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "<vid_start>", " Chi", "?",
        "<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "+Un", "+ gatto", "+.",
        "+<|eot_id|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "Dove", "?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "+Qui", "+.", "+<|eot_id|>",
    ],
    "llama_2": [
        "<s>", "[", "INST", "]", " <<", "SYS", ">>", "\n", "Sii", " breve", ".", "\n", "<</", "SYS", ">>", "\n", "\n",
        "<vid_start>", " Chi", "?", " [/", "INST", "]", "+ Un", "+ gatto", "+.", "+</s>",
        "<s>", "[", "INST", "]", " Dove", "?", " [/", "INST", "]", "+ Qui", "+.", "+</s>",
    ],
    "mistral_instruct": [
        "<s>", "[", "INST", "]", " Sii", " breve", ".", "\n", "\n", "<vid_start>", " Chi", "?", " [/", "INST", "]",
        "+ Un", "+ gatto", "+.", "+</s>",
        "[", "INST", "]", " Dove", "?", " [/", "INST", "]", "+ Qui", "+.", "+</s>",
    ],
    "gemma_instruct": [
        "<s>", "<start_of_turn>", "user", "\n", "Sii", " breve", ".", "\n", "\n", "<vid_start>", " Chi", "?",
        "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n", "+Un", "+ gatto", "+.", "+<end_of_turn>", "\n",
        "<start_of_turn>", "user", "\n", "Dove", "?", "<end_of_turn>", "\n",
        "<start_of_turn>", "model", "\n", "+Qui", "+.", "+<end_of_turn>", "\n",
    ],
    "vicuna_v1": [
        "<s>", "Sii", " breve", ".", " USER", ":", " ", "<vid_start>", " Chi", "?", " ASSISTANT", ":",
        "+ Un", "+ gatto", "+.", "+</s>",
        "USER", ":", " Dove", "?", " ASSISTANT", ":", "+ Qui", "+.", "+</s>",
    ],
    "lines": [
        "Sii", " breve", ".", "\n", "<vid_start>", " Chi", "?", "\n", "+Un", "+ gatto", "+.", "+</s>", "\n",
        "Dove", "?", "\n", "+Qui", "+.", "+</s>", "\n",
    ],
}  # fmt: skip


def word_tokenizer(
    *special: str, bos: str | None = "<s>", pad: str = "<pad>", texts: str = ""
) -> PreTrainedTokenizerFast:
    """Words, marks and single white space as tokens, the visual tokens registered, `</s>` as the end of text."""
    pieces = re.findall(WORD, f"{WORDS} {texts}") + re.findall(r"\w+|[^\w\s]+|\s", f"{WORDS} {texts}\n")
    pieces += [" <<", "<</", " [/"] + [f" {piece}" for piece in pieces if not piece.startswith(" ")]
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", *dict.fromkeys(pieces)]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>", pad_token=pad
    )
    tokenizer.add_tokens([*VISUAL_TOKENS, *special], special_tokens=True)
    return tokenizer


def tokenizer_for(version: str, **options: str | None) -> PreTrainedTokenizerFast:
    return word_tokenizer(*FORMATS[version].tokens, **options)


def pieces_of(format: Chat, ids: list[int], labels: list[int]) -> list[str]:
    """The tokens, with a + where they are supervised."""
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    marks = ["" if label == IGNORE_INDEX else "+" for label in labels]
    return [mark + token for mark, token in zip(marks, format.tokenizer.convert_ids_to_tokens(ids), strict=True)]


def sample_of(format: Chat, conversation: list[dict[str, str]]) -> list[str]:
    return pieces_of(format, *next(format.encode([conversation])))


@pytest.mark.parametrize("version", EXPECTED)
def test_every_format_to_the_token(version):
    format = Chat.of(version, tokenizer_for(version))
    assert sample_of(format, TALK) == EXPECTED[version]
    openai = [{ROLE[key]: ROLE.get(value, value) for key, value in turn.items()} for turn in TALK]
    assert sample_of(format, openai) == EXPECTED[version]
    sample = format.preprocess([format.turns(TALK), openai], None, has_image=True)
    assert [row.tolist() for row in sample["labels"]] == [next(format.encode([TALK]))[1]] * 2


@pytest.mark.parametrize("version", EXPECTED)
def test_a_prompt_is_what_stands_before_the_answer_in_training(version):
    """On tokenizers that do and do not make one token of a space and a word, and of two line breaks."""
    bpe = make_tokenizer()
    bpe.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    add_tokens(version, bpe)
    for tokenizer in (tokenizer_for(version), bpe):
        format = Chat.of(version, tokenizer)
        ids, labels = next(format.encode([TALK]))
        starts = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
        assert format.prompt(TALK[:2]) == ids[: starts[0]]
        assert format.prompt(TALK[:4]) == ids[: starts[1]]
        assert format.tokenizer.decode(ids[starts[1] :]).strip().startswith("Qui.")


def test_a_token_that_straddles_the_boundary_belongs_to_the_answer():
    """`ASSISTANT: ` by itself ends with a token that training never has there."""
    format = Chat.of("vicuna_v1", tokenizer_for("vicuna_v1"))
    alone = format.tokenizer("<s>USER: Chi? ASSISTANT: ", add_special_tokens=False)["input_ids"]
    ids, _ = next(format.encode([talk("Chi?", "Un gatto.")]))
    prompt = format.prompt(talk("Chi?"))
    assert alone != ids[: len(alone)] and prompt == ids[: len(prompt)] == alone[:-1]


@pytest.mark.parametrize("version", ["chatml", "llama_3", "gemma_instruct", "vicuna_v1", "lines"])
def test_the_templates_own_prompt_is_that_of_training(version):
    """Which other programs ask for, with the checkpoint's template."""
    tokenizer = tokenizer_for(version)
    format = Chat.of(version, tokenizer)
    messages = [{"role": "user", "content": "Chi?"}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=format.template, add_generation_prompt=True, tokenize=False
    )
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == format.prompt(messages)


@pytest.mark.parametrize("version", ["llama_3", "vicuna_v1", "gemma_instruct"])
def test_a_tokenizer_that_begins_every_text_itself_gives_one_beginning(version):
    tokenizer = tokenizer_for(version)
    begin = "<|begin_of_text|>" if version == "llama_3" else "<s>"
    number = tokenizer.convert_tokens_to_ids(begin)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, number)]
    )
    assert tokenizer("Chi?")["input_ids"][0] == number
    format = Chat.of(version, tokenizer)
    assert next(format.encode([talk("Chi?", "Un gatto.")]))[0].count(number) == 1
    assert format.prompt(talk("Chi?")).count(number) == 1


def test_a_tokenizer_without_a_beginning_of_its_own_writes_none():
    for bos in (None, "</s>"):
        format = Chat.of("vicuna_v1", tokenizer_for("vicuna_v1", bos=bos))
        assert sample_of(format, talk("Chi?", "Sì."))[0] == "USER"


@pytest.mark.parametrize(
    ("version", "end"),
    [
        ("chatml", "<|im_end|>"), ("llama_3", "<|eot_id|>"), ("gemma_instruct", "<end_of_turn>"),
        ("vicuna_v1", "</s>"), ("lines", "</s>"),
    ],
)  # fmt: skip
def test_generation_stops_at_the_end_of_text_and_of_a_turn(version, end):
    tokenizer = tokenizer_for(version)
    ends = Chat.of(version, tokenizer).end_ids
    assert tokenizer.convert_ids_to_tokens(list(ends)) == list(dict.fromkeys(["</s>", end]))


@pytest.mark.parametrize("version", ["llama_2", "chatml"])
def test_the_end_of_an_answer_stays_where_it_is_the_padding_too(version):
    end = "</s>" if version == "llama_2" else "<|im_end|>"
    tokenizer = tokenizer_for(version)
    tokenizer.pad_token = end
    sample = Chat.of(version, tokenizer).preprocess([talk("Chi?", "Un gatto."), talk("Dove?", "Qui.")])
    rows = zip(sample["input_ids"], sample["labels"], strict=True)
    batch = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))(
        [{"input_ids": ids, "labels": labels, "sample_id": str(i)} for i, (ids, labels) in enumerate(rows)]
    )
    number = tokenizer.convert_tokens_to_ids(end)
    assert (batch["labels"] == number).sum(dim=1).tolist() == [1, 1]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(ids) for ids in sample["input_ids"]]


def test_two_videos_are_inserted_as_ids_and_never_supervised():
    tokenizer = tokenizer_for("chatml")
    format = Chat.of("chatml", tokenizer)
    record = Record("r", talk("<video> Chi?", "Un gatto.", "<video>", "Qui."), ("a", "b"), (), None, {}, "d[0]")
    dataset = LazySupervisedDataset([record], tokenizer, format.preprocess, 99, SPEC, text_format=format)
    ids, labels = dataset.tokens(0)
    visual = torch.isin(ids, torch.tensor(tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))))
    assert visual.sum() == 2 * SPEC.rows and (labels[visual] == IGNORE_INDEX).all()
    written = tokenizer.convert_ids_to_tokens(ids[visual].tolist())
    span = ["<vid_start>", "<vid_end>", "<slow_vid_start>", *["<vid_patch>"] * 6, "<slow_vid_end>"]
    assert written == span * 2
    kept = [mark for mark in pieces_of(format, ids.tolist(), labels.tolist()) if mark.startswith("+")]
    assert kept == ["+Un", "+ gatto", "+.", "+<|im_end|>", "+Qui", "+.", "+<|im_end|>"]
    assert measure_lengths([record], tokenizer, SPEC, format, len(ids)) == ([len(ids)], [])
    visual_ids = tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))
    assert differing_forms([record], dataset.whole_tokens, tokenizer, visual_ids) == []
    alone = dataset.whole_tokens(text_alone(record))[1]
    assert alone[alone != IGNORE_INDEX].tolist() == labels[labels != IGNORE_INDEX].tolist()


def test_a_span_is_never_supervised_even_in_an_answer():
    format = Chat.of("chatml", tokenizer_for("chatml"))
    assert sample_of(format, talk("Chi?", "Un <vid_start>."))[7:] == [
        "<|im_start|>", "assistant", "\n", "+Un", "+ ", "<vid_start>", "+.", "+<|im_end|>", "\n",
    ]  # fmt: skip


def test_a_conversation_that_ends_with_the_user_is_learnt_up_to_there():
    format = Chat.of("chatml", tokenizer_for("chatml"))
    pieces = sample_of(format, talk("Chi?", "Un gatto.", "Dove?"))
    assert pieces[-6:] == ["user", "\n", "Dove", "?", "<|im_end|>", "\n"]
    assert [p for p in pieces if p[0] == "+"] == ["+Un", "+ gatto", "+.", "+<|im_end|>"]


@pytest.mark.parametrize("turns", [talk("Chi?"), []])
def test_nothing_to_learn_is_an_error(turns):
    format = Chat.of("chatml", tokenizer_for("chatml"))
    with pytest.raises(ValueError, match="no word to learn"):
        format.preprocess([turns])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("gpt",), "turn 0 is an answer where a chat has a question"),
        (("human", "human", "gpt"), "turn 1 is a question where a chat has an answer"),
        (("human", "gpt", "system"), "turn 2 is a system turn where a chat has a question"),
        (("human", "tool"), "got 'tool'"),
    ],
)
def test_turns_out_of_order_are_refused(roles, message):
    format = Chat.of("gemma_instruct", tokenizer_for("gemma_instruct"))
    with pytest.raises(ValueError, match=message):
        format.preprocess([[{"from": role, "value": "Chi?"} for role in roles]])


def test_truncation_keeps_the_end_of_the_last_answer_or_refuses():
    format = Chat.of("chatml", tokenizer_for("chatml"))

    def cut(turns: list[dict[str, str]], length: int) -> list[str]:
        rows = [row[0] for row in format.preprocess([format.turns(turns)]).values()]
        return pieces_of(format, *(row.tolist() for row in format.truncate(*rows, length)))

    whole = cut(talk("Chi?", "Un gatto. Qui."), 99)
    assert len(whole) == 17 and cut(talk("Chi?", "Un gatto. Qui."), 17) == whole
    assert cut(talk("Chi?", "Un gatto. Qui."), 16) == whole[:-1], "the line break after it goes first"
    assert cut(talk("Chi?", "Un gatto. Qui."), 13) == [*whole[:12], "+<|im_end|>"]
    assert cut(talk("Chi?", "Un gatto. Qui."), 12) == [*whole[:11], "+<|im_end|>"]
    with pytest.raises(ValueError, match="model_max_length 11: no video"):
        cut(talk("Chi?", "Un gatto. Qui."), 11)
    assert cut(talk("Chi?", "Un gatto. Qui.", "Dove?"), 18) == whole[:-1], "a question after it goes whole"
    with pytest.raises(ValueError, match="split the conversation"):
        cut(talk("Chi?", "Sì.", "Dove?", "Qui."), 20)
    with pytest.raises(ValueError, match="no video"):
        cut(talk("Chi?", "Un gatto.", "<video> Dove?"), 15)


def test_an_unknown_token_is_an_error_and_never_unk():
    tokenizer = word_tokenizer("<|im_start|>")
    with pytest.raises(ValueError, match=r"does not know the tokens <\|im_end\|>"):
        Chat.of("chatml", tokenizer)
    assert add_tokens("chatml", tokenizer) == ["<|im_end|>"] and add_tokens("chatml", tokenizer) == []
    Chat.of("chatml", tokenizer)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ValueError, match="no visual token"):
        Chat.of("chatml", bare).preprocess([talk("Chi?", "Sì.")], None, has_image=True)


def test_a_video_in_a_tokenizer_without_visual_tokens_is_an_error():
    tokenizer = make_tokenizer()
    add_tokens("chatml", tokenizer)
    with pytest.raises(ValueError, match="does not know the special tokens <im_start>"):
        Chat.of("chatml", tokenizer).preprocess([talk("<video> Chi?", "Sì.")], None, True)


def test_who_wrote_what():
    format = Chat.of("gemma_instruct", tokenizer_for("gemma_instruct"))
    ids, _ = next(format.encode([TALK]))
    said: dict[str, list[str]] = {}
    for owner, token in zip(format.places(TALK), format.tokenizer.convert_ids_to_tokens(ids), strict=True):
        said.setdefault(owner, []).append(token)
    assert said["system"] == ["Sii", " breve", "."]
    assert said["user"] == ["<vid_start>", " Chi", "?", "Dove", "?"]
    assert said["assistant"] == ["Un", " gatto", ".", "Qui", "."]
    assert said["markup"][:4] == ["<s>", "<start_of_turn>", "user", "\n"]
    assert format.words(TALK) == "Un gatto. Qui."


QWEN = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nSii breve.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
)
"""Like Qwen's own: no marks, a system turn by default, an empty thought before the last answer."""
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}<think>\n</think>\n"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
)
"""Like SmolLM3's own: the marks hold an empty thought and the line break after the turn."""


def own_format(template: str) -> Chat:
    tokenizer = word_tokenizer("<|im_start|>", "<|im_end|>", texts="think </ > /think")
    tokenizer.chat_template = template
    return Chat.of(TOKENIZER, tokenizer)


@pytest.mark.parametrize("template", [QWEN, MARKED])
def test_a_tokenizers_own_template_with_and_without_marks(template):
    format = own_format(template)
    kept = [p for p in sample_of(format, talk("Chi?", "Un gatto.", "Dove?", "Qui.")) if p[0] == "+"]
    assert kept == ["+Un", "+ gatto", "+.", "+<|im_end|>", "+Qui", "+.", "+<|im_end|>"]
    assert format.tokenizer.convert_ids_to_tokens(list(format.end_ids)) == ["</s>", "<|im_end|>"]
    ids, labels = next(format.encode([talk("Chi?", "Un gatto.")]))
    prompt = format.prompt(talk("Chi?"))
    assert prompt == ids[: len(prompt)] and labels[len(prompt)] != IGNORE_INDEX
    assert "think" in format.tokenizer.decode(prompt), "an empty thought is prompted and not learnt"


def test_a_default_system_turn_stays_and_is_not_supervised():
    assert sample_of(own_format(QWEN), talk("Chi?", "Sì."))[:7] == [
        "<|im_start|>", "system", "\n", "Sii", " breve", ".", "<|im_end|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (QWEN.replace("m.content", "m.content | upper"), "does not show which words"),
        (QWEN.replace("{%- for m in messages %}", "{%- for m in messages[-1:] %}"), "does not show which words"),
        (
            MARKED.replace("{{ m.content }}<|im_end|>\n{% end", "ecco {{ m.content }}<|im_end|>\n{% end"),
            "does not show",
        ),
        (MARKED.replace("{{ m.content }}<|im_end|>\n{% end", "{{ m.content }}{% end"), "learn to stop"),
        ("{{ raise_exception('no system turn') }}", "refuses the conversation: no system turn"),
    ],
)
def test_a_template_that_does_not_show_the_answers_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        own_format(template)


def test_a_tokenizer_without_template_eos_or_offsets_is_refused():
    tokenizer = word_tokenizer()
    with pytest.raises(ValueError, match="has no chat template"):
        Chat.of(TOKENIZER, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos_token"):
        Chat.of("vicuna_v1", tokenizer)


def test_a_space_before_every_text_is_left_out_of_chats(build):
    """`<|im_start|> assistant` is no header that other programs write."""
    tokenizer = make_tokenizer()
    add_tokens("chatml", tokenizer)
    format = Chat.of("chatml", tokenizer)
    ids, _ = next(format.encode([talk("Chi?", "Un gatto.")]))
    assert format.tokenizer.decode(ids) == (
        "<|im_start|>user\nChi?<|im_end|>\n<|im_start|>assistant\nUn gatto.<|im_end|>\n"
    )
    assert tokenizer.decode(tokenizer("Un")["input_ids"]) == " Un", "the tokenizer that was given is left as it was"


def test_lengths_and_spans_of_a_default_video():
    tokenizer = tokenizer_for("llama_3")
    format = Chat.of("llama_3", tokenizer)
    record = Record("r", talk("<video> Chi?", "Sì."), ("a",), (), None, {}, "d[0]")
    dataset = LazySupervisedDataset([record], tokenizer, format.preprocess, 999, VideoSpec(), text_format=format)
    text = LazySupervisedDataset(
        [text_alone(record)], tokenizer, format.preprocess, 999, VideoSpec(), text_format=format
    )
    assert len(dataset.tokens(0)[0]) - len(text.tokens(0)[0]) == 360


def test_a_format_goes_to_data_workers():
    format = Chat.of("chatml", tokenizer_for("chatml"))
    again = pickle.loads(pickle.dumps(format))
    assert next(again.encode([TALK])) == next(format.encode([TALK])) and again.end_ids == format.end_ids
