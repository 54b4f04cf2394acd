"""Tables for people, JSON for scripts."""

import json
from collections.abc import Mapping, Sequence


def print_json(value: object) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their content; empty cells as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in [[title.upper() for title in header], *cells]:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        print(line.rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """One `name  value` per line; nested values as JSON."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
