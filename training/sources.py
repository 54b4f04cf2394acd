# pyright: basic
# pyarrow and datasets have no types for strict checking.
"""Rows out of files and Hub data sets, each with its number. Knows nothing of questions."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import DataError


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it was found; `place` is what a person would look for, such as `a.jsonl:12`."""

    place: str
    values: dict[str, Any]


def read_rows(path: str) -> Iterator[RawRow]:
    """Every row of a .jsonl, .jsonl.gz, .csv or .parquet file, or of `hf:ORG/NAME[:SPLIT]`.

    A JSON line is a row, or a passage with its rows in `questions`.

    Raises:
        DataError: The source is missing, or a row of it is broken; the message names the line.
    """
    if path.startswith("hf:"):
        return _read_hub(path.removeprefix("hf:"))
    file = Path(path)
    readers = {
        ".jsonl": _read_jsonl,
        ".jsonl.gz": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = next((read for ending, read in readers.items() if path.endswith(ending)), None)
    if reader is None:
        raise DataError(
            f"{path}: expected a file that ends in {', '.join(readers)}, or hf:ORG/NAME"
        )
    if not file.is_file():
        raise DataError(f"{path}: no such file")
    return reader(file)


def _read_jsonl(file: Path) -> Iterator[RawRow]:
    try:
        yield from _read_lines(file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{file}: not gzip, or cut off ({error})") from error


def _read_lines(file: Path) -> Iterator[RawRow]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                values: Any = json.loads(text) if text else None
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 text ({error.reason})") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
            if values is None:
                continue
            if not isinstance(values, dict):
                raise DataError(f"{place}: expected an object, found {type(values).__name__}")
            yield from _rows_of(place, values)


def _rows_of(place: str, values: dict[str, Any]) -> Iterator[RawRow]:
    """A passage with its `questions` is as many rows, each with what they share."""
    questions = values.get("questions")
    if not isinstance(questions, list):
        yield RawRow(place, values)
        return
    shared = {name: value for name, value in values.items() if name != "questions"}
    for number, question in enumerate(questions, 1):
        where = f"{place}, question {number}"
        if not isinstance(question, dict):
            raise DataError(f"{where}: expected an object, found {type(question).__name__}")
        yield RawRow(where, shared | question)


def _read_csv(file: Path) -> Iterator[RawRow]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            for values in reader:
                place = f"{file}:{reader.line_num}"
                if None in values or None in values.values():
                    wanted = len(reader.fieldnames or ())
                    raise DataError(f"{place}: expected {wanted} columns, as the header has")
                yield RawRow(place, dict(values))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{file}: not CSV ({error})") from error


def _read_parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow  # heavy: only when a Parquet file is read
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not Parquet ({error})") from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield RawRow(f"{file}: row {number}", values)


def _read_hub(name: str) -> Iterator[RawRow]:
    import datasets  # heavy: only when a Hub data set is read

    repository, _, split = name.partition(":")
    try:
        rows: Any = datasets.load_dataset(repository, split=split or "train")
    except Exception as error:  # the library raises dozens of kinds for the same misfortune
        raise DataError(
            f"hf:{name}: cannot be loaded ({type(error).__name__}: {error}); offline, use a file"
        ) from error
    for number, values in enumerate(rows, 1):
        yield RawRow(f"hf:{name}: row {number}", dict(values))
