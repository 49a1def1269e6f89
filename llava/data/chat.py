"""Chat formats: a conversation is rendered whole by a template, tokenised once, and only the assistant's words and the
token that ends its turn are supervised.

`llava.data.chat_formats` has the templates.

Letters in shapes: L positions of one sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llava.constants import IGNORE_INDEX
from llava.data.captions import order_problem
from llava.data.chat_formats import TOKENIZER, pin_template, template_of, unknown_tokens, without_prefix_space
from llava.data.prompt import Turns, check_visible, compact, count_supervised, visual_token_ids
from llava.data.text_start import NONE
from llava.errors import UserError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PROBE = "Aa"
"""An answer that stands for any: what the model is asked to go on from is what stands before it in training."""
_MARKS = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*</think>)?\s*")


def normalise(conversation: Turns) -> list[dict[str, str]]:
    """Turns as `role` and `content`, of `from`/`value` or of that form, without white space around their words.

    Raises:
        ValueError: for an unknown role, or turns that are not a system turn, if any, and then user and assistant in
            turns.
    """
    messages = []
    for turn in conversation:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"a turn is a text of one of {', '.join(ROLES)}, got {role!r}: {content!r:.80}")
        messages.append({"role": ROLES[role], "content": content.strip()})
    problem = order_problem([message["role"] for message in messages])
    if problem:
        raise UserError(problem)
    return messages


@dataclass(frozen=True)
class Chat:
    """A chat format on a tokenizer, made by `Chat.of`; a `TextFormat`.

    `special`: ids of special tokens, one of which ends a turn. `visual`: ids of the visual tokens, when there are any.
    `text_start`: none, since the template writes the beginning.
    """

    version: str
    template: str
    tokenizer: PreTrainedTokenizerBase
    special: frozenset[int]
    visual: frozenset[int]
    end_ids: tuple[int, ...] = ()
    text_start: str = NONE

    @classmethod
    def of(cls, version: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> Chat:
        """A format by its name in `FORMATS`, with its template or a given (pinned) one.

        Raises:
            ValueError: when the tokenizer lacks its tokens, an end of text or a template, or when the template does not
                show which tokens are the assistant's.
        """
        if not tokenizer.is_fast or tokenizer.eos_token_id is None:
            what = "eos_token" if tokenizer.is_fast else "offsets (only fast ones have them)"
            raise UserError(f"--version {version}: the tokenizer has no {what}, which chat formats need")
        missing = unknown_tokens(version, tokenizer)
        if missing:
            raise UserError(
                f"--version {version}: the tokenizer does not know the tokens {', '.join(missing)}: register them with "
                "llava.data.chat_formats.add_tokens(version, tokenizer) and give the model embeddings for them"
            )
        if template is None and version == TOKENIZER:
            if not tokenizer.chat_template:
                raise UserError("--version tokenizer: the tokenizer has no chat template; name one of the formats")
            template = pin_template(tokenizer.get_chat_template())
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        try:
            visual = frozenset(visual_token_ids(tokenizer).values())
        except ValueError:  # A text that holds one is refused when it comes.
            visual = frozenset()
        format = cls(
            version,
            template_of(version) if template is None else template,
            without_prefix_space(tokenizer),
            frozenset(added | set(tokenizer.all_special_ids)) - visual,
            visual,
        )
        question = {"role": "user", "content": PROBE}
        ids, labels = next(format.encode([[question, {"role": "assistant", "content": PROBE}] * 2]))
        end = next(label for label in reversed(labels) if label != IGNORE_INDEX)
        object.__setattr__(format, "end_ids", tuple(dict.fromkeys((tokenizer.eos_token_id, end))))
        return format

    def turns(self, conversation: Turns) -> list[dict[str, str]]:
        """The turns with markers for placeholders."""
        return [{**message, "content": compact(message["content"])} for message in normalise(conversation)]

    def preprocess(
        self, sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase | None = None, has_image: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        """`input_ids` and `labels`, lists of LongTensors (L,); on the format's own tokenizer.

        Raises:
            ValueError: for turns out of order, a visual token that is not registered, a text without any where
                `has_image` says that there is one, and when nothing would be supervised.
        """
        samples = []
        for conversation in sources:
            turns = self.turns(conversation)
            if check_visible("\n".join(turn["content"] for turn in turns), has_image) and not self.visual:
                visual_token_ids(self.tokenizer)  # Says what is missing.
            samples.append(tuple(torch.tensor(row, dtype=torch.long) for row in next(self.encode([turns]))))
            if count_supervised(samples[-1][1]) == 0:
                raise UserError(f"no word to learn in {conversation!r:.200}: no answer of the assistant")
        return {"input_ids": [ids for ids, _ in samples], "labels": [labels for _, labels in samples]}

    def encode(self, conversations: Sequence[Turns]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and labels of conversations, one after the other; the tokenizer is called once for a thousand."""
        for first in range(0, len(conversations), 1000):
            rendered = [self.render(self.turns(c)) for c in conversations[first : first + 1000]]
            batch = self._tokenize([text for text, _ in rendered])
            for (text, spans), ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
                yield ids, self._labels(text, spans, ids, offsets)

    def _tokenize(self, texts: list[str]) -> Mapping[str, Any]:
        # The template has written what begins a text; a second one would be added here.
        return self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where the words of each answer stand in it.

        Raises:
            ValueError: when the template refuses the conversation, or does not show where the answers are.
        """
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        if _MARKS.search(self.template):
            text, marks = self._rendered(messages, marked=True)
            starts = [_EMPTY_THOUGHT.match(text, start).end() for start, _ in marks]  # type: ignore[union-attr]
            held = len(starts) == len(answers)
            held = held and all(text.startswith(words, at) for at, words in zip(starts, answers, strict=True))
            spans = [(at, at + len(words)) for at, words in zip(starts, answers, strict=False)]
        else:
            text = self._rendered(messages)[0]
            names = [f"\ue000{n}\ue001" for n in range(len(answers))]
            numbered = iter(names)
            hidden = [{**m, "content": next(numbered)} if m["role"] == "assistant" else dict(m) for m in messages]
            pieces = re.split("\ue000\\d+\ue001", self._rendered(hidden)[0])
            held = len(pieces) == len(answers) + 1
            spans, written = [], pieces[0]
            for words, piece in zip(answers, pieces[1:], strict=False):
                spans.append((len(written), len(written) + len(words)))
                written += words + piece
            held = held and written == text
        if not held:
            raise UserError(
                f"--version {self.version}: the chat template does not show which words are the assistant's (it leaves "
                "out or changes answers, or its {% generation %} marks hold something else): mark them with "
                "{% generation %} … {% endgeneration %}, or name another format"
            )
        return text, spans

    def _rendered(
        self, messages: Sequence[Mapping[str, str]], marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        names: Mapping[str, Any] = self.tokenizer.special_tokens_map
        try:
            found: Any = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=marked,
                **names,
            )
        except (TemplateError, TypeError, ValueError) as error:
            message = f"--version {self.version}: the chat template refuses the conversation: {error}"
            raise UserError(message) from error
        texts, marks = found
        return texts[0], marks[0] if marked else []

    def _labels(
        self, text: str, spans: Sequence[tuple[int, int]], ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> list[int]:
        """The ids of the tokens that overlap an answer and of those up to the one that ends its turn; else masked.

        A space before the answer belongs to it, since most tokenizers make one token of it and the first word, and the
        model is asked to go on from where it stands.
        """
        labels = [IGNORE_INDEX] * len(ids)
        place = 0
        for start, end in spans:
            start = len(text[:start].rstrip(" "))
            while place < len(ids) and offsets[place][0] < start and offsets[place][1] <= start:
                place += 1
            while place < len(ids) and (
                offsets[place][0] < end or (ids[place] not in self.special and not text[slice(*offsets[place])].strip())
            ):
                labels[place] = IGNORE_INDEX if ids[place] in self.visual else ids[place]
                place += 1
            if place == len(ids) or ids[place] not in self.special:
                raise UserError(
                    f"--version {self.version}: no special token follows the assistant's words "
                    f"{text[start : end + 20][-60:]!r}, so the model would never learn to stop: the template must end "
                    "its turn with one, and the tokenizer must know it"
                )
            labels[place] = ids[place]
        return labels

    def prompt(self, conversation: Turns) -> list[int]:
        """The ids that stand before an answer to the conversation in training.

        The whole is tokenised with some answer and cut: a prompt by itself may have other tokens at its end.

        Raises:
            ValueError: when the conversation ends with an answer.
        """
        turns = self.turns(conversation)
        ids, labels = next(self.encode([[*turns, {"role": "assistant", "content": PROBE}]]))
        return ids[: last_run(labels)[0]]

    def words(self, conversation: Turns) -> str:
        """The assistant's words."""
        return " ".join(message["content"] for message in normalise(conversation) if message["role"] == "assistant")

    def places(self, conversation: Turns) -> list[str]:
        """Who wrote each id: `assistant`, `user`, `system`, or `markup`, which is nobody."""
        messages = self.turns(conversation)
        text, _ = self.render(messages)
        batch = self._tokenize([text])
        owners = ["markup"] * len(batch["input_ids"][0])
        cursor = 0
        for message in messages:
            start = text.find(message["content"], cursor)
            if start < 0 or not message["content"]:
                continue
            cursor = start + len(message["content"])
            for place, (first, last) in enumerate(batch["offset_mapping"][0]):
                if first < cursor and last > start:
                    owners[place] = message["role"]
        return owners

    def truncate(
        self, input_ids: torch.Tensor, labels: torch.Tensor, max_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At most `max_length` positions (L,): what follows the last answer goes first, then the end of its words; the
        token that ends it stays.

        Raises:
            ValueError: when the cut would reach into a video or image or an earlier turn, or leave no word of the
                answer.
        """
        if len(input_ids) <= max_length:
            return input_ids, labels
        start, end = last_run(labels.tolist())
        kept = min(end, max_length)
        lost = torch.cat([input_ids[kept - 1 : end - 1], input_ids[end:]])
        if kept < start + 2 or bool(torch.isin(lost, torch.tensor(sorted(self.visual), dtype=lost.dtype)).any()):
            raise UserError(
                f"{len(input_ids)} positions do not fit model_max_length {max_length}: no video, image or question may "
                "be cut, and a word of the last answer must remain; raise --model_max_length (and the model's "
                "positions), lower --num_frames or --mm_perceiver_latents, or split the conversation"
            )
        return tuple(torch.cat([row[: kept - 1], row[end - 1 : end]]) for row in (input_ids, labels))  # type: ignore


def last_run(labels: Sequence[int]) -> tuple[int, int]:
    """Where the last supervised run of a sequence begins and ends; ValueError when nothing is supervised."""
    end = next((i for i in range(len(labels), 0, -1) if labels[i - 1] != IGNORE_INDEX), 0)
    if not end:
        raise UserError("nothing is supervised")
    start = next((i for i in range(end, 0, -1) if labels[i - 1] == IGNORE_INDEX), 0)
    return start, end
