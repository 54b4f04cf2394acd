"""Guesses at what a sequence says next, copied from what stands in it already.

A question repeats names and phrases of its passage. Where the last tokens have stood before, what
followed them there is a guess; the model checks several guesses in one step, which on a CPU takes
hardly longer than one token, since its weights are read once. (Prompt lookup decoding: Saxena 2023;
`PromptLookupCandidateGenerator` in transformers.)
"""

from collections.abc import Sequence


class Lookup:
    """Where the tokens and pairs of tokens of one growing sequence stood last."""

    def __init__(self) -> None:
        self._after_pair: dict[tuple[int, int], int] = {}
        self._after_token: dict[int, int] = {}
        self._known = 0

    def guess(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow; `tokens` only grows between calls."""
        if most <= 0 or len(tokens) < 2:
            return ()
        for place in range(self._known, len(tokens) - 1):
            self._after_token[tokens[place]] = place + 1
            if place:
                self._after_pair[tokens[place - 1], tokens[place]] = place + 1
        self._known = len(tokens) - 1
        start = self._after_pair.get((tokens[-2], tokens[-1]))
        if start is None:
            start = self._after_token.get(tokens[-1], len(tokens))
        return tuple(tokens[start : start + most])
