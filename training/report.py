"""Evaluations side by side, as a Markdown table and as one HTML page with plots and worst items."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from mcq.question import LETTERS
from training.evaluate import Evaluation
from training.metrics import JudgedItem, Rate

ROWS: tuple[tuple[str, str], ...] = (
    ("valid_format", "valid format"),
    ("well_formed", "well formed, options aside"),
    ("stops", "stops by itself"),
    ("distinct_options", "four distinct options"),
    ("evidence_found", "evidence found"),
    ("reader_with_passage", "reader right with the passage"),
    ("reader_without_passage", "reader right without it"),
    ("informativity", "difference (informativity)"),
    ("key_probability_mean", "reader's probability of the key"),
    ("key_strictly_longest", "key strictly longest"),
    ("key_balance_p", "key positions even (p)"),
    ("right_language", "right language, no foreign script"),
    ("copies_passage", "stem copies the passage"),
    ("near_duplicate_stems", "near-duplicate stems"),
    ("repeats_training_stem", "stem known from training"),
    ("flaws_per_item", "flaws for each item"),
    ("held_out_loss", "held-out loss"),
    ("tokens_mean", "tokens for each completion"),
)
_WORST = 12


def to_markdown(evaluations: Sequence[Evaluation]) -> str:
    """One column for each model; shares with Wilson's 95 % interval."""
    columns = [(e.label, e.metrics) for e in evaluations]
    columns += [(f"{e.label}, constrained", e.constrained) for e in evaluations if e.constrained]
    lines = [
        "| | " + " | ".join(label for label, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, title in ROWS:
        values = [_cell(metrics.get(name)) for _, metrics in columns]
        if any(value != "–" for value in values):
            lines.append(f"| {title} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Rate):
        return str(value) if value.of else "–"
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_html(evaluations: Sequence[Evaluation]) -> str:
    """A page that stands alone: table, plots, and the items that look worst."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Evaluation</title>",
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;"
        "padding:0 1rem}table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;"
        "padding:.3rem .8rem;text-align:left}img{max-width:100%}article{border-left:3px solid #ccc;"
        "margin:1rem 0;padding:0 1rem}.key{font-weight:600}small{color:#555}</style>",
        "<h1>Evaluation on held-out passages</h1>",
        _table(to_markdown(evaluations)),
        "<p><small>Shares with 95&nbsp;% intervals. The reader is the bare base model; it sees the "
        "options in all four rotations.</small></p>",
    ]
    parts += [
        f'<img alt="{html.escape(title)}" src="{plot}">' for title, plot in plots(evaluations)
    ]
    for evaluation in evaluations:
        parts.append(f"<h2>Worst items of {html.escape(evaluation.label)}</h2>")
        parts += [_article(item) for item in worst(evaluation.items)]
    return "\n".join(parts) + "\n"


def worst(items: Sequence[JudgedItem]) -> list[JudgedItem]:
    """Malformed ones first, then those whose key the reader believes least."""
    return sorted(items, key=lambda i: (i.question is not None, i.key_probability))[:_WORST]


def _table(markdown: str) -> str:
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in ["", *rows[0]][-len(rows[2]) :])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[2:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _article(item: JudgedItem) -> str:
    context = f"<p><small>{html.escape(item.context)}</small></p>"
    if item.question is None:
        why = html.escape(f"{item.malformed}: {item.malformed_detail}")
        return f"<article>{context}<pre>{html.escape(item.text)}</pre><p>{why}</p></article>"
    lines = [f"<p>{html.escape(item.question.question)}</p><ul>"]
    for letter in LETTERS:
        chance = (
            "" if item.with_context is None else f" <small>{item.with_context[letter]:.0%}</small>"
        )
        mark = ' class="key"' if letter == item.question.key else ""
        text = html.escape(f"{letter}. {item.question.options[letter]}")
        lines.append(f"<li{mark}>{text}{chance}</li>")
    flaws = html.escape(", ".join(item.flaws) or "no flaw found")
    return f"<article>{context}{''.join(lines)}</ul><p><small>{flaws}</small></p></article>"


def plots(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """Title and picture (as a data address) of each plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for evaluation in evaluations:
        chances = sorted(i.key_probability for i in evaluation.items if i.with_context)
        if chances:
            shares = [1 - n / len(chances) for n in range(len(chances))]
            left.plot(chances, shares, label=evaluation.label)
    left.set(
        xlabel="reader's probability of the key, at least",
        ylabel="share of valid items",
        title="How sure the reader is",
    )
    if left.lines:
        left.legend()
    width = 0.8 / max(len(evaluations), 1)
    for n, evaluation in enumerate(evaluations):
        counts = [evaluation.metrics["key_positions"].get(letter, 0) for letter in LETTERS]
        places = [i + n * width for i in range(len(LETTERS))]
        right.bar(places, counts, width, label=evaluation.label)
    right.set(title="Where the key stands", ylabel="items")
    right.set_xticks([i + 0.4 - width / 2 for i in range(len(LETTERS))], list(LETTERS))
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")  # pyright: ignore[reportUnknownMemberType]
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return [("Reader and key positions", f"data:image/svg+xml;base64,{encoded}")]
