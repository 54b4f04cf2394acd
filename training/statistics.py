"""What the data of a run is, for people: `python -m training data CONFIG`."""

from collections import Counter
from collections.abc import Iterable, Sequence

from training.config import TrainingConfig
from training.examples import Example
from training.metrics import key_balance, key_strictly_longest
from training.rows import balance_keys, key_positions


def describe(config: TrainingConfig) -> str:
    """The cleaning report and statistics, as Markdown."""
    import random

    from training.model import load_tokenizer, prepare
    from training.rows import Renderer, make_rows
    from training.run import prepare_data
    from training.supervision import check_supervision, supervised_share

    prepared = prepare_data(config)
    split, report = prepared.split, prepared.split.report
    tokenizer = load_tokenizer(prepare(config.base).path)
    renderer = Renderer(tokenizer, config.prompt_format)
    rows = make_rows(split.train, renderer, config.data, report)
    check_supervision(rows, renderer, tokenizer.pad_token_id)
    prompts = [row.labels.index(next(x for x in row.labels if x >= 0)) for row in rows]
    completions = [len(row.labels) - prompt for row, prompt in zip(rows, prompts, strict=True)]
    shown = list(split.train)
    if config.data.balance_keys:
        shown = balance_keys(shown, random.Random(config.data.shuffle_seed))
    lines = [
        report.to_markdown(),
        "",
        f"{len(split.train)} examples to learn from, {len(split.validation)} for the held-out "
        f"loss, {len(prepared.passages)} passages for the evaluation",
        f"{len(rows)} rows (with `avoid: {config.data.avoid}`), "
        f"{sum(len(row.input_ids) for row in rows):,} tokens, the loss covers "
        f"{supervised_share(rows):.0%}",
        "",
        "| tokens | least | median | 95 % | most |",
        "|---|---|---|---|---|",
        _lengths("prompt", prompts),
        _lengths("completion", completions),
        _lengths("row", [len(row.input_ids) for row in rows]),
        "",
        f"Languages: {_counts(e.language for e in split.train)}",
        f"Licences: {_counts(e.licence or 'unknown' for e in split.train)}",
        f"Key positions in the files: {key_positions(split.train)} "
        f"(p = {key_balance([e.question for e in split.train]):.2f})",
        f"Key positions as trained: {key_positions(shown)}",
        f"Key strictly the longest option: {_share(split.train):.0%} (chance: 25 %)",
    ]
    return "\n".join(lines)


def _lengths(name: str, values: Sequence[int]) -> str:
    ordered = sorted(values)
    middle, high = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
    return f"| {name} | {ordered[0]} | {middle} | {high} | {ordered[-1]} |"


def _counts(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _share(examples: Sequence[Example]) -> float:
    return sum(key_strictly_longest(e.question) for e in examples) / max(len(examples), 1)
