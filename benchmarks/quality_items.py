"""Questions about held-out passages as the engine writes and judges them, one JSON line each.

    python -m benchmarks.quality_items OUT.jsonl --use ruler ruler_en --settings 0.0x1 0.8x1

Every completion is read by the rules and answered by the bare base, with the passage and without.
For labelling (docs/labelling.md) and for measuring verifiers (`benchmarks.quality_verifiers`). Goes
on where it was stopped: passages that the file has for an adapter and temperature are left out.
Reading costs most of the time; with `--unread` it is left for later, and `--read` does it then.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcq.grammar import passage_characters
from mcq.language import Language
from mcq.prompts import prompt_format
from mcq.question import Letter, Question
from mcq.reader import CHOICES, option_probabilities, reader_prompts
from service.backends.base import (
    AdapterFiles,
    Backend,
    CompletionRequest,
    FinishReason,
    Sampling,
    ScoreRequest,
)
from service.backends.opening import open_backend
from service.config import ServiceConfig
from training.config import EvaluationConfig
from training.evaluate import Passage, load_passages
from training.metrics import JudgedItem, judge

CONTEXTS = "benchmarks/data/held_out.jsonl"


def main() -> None:
    """Read the command line and write items."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", type=Path, default=Path("adapters/mcq-vi"))
    parser.add_argument("--bare", action="store_true", help="the base without an adapter, chat/1")
    parser.add_argument("--contexts", type=Path, nargs="+", default=[Path(CONTEXTS)])
    parser.add_argument("--use", nargs="+", help="of the passages; all if left out")
    parser.add_argument("--limit", type=int, help="passages of each use")
    parser.add_argument("--settings", nargs="+", default=["0.0x1"], help="TEMPERATURExCOUNT")
    parser.add_argument("--unread", action="store_true", help="leave the reader for later")
    parser.add_argument("--read", action="store_true", help="only let the reader catch up")
    parser.add_argument("--at-once", type=int, default=8, help="passages")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--base", default="embedded:qwen2.5-coder-1.5b-instruct")
    options = parser.parse_args()
    asyncio.run(write(options))


async def write(options: Any) -> None:
    """All settings of all passages, several passages at once."""
    backend = await open_backend(ServiceConfig(base_model=options.base, max_adapters=2))
    files, name, form = None, "base", "chat/1"
    if not options.bare:
        manifest = json.loads((options.adapter / "manifest.json").read_text())
        name, form = options.adapter.name, str(manifest["prompt_format"])
        files = AdapterFiles(f"{name}-v1", f"sha256:{name}", options.adapter)
    passages = [
        passage
        for path in options.contexts
        for use in options.use or [None]
        for passage in load_passages(
            EvaluationConfig(contexts=str(path), use=use, limit=options.limit)
        )
    ]
    try:
        if options.read:
            return await catch_up(backend, options.out, passages, options.at_once)
        for setting in options.settings:
            temperature, count = setting.split("x")
            writer = Writer(backend, files, name, form, float(temperature), int(count), options)
            await writer.run(passages)
    finally:
        await backend.close()


async def catch_up(backend: Backend, path: Path, passages: Sequence[Passage], at_once: int) -> None:
    """Read the items that were left; what is done so far is kept after each group."""
    known = {passage.id: passage.context for passage in passages}
    rows = rows_of(path)
    waiting = [r for r in rows if r["question"] and not r["with_context"] and r["id"] in known]
    begun = time.monotonic()
    for start in range(0, len(waiting), at_once):
        group = waiting[start : start + at_once]
        questions = [Question.model_validate(row["question"]) for row in group]
        for name in ("with_context", "without_context"):
            answers = await asyncio.gather(
                *(
                    read(
                        backend,
                        q,
                        known[r["id"]] if name == "with_context" else None,
                        r["language"],
                    )
                    for q, r in zip(questions, group, strict=True)
                )
            )
            for row, answer in zip(group, answers, strict=True):
                row[name] = {letter: round(p, 4) for letter, p in answer.items()}
        replace_rows(path, rows)
        share = (start + len(group)) / len(waiting)
        left = (time.monotonic() - begun) * (1 / share - 1)
        print(f"read {share:4.0%}, {left:.0f} s left", flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The items of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replace_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a file anew without ever leaving half of one."""
    aside = path.with_suffix(".partial")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


async def read(
    backend: Backend, question: Question, context: str | None, language: Language
) -> dict[Letter, float]:
    """What the bare base answers, over all rotations."""
    asked = reader_prompts(question, context, language)
    scores = await backend.score([ScoreRequest(a.prompt, CHOICES, prefix=a.prefix) for a in asked])
    return option_probabilities(scores)


class Writer:
    """Writes the items of one adapter at one temperature."""

    def __init__(
        self,
        backend: Backend,
        files: AdapterFiles | None,
        name: str,
        form: str,
        temperature: float,
        count: int,
        options: Any,
    ) -> None:
        self.backend, self.files, self.name = backend, files, name
        self.format = prompt_format(form)
        self.temperature, self.count = temperature, count
        self.out: Path = options.out
        self.at_once: int = options.at_once
        self.seed: int = options.seed
        self.unread: bool = options.unread

    async def run(self, passages: Sequence[Passage]) -> None:
        """Everything that the file does not have yet."""
        done = self._done()
        waiting = [passage for passage in passages if passage.id not in done]
        begun, written = time.monotonic(), 0
        for start in range(0, len(waiting), self.at_once):
            group = waiting[start : start + self.at_once]
            for items in await asyncio.gather(*(self._passage(p) for p in group)):
                self._keep(items)
                written += len(items)
            share = (start + len(group)) / len(waiting)
            left = (time.monotonic() - begun) * (1 / share - 1)
            print(
                f"T={self.temperature} {share:4.0%}  {written} items, {left:.0f} s left", flush=True
            )

    def _done(self) -> set[str]:
        if not self.out.exists():
            return set()
        rows = rows_of(self.out)
        mine = (self.name, self.temperature)
        return {row["id"] for row in rows if (row["adapter"], row["temperature"]) == mine}

    async def _passage(self, passage: Passage) -> list[JudgedItem]:
        request = CompletionRequest(
            prompt=self.format.render(passage.context, passage.language),
            sampling=Sampling(temperature=self.temperature, top_p=0.95, seed=self.seed),
            adapter=self.files,
            grammar=self.format.grammar(passage.language),
            extra_characters=passage_characters(passage.context),
            n=self.count,
        )
        texts: dict[int, str] = {}
        tokens: dict[int, int] = {}
        reasons: dict[int, FinishReason] = {}
        logprobs: dict[int, float] = {}
        async for delta in self.backend.complete(request):
            texts[delta.index] = texts.get(delta.index, "") + delta.text
            tokens[delta.index] = tokens.get(delta.index, 0) + delta.tokens
            if delta.logprob is not None:
                logprobs[delta.index] = logprobs.get(delta.index, 0.0) + delta.logprob
            if delta.finish_reason is not None:
                reasons[delta.index] = delta.finish_reason
        items = [
            judge(
                passage.id,
                passage.context,
                passage.language,
                texts[index],
                format_name=self.format.name,
                stopped=reasons[index] == "stop",
                tokens=tokens[index],
            )
            for index in sorted(texts)
        ]
        for index, item in zip(sorted(texts), items, strict=True):
            if index in logprobs:
                item.extra["logprob"] = round(logprobs[index], 3)
            if item.question is not None and not self.unread:
                for name, context in (("with_context", passage.context), ("without_context", None)):
                    answer = await read(self.backend, item.question, context, item.language)
                    setattr(item, name, answer)
        return items

    def _keep(self, items: Sequence[JudgedItem]) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            for item in items:
                values = item.to_json()
                del values["context"]
                values |= values.pop("extra")
                values |= {"adapter": self.name, "temperature": self.temperature}
                for key in ("with_context", "without_context"):
                    if values[key]:
                        values[key] = {k: round(v, 4) for k, v in values[key].items()}
                file.write(json.dumps(values, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
