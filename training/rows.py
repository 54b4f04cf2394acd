"""Examples to token rows: the prompt exactly as the service will send it, then the completion.

The chat template is applied to the prompt alone and the completion with its end token is appended,
so that what is trained is byte for byte what is served, for every template. Knows no framework: a
tokenizer is anything that applies a chat template and encodes.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mcq.evidence import find_evidence
from mcq.prompts import CHAT_TEMPLATE_ARGUMENTS, ChatTurn, Prompt, prompt_format
from mcq.question import LETTERS, Letter, Question
from training.cleaning import CleaningReport, passage_key
from training.config import DataConfig
from training.errors import DataError, SupervisionError
from training.examples import Example

IGNORED = -100
"""The label of tokens that the loss leaves out."""


class Tokenizer(Protocol):
    """As much of a transformers tokenizer as rows need."""

    chat_template: Any
    eos_token: Any
    bos_token_id: Any
    pad_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Encode."""
        ...

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> Any:
        """Render a chat."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row as the model sees it; labels are `IGNORED` over the prompt."""

    input_ids: list[int]
    labels: list[int]
    place: str = ""


class Renderer:
    """Writes prompts and completions in one format for one tokenizer."""

    def __init__(self, tokenizer: Any, format_name: str) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self.format = prompt_format(format_name)
        self.end_token = end_token(tokenizer, format_name)
        self.end_token_id = int(tokenizer.convert_tokens_to_ids(self.end_token))

    def prompt_text(self, prompt: Prompt) -> str:
        """The text to tokenize."""
        return prompt.to_text(self._apply_chat_template)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, the template's own included."""
        text = self.prompt_text(prompt)
        return list(self.tokenizer(text, add_special_tokens=prompt.is_plain)["input_ids"])

    def row(self, example: Example, avoid: Sequence[str] = ()) -> TokenRow:
        """Prompt and completion; the loss covers the completion and its end token."""
        prompt = self.prompt_ids(self.format.render(example.context, example.language, avoid))
        quote = proof(example) if self.format.form.needs_quote else ""
        text = self.format.render_completion(example.question, example.language, quote)
        encoded = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = [*encoded, self.end_token_id]
        labels = [IGNORED] * len(prompt) + completion
        return TokenRow(prompt + completion, labels, example.place)

    def text_row(self, text: str) -> TokenRow:
        """A passage for continued pre-training: every token counts."""
        ids = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        if ids[-1:] != [self.end_token_id]:
            ids.append(self.end_token_id)
        return TokenRow(ids, list(ids))

    def _apply_chat_template(self, turns: list[ChatTurn]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGUMENTS
            )
        )


def end_token(tokenizer: Any, format_name: str) -> str:
    """The token that ends a completion: the template's end of turn, or end of sequence.

    A model loaded from GGUF carries no generation config and its tokenizer's own end of sequence
    may be another token than the one that its template closes a turn with.

    Raises:
        SupervisionError: The tokenizer has no chat template though the format needs one.
    """
    plain = prompt_format(format_name).render("x", "en").is_plain
    if plain:
        if not tokenizer.eos_token:
            raise SupervisionError("The tokenizer has no end-of-sequence token")
        return str(tokenizer.eos_token)
    if not tokenizer.chat_template:
        raise SupervisionError(
            f"The base model's tokenizer has no chat template, which {format_name} needs: "
            "take its instruct variant, or prompt_format: instruct-vi/1"
        )
    mark = "\u2402"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, **CHAT_TEMPLATE_ARGUMENTS))
    after = text.rpartition(mark)[2].lstrip()
    specials = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()), key=len)
    for token in reversed(specials):
        if token and after.startswith(token):
            return str(token)
    if tokenizer.eos_token:
        return str(tokenizer.eos_token)
    raise SupervisionError("Neither the chat template nor the tokenizer ends a turn with a token")


def make_rows(
    examples: Sequence[Example], renderer: Renderer, data: DataConfig, report: CleaningReport
) -> list[TokenRow]:
    """All rows of a set, with options shuffled and siblings avoided as configured.

    Raises:
        DataError: No row fits into `max_length`.
    """
    rng = random.Random(data.shuffle_seed)
    if data.balance_keys:
        examples = balance_keys(examples, rng)
    rows: list[TokenRow] = []
    for example, avoid in with_siblings(examples, data.avoid):
        if renderer.format.form.needs_quote and not proof(example):
            report.drop("no_evidence", example.place, "nothing in the passage proves the key")
            continue
        row = _fit(example, avoid, renderer, data)
        if row is None:
            length = len(renderer.row(example, avoid).input_ids)
            report.drop("too_long", example.place, f"{length} tokens, max_length {data.max_length}")
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"No row fits into max_length {data.max_length}")
    return rows


def balance_keys(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """The same questions with options shuffled, so that the key stands at each letter equally."""
    count = len(examples)
    targets: list[Letter] = [LETTERS[i % len(LETTERS)] for i in range(count)]
    rng.shuffle(targets)
    pairs = zip(examples, targets, strict=True)
    return [replace(e, question=_with_key_at(e.question, to, rng)) for e, to in pairs]


def _with_key_at(question: Question, target: Letter, rng: random.Random) -> Question:
    distractors = list(question.distractors)
    rng.shuffle(distractors)
    rest = iter(distractors)
    options: dict[Letter, str] = {
        letter: question.key_text if letter == target else next(rest) for letter in LETTERS
    }
    return Question(question=question.question, options=options, key=target)


def with_siblings(
    examples: Sequence[Example], mode: str
) -> Iterator[tuple[Example, tuple[str, ...]]]:
    """Each example alone, and as configured again beside another question on its passage."""
    by_passage: dict[str, list[Example]] = {}
    for example in examples:
        yield example, ()
        by_passage.setdefault(passage_key(example.context), []).append(example)
    if mode == "none":
        return
    for siblings in by_passage.values():
        unique = list({s.question.question: s for s in siblings}.values())
        for before, after in itertools.pairwise(unique):
            yield after, (before.question.question,)
            if mode == "both":
                yield before, (after.question.question,)


def _fit(
    example: Example, avoid: Sequence[str], renderer: Renderer, data: DataConfig
) -> TokenRow | None:
    row = renderer.row(example, avoid)
    if len(row.input_ids) <= data.max_length:
        return row
    if data.too_long == "drop":
        return None
    fits: Callable[[str], bool] = lambda context: (  # noqa: E731
        len(renderer.row(replace(example, context=context), avoid).input_ids) <= data.max_length
    )
    context = window(example, fits)
    return None if context is None else renderer.row(replace(example, context=context), avoid)


def proof(example: Example) -> str:
    """The part of the passage that proves the key, as its author marked it or as it is found."""
    if example.evidence:
        return example.evidence
    found = find_evidence(example.context, example.question)
    return "" if found is None else found.text.replace("\n", " ")


def window(example: Example, fits: Callable[[str], bool]) -> str | None:
    """Whole sentences around the evidence, as many as fit; None if not even that one does."""
    sentences = re.findall(r"[^.!?…\n]+[.!?…]*\s*", example.context)
    at = max(example.context.find(proof(example)), 0)
    start = position = 0
    for index, sentence in enumerate(sentences):
        if position <= at:
            start = index
        position += len(sentence)
    first, last = start, start + 1
    best: str | None = None
    while True:
        text = "".join(sentences[first:last]).strip()
        if not fits(text):
            return best
        best = text
        if first > 0 and (last - start > start - first or last == len(sentences)):
            first -= 1
        elif last < len(sentences):
            last += 1
        else:
            return best


def key_positions(examples: Sequence[Example]) -> dict[str, int]:
    """How often the key stands at each letter."""
    counts = Counter(example.question.key for example in examples)
    return {letter: counts[letter] for letter in LETTERS}
