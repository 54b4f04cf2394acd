"""Rows for a verifier: sound questions, and the same ones spoilt as models spoil them.

Each kind of damage is what people found in generated questions: a wrong key, two right options, an
option without sense, a question that the passage does not answer.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcq.question import MAX_OPTION_CHARACTERS, comparable
from mcq.verdict import CHOICES, VerdictPrompt, describe
from training.cleaning import passage_key
from training.examples import Example
from training.rows import IGNORED, Renderer, TokenRow, proof

Damage = Literal[
    "none", "wrong_key", "true_distractor", "foreign_option", "other_passage", "as_labelled"
]


@dataclass(frozen=True, slots=True)
class Case:
    """A question to be judged, and what is wrong with it."""

    example: Example
    stem: str
    right: str
    wrong: tuple[str, ...]
    context: str
    damage: Damage

    @property
    def is_sound(self) -> bool:
        """Whether the verifier should say yes."""
        return self.damage == "none"

    @property
    def prompt(self) -> VerdictPrompt:
        """What the verifier is asked."""
        return describe(self.stem, self.right, self.wrong, self.context, self.example.language)


def cases(examples: Sequence[Example], seed: int) -> list[Case]:
    """Each example once as it is, once with a wrong key, once spoilt in another way, in turn.

    Questions that a model wrote and a reader labelled are not spoilt further: their own faults are
    those that the verifier will meet. Of those found right there is one with a wrong key, too.
    """
    rng = random.Random(seed)
    result: list[Case] = []
    kinds = list(_DAMAGES)
    authored = [example for example in examples if not example.label]
    for number, example in enumerate(examples):
        if example.label:
            result += _labelled(example, rng)
            continue
        others = _others(example, authored, rng)
        result.append(_case(example, rng))
        result.append(_wrong_key(example, rng))
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            spoilt = _DAMAGES[kind](example, others, rng)
            if spoilt is not None:
                result.append(spoilt)
                break
    return result


def _labelled(example: Example, rng: random.Random) -> list[Case]:
    if example.label != "right":
        return [_case(example, rng, "as_labelled")]
    return [_case(example, rng), _wrong_key(example, rng)]


def _case(example: Example, rng: random.Random, damage: Damage = "none", **changes: str) -> Case:
    wrong = list(example.question.distractors)
    rng.shuffle(wrong)
    if "distractor" in changes:
        wrong[0] = changes["distractor"]
        rng.shuffle(wrong)
    return Case(
        example,
        example.question.question,
        example.question.key_text,
        tuple(wrong),
        changes.get("context", example.context),
        damage,
    )


def _wrong_key(example: Example, rng: random.Random) -> Case:
    wrong = list(example.question.distractors)
    rng.shuffle(wrong)
    claimed = wrong.pop()
    wrong.insert(rng.randrange(3), example.question.key_text)
    stem = example.question.question
    return Case(example, stem, claimed, tuple(wrong), example.context, "wrong_key")


def _true_distractor(
    example: Example, others: Sequence[Example], rng: random.Random
) -> Case | None:
    """The passage's own words for the answer stand among the wrong options."""
    words = proof(example).strip(" .;,")
    same = comparable(words) == comparable(example.question.key_text)
    if not words or same or len(words) > MAX_OPTION_CHARACTERS:
        return None
    return _case(example, rng, "true_distractor", distractor=words)


def _foreign_option(example: Example, others: Sequence[Example], rng: random.Random) -> Case | None:
    """A wrong option that belongs to a question about something else."""
    other = rng.choice(others)
    return _case(example, rng, "foreign_option", distractor=rng.choice(other.question.distractors))


def _other_passage(example: Example, others: Sequence[Example], rng: random.Random) -> Case | None:
    """The passage says nothing about it."""
    return _case(example, rng, "other_passage", context=rng.choice(others).context)


_Spoil = Callable[[Example, Sequence[Example], random.Random], Case | None]
_DAMAGES: Mapping[str, _Spoil] = {
    "true_distractor": _true_distractor,
    "foreign_option": _foreign_option,
    "other_passage": _other_passage,
}


def _others(example: Example, examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """A few examples in the same language about other passages; any, if there are none."""
    own = passage_key(example.context)
    drawn = rng.sample(examples, min(len(examples), 24))
    fitting = [e for e in drawn if passage_key(e.context) != own and e.language == example.language]
    return fitting or [e for e in examples if e.context != example.context] or [example]


def verdict_row(case: Case, renderer: Renderer) -> TokenRow:
    """Prompt and answer; the loss covers the answer and the end token."""
    asked = case.prompt
    yes, no = CHOICES[case.example.language]
    prompt = renderer.prompt_text(asked.prompt) + asked.prefix
    ids = list(renderer.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    answer = renderer.tokenizer(yes if case.is_sound else no, add_special_tokens=False)["input_ids"]
    taught = [*answer, renderer.end_token_id]
    return TokenRow(ids + taught, [IGNORED] * len(ids) + taught, case.example.place)
