"""What the loss will see: checked before the first step, and shown to whoever asks."""

from collections.abc import Sequence
from typing import Any

from training.errors import SupervisionError
from training.rows import IGNORED, Renderer, TokenRow

_END_WITHIN = 3
"""Templates may close a turn with a newline after the end token."""


def check_supervision(rows: Sequence[TokenRow], renderer: Renderer, pad_token_id: int) -> None:
    """Raise `SupervisionError` unless every row teaches its completion and where it ends."""
    end = renderer.end_token_id
    if pad_token_id == end:
        raise SupervisionError(
            f"Padding is the end token {renderer.end_token!r}: the end would be masked away with "
            "it, and the model would never stop. Give the tokenizer another pad token"
        )
    supervised = total = 0
    for row in rows:
        taught = [label for label in row.labels if label != IGNORED]
        supervised += len(taught)
        total += len(row.labels)
        if not taught:
            raise SupervisionError(
                f"{row.place}: every label is masked, the loss would be 0 or not a number"
            )
        if end not in taught[-_END_WITHIN:]:
            raise SupervisionError(
                f"{row.place}: the end token {renderer.end_token!r} is not a label, the model "
                "would not learn to stop"
            )
        bos = renderer.tokenizer.bos_token_id
        if bos is not None and row.input_ids[:2] == [bos, bos]:
            raise SupervisionError(f"{row.place}: begins with two start tokens")
    if supervised / total < 0.01:
        raise SupervisionError(f"Only {supervised} of {total} tokens are labels")


def supervised_share(rows: Sequence[TokenRow]) -> float:
    """Share of the tokens that the loss covers."""
    total = sum(len(row.labels) for row in rows)
    return sum(label != IGNORED for row in rows for label in row.labels) / max(total, 1)


def show_row(row: TokenRow, tokenizer: Any, *, colour: bool = True) -> str:
    """A row decoded; what the loss leaves out is grey (or in ⟦brackets⟧ without colour)."""
    grey, reset = ("\x1b[90m", "\x1b[0m") if colour else ("⟦", "⟧")
    pieces: list[str] = []
    start = 0
    while start < len(row.labels):
        masked = row.labels[start] == IGNORED
        stop = start
        while stop < len(row.labels) and (row.labels[stop] == IGNORED) == masked:
            stop += 1
        text = str(tokenizer.decode(row.input_ids[start:stop]))
        pieces.append(f"{grey}{text}{reset}" if masked else text)
        start = stop
    return "".join(pieces)
