# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""`python -m training contrast`: pairs that differ in their wrong options alone.

An author's stem and right option are kept, and an adapter writes wrong options to them as it does
when it serves: repeated ones, words that are none, options that are true as well. Set against the
author's own, they show preference tuning exactly where the two differ. Chen et al. 2024
(arXiv:2401.01335) do so with whole completions. The adapter should not have been trained on the
same rows, or it repeats the author.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcq.errors import MalformedCompletionError
from mcq.forms import Unlettered
from mcq.question import Question, comparable
from training.errors import DataError
from training.examples import Example
from training.generation import Ask, Completion, generate
from training.rows import Renderer, proof

OWN_OPTIONS = "own_options"
"""Why one is rejected that is well formed: its wrong options are the model's own."""


def contrast(
    model: Any,
    renderer: Renderer,
    examples: Sequence[Example],
    path: Path,
    *,
    n: int = 2,
    temperature: float = 0.8,
    seed: int = 0,
    batch_size: int = 8,
    max_new_tokens: int = 128,
) -> dict[str, int]:
    """Write one pair for each example whose wrong options the model would write otherwise.

    Of `n` draws a malformed one is taken first, since those are rare; then the first one that
    differs.

    Returns:
        How many pairs were written for each reason of rejection.

    Raises:
        DataError: The prompt format has no place where wrong options alone are left to write, or
            the model wrote the author's options throughout.
    """
    form = renderer.format.form
    if not isinstance(form, Unlettered):
        raise DataError(
            f"{renderer.format.name} names the key after the options, so wrong ones cannot be "
            "written alone; train the adapter with prompt_format: chat/3"
        )
    asks = [
        Ask(e.context, e.language, begun=form.opening(e.question, e.language, _quote(e, form)))
        for e in examples
    ]
    drawn = generate(
        model,
        renderer,
        asks,
        batch_size=max(1, batch_size // n),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        n=n,
        seed=seed,
    )
    rows = [
        row
        for example, completions in zip(examples, drawn, strict=True)
        if (row := pair(example, completions, renderer)) is not None
    ]
    if not rows:
        raise DataError(
            "No draw ended and had other wrong options than the author's; use an adapter that was "
            "not trained on these rows"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    aside.replace(path)
    return dict(Counter(row["reason"] for row in rows).most_common())


def pair(
    example: Example, completions: Sequence[Completion], renderer: Renderer
) -> dict[str, Any] | None:
    """A row of a preference set, or None if no draw differs from the author's question."""
    found: list[tuple[str, str]] = []
    for completion in completions:
        if not completion.stopped:
            continue
        try:
            question = renderer.format.parse(completion.text, example.language)
        except MalformedCompletionError as error:
            found.insert(0, (error.reason, completion.text))
            continue
        if _options(question) != _options(example.question):
            found.append((OWN_OPTIONS, completion.text))
    if not found:
        return None
    reason, rejected = found[0]
    quote = _quote(example, renderer.format.form)
    return {
        "id": example.place,
        "lang": example.language,
        "context": example.context,
        "prompt_format": renderer.format.name,
        "chosen": renderer.format.render_completion(example.question, example.language, quote),
        "rejected": rejected,
        "reason": reason,
        "source": example.source,
        "licence": example.licence,
    }


def _options(question: Question) -> set[str]:
    return {comparable(text) for text in question.distractors}


def _quote(example: Example, form: Any) -> str:
    return proof(example) if form.needs_quote else ""
