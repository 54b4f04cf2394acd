# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""Reading and cleaning: every dropped row has a reason, every broken file a line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcq.question import Letter, Question
from training.cleaning import is_recall, load_examples, passage_key
from training.config import DataConfig
from training.errors import DataError
from training.examples import Example
from training.sources import read_rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    """A good row in the project's own columns."""
    values: dict[str, Any] = {
        "context": "Nước sôi ở 100 độ C khi áp suất là một atmôtphe, và đóng băng ở 0 độ C.",
        "question": "Nước sôi ở bao nhiêu độ C?",
        "answer_a": "100 độ",
        "answer_b": "90 độ",
        "answer_c": "80 độ",
        "answer_d": "70 độ",
        "correct_answer": "A",
    }
    return {**values, **changes}


def data(path: Path, **more: Any) -> DataConfig:
    source = {"path": str(path), **more.pop("source", {})}
    return DataConfig.model_validate({"train": [source], "validation_share": 0, **more})


def test_dropped_rows_are_counted_with_their_reason(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            row(),
            row(),
            row(question="Câu khác?", correct_answer="E"),
            row(question="Câu nữa?", answer_b="100 độ"),
            row(question="Không có đoạn?", context=" "),
        ],
    )
    split = load_examples(data(path))
    assert len(split.train) == 1
    assert split.report.dropped == {
        "duplicate": 1,
        "key_out_of_range": 1,
        "invalid_question": 1,
        "no_context": 1,
    }
    assert f"{path}:3: the key is 'E'" in split.report.to_markdown()


def test_missing_columns_are_named_with_those_found(tmp_path: Path) -> None:
    bad = row()
    del bad["answer_d"], bad["correct_answer"]
    path = write_jsonl(tmp_path / "a.jsonl", [bad])
    with pytest.raises(DataError, match=r"answer_d, correct_answer is missing; found: context"):
        load_examples(data(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"context": "a"}\n{"context": \n', ":2: not JSON"),
        (b"\xff\xfe{}\n", ":1: not UTF-8"),
        (b"[1, 2]\n", ":1: expected an object, found list"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        list(read_rows(str(path)))


@pytest.mark.parametrize("spoil", [lambda b: b[:-12], lambda b: b"PK" + b, lambda b: b[:20]])
def test_a_broken_gzip_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(spoil(gzip.compress((json.dumps(row()) + "\n").encode() * 50)))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: not gzip, or cut off"):
        list(read_rows(str(path)))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(correct_answer="X")])
    with pytest.raises(DataError, match=r"No row is left .*key_out_of_range 1"):
        load_examples(data(path))


@pytest.mark.parametrize("preset", ["tong_hop_trac_nghiem", "tin_hoc"])
def test_presets_read_the_columns_of_the_older_sets(tmp_path: Path, preset: str) -> None:
    values = row()
    if preset == "tin_hoc":
        values["para"] = values.pop("context")
        values["answer_key"] = values.pop("correct_answer")
    path = write_jsonl(tmp_path / "a.jsonl", [values])
    (example,) = load_examples(data(path, source={"columns": preset})).train
    assert example.question.key_text == "100 độ"
    assert example.language == "vi"


def test_csv_parquet_and_gzip_read_like_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row()))
        writer.writeheader()
        writer.writerow(row())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row()]), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(row()).encode()))
    for name in ("a.csv", "a.parquet", "a.jsonl.gz"):
        (example,) = load_examples(data(tmp_path / name)).train
        assert example.question.question == row()["question"]


def test_a_line_may_be_a_passage_with_several_questions(tmp_path: Path) -> None:
    shared = {"context": row()["context"]}
    asked = {name: value for name, value in row().items() if name not in shared}
    other = asked | {"id": "another", "question": "Nước đóng băng ở bao nhiêu độ?"}
    path = write_jsonl(tmp_path / "a.jsonl", [shared | {"questions": [asked, other]}, row()])
    examples = load_examples(data(path)).train
    assert {e.question.question for e in examples} == {asked["question"], other["question"]}
    assert {e.context for e in examples} == {row()["context"]}
    broken = write_jsonl(tmp_path / "b.jsonl", [shared | {"questions": [asked, "Vì sao?"]}])
    with pytest.raises(DataError, match=r"b\.jsonl:1, question 2: expected an object, found str"):
        load_examples(data(broken))


def test_no_passage_is_on_both_sides_of_the_split(few_rows: Path) -> None:
    split = load_examples(data(few_rows, validation_share=0.3))
    sides = [{passage_key(e.context) for e in side} for side in (split.train, split.validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_rows_about_held_out_passages_are_leaks(few_rows: Path) -> None:
    whole = load_examples(data(few_rows))
    held = whole.train[0].context.upper()
    split = load_examples(data(few_rows), [held])
    assert split.report.dropped["leak"] == 2
    assert len(split.train) == len(whole.train) - 2


def test_weights_repeat_and_thin_out(few_rows: Path) -> None:
    assert len(load_examples(data(few_rows, source={"weight": 2.5})).train) == 30


def test_held_out_passages_are_in_no_training_file() -> None:
    held = {
        passage_key(json.loads(line)["context"])
        for line in Path("benchmarks/data/held_out.jsonl").read_text("utf-8").splitlines()
    }
    for path in Path("training/data/train").glob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            assert passage_key(json.loads(line)["context"]) not in held


def test_recall_questions_ask_in_one_sentence_for_what_the_passage_says() -> None:
    def example(stem: str, key: str) -> Example:
        options: dict[Letter, str] = {"A": key, "B": "Gan", "C": "Phổi", "D": "Da"}
        question = Question(question=stem, options=options, key="A")
        return Example("x:1", "Tim đẩy máu đi khắp cơ thể.", question, "vi")

    assert is_recall(example("Cơ quan nào đẩy máu đi khắp cơ thể?", "Tim"))
    assert not is_recall(example("Vì sao máu đi khắp cơ thể?", "Tim"))
    assert not is_recall(example("Bạn An chạy. Cơ quan nào làm việc nhiều hơn?", "Tim"))
    assert not is_recall(example("Cơ quan nào đẩy máu?", "Một khối cơ rỗng"))
