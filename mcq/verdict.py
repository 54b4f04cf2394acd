"""How a verifier adapter is asked whether a question may be shown to pupils.

One prompt for each option that might be the right one: a question is in order if the verifier says
yes to its key and to no other option. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mcq.language import Language
from mcq.parsing import KEY_LABEL, RIGHT_LABEL, STEM_LABEL, WRONG_LABEL
from mcq.prompts import Message, Prompt, normalize_context
from mcq.question import Letter, Question

VERDICT_FORMAT = "verdict/1"
"""As manifests of verifier adapters name it; never changed, like every prompt format."""

CHOICES: dict[Language, tuple[str, str]] = {"vi": (" Có", " Không"), "en": (" Yes", " No")}
"""Yes and no; scored by the log-probability of the first token."""

_TASK: dict[Language, str] = {
    "vi": (
        "Câu hỏi trắc nghiệm dưới đây được soạn từ đoạn văn. Câu hỏi đạt khi đoạn văn cho biết câu "
        "trả lời, phương án ghi là đúng thì đúng, ba phương án ghi là sai đều sai, và bốn phương "
        "án có nghĩa, cùng loại. Câu hỏi có đạt không?"
    ),
    "en": (
        "The multiple-choice question below was written about the passage. It is sound if the "
        "passage tells the answer, the option marked right is right, the three marked wrong are "
        "wrong, and all four make sense and are of one kind. Is the question sound?"
    ),
}


@dataclass(frozen=True, slots=True)
class VerdictPrompt:
    """What to ask, and what the model is taken to have said already."""

    prompt: Prompt
    prefix: str


def verdict_prompt(
    question: Question, context: str, language: Language, right: Letter | None = None
) -> VerdictPrompt:
    """Ask about the question as it is, or as if another option were the right one."""
    return describe(
        question.question,
        question.options[right or question.key],
        [text for letter, text in question.options.items() if letter != (right or question.key)],
        context,
        language,
    )


def describe(
    stem: str, right: str, wrong: Sequence[str], context: str, language: Language
) -> VerdictPrompt:
    """The same from parts that need not make a legal question."""
    lines = [f"{STEM_LABEL[language]} {stem}", f"{RIGHT_LABEL[language]} {right}"]
    lines += [f"{WRONG_LABEL[language]} {text}" for text in wrong]
    user = f"{normalize_context(context)}\n\n" + "\n".join(lines)
    prompt = Prompt(messages=(Message("system", _TASK[language]), Message("user", user)))
    return VerdictPrompt(prompt, KEY_LABEL[language])


def probability_of_yes(scores: Sequence[float]) -> float:
    """From the log-probabilities of `CHOICES`, which need not be normalised."""
    yes, no = scores
    return 1 / (1 + math.exp(min(no - yes, 700)))
