# pyright: basic
# torch and llama_cpp are typed too loosely for strict mode.
"""The engine on a CPU beside llama.cpp on the same model and beside the reference backend.

    python -m benchmarks.engine_cpu --rounds 3 --gguf MODEL.gguf --llama-python VENV/bin/python

One request of 300 prompt and 100 output tokens with an adapter of rank 8, and eight at once over
four adapters: random tokens, of which none can be guessed. Then real questions about held-out
passages as the service asks for them (bundled adapter, grammar, greedy), one at a time and eight at
once under four names; llama.cpp computes as many tokens. All take turns within a round, and the
ratios are those of one round, so that what else the machine does falls on all of them.

llama.cpp runs without adapters (which only favours it), one request after the other, as its Python
binding serves them; it is left out unless a GGUF file is given. `--llama-python` names a Python
that has llama-cpp-python. The reference backend is sequential as well, so eight requests take it
eight times as long as one; it is measured with the bundled adapter, per output token.
"""

import argparse
import asyncio
import itertools
import json
import queue
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.engine_workload import prompts, random_adapter
from mcq.prompts import prompt_format
from model_registry.bases import prepare_base
from model_registry.bases.cache import default_cache_dir
from service.backends.base import AdapterFiles, CompletionRequest, Sampling
from service.backends.engine import EngineBackend
from service.engine.loading import OpenEngine, default_config, open_engine
from service.engine.sequence import EngineRequest, Output

BASE = "embedded:qwen2.5-coder-1.5b-instruct"
PROMPT, OUTPUT, AT_ONCE, ADAPTERS, RANK = 300, 100, 8, 4, 8
_CONTEXT = Path("benchmarks/data/held_out.jsonl")
_LLAMA = """
import json, sys, time
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=1024, n_threads=int(sys.argv[2]), verbose=False)
for line in sys.stdin:
    tokens, output = json.loads(line)
    llm.reset()
    began = time.perf_counter()
    llm.eval(tokens)
    prefilled = time.perf_counter()
    for _ in range(output - 1):
        llm.eval([llm.sample(temp=0.0)])
    print(json.dumps([prefilled - began, time.perf_counter() - prefilled]), flush=True)
"""


def main() -> None:
    """Measure and print, a line for each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", type=Path, help="the base as llama.cpp reads it")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--drafts", type=int, help="tokens guessed ahead; default: the service's")
    arguments = parser.parse_args()
    base = prepare_base(BASE)
    began = time.perf_counter()
    device = torch.device("cpu")
    config = default_config(ADAPTERS, device)
    if arguments.drafts is not None:
        config = replace(config, max_drafts=arguments.drafts)
    opened = open_engine(base.path, "auto", config, cache_dir=default_cache_dir())
    print(f"engine loaded in {time.perf_counter() - began:.1f} s, {_resident_mib()} MiB resident")
    llama = Llama(arguments.llama_python, arguments.gguf) if arguments.gguf else None
    reference = None if arguments.no_reference else Reference(base)
    engine, questions = EngineUnderTest(opened), Questions(EngineBackend(opened, base))
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        row = {"engine one": engine.seconds(1), "engine eight": engine.seconds(AT_ONCE)}
        row |= engine.parts()
        if llama is not None:
            prefill, decode = llama.seconds()
            row |= {"llama prefill": prefill, "llama decode": decode}
            row["llama / engine, one"] = (prefill + decode) / row["engine one"]
            row["llama / engine, eight"] = AT_ONCE * (prefill + decode) / row["engine eight"]
        for name, count in (("one question", 1), ("eight questions", AT_ONCE)):
            seconds, prompt, output = questions.seconds(count)
            row |= {name: seconds, f"{name}, tokens": output}
            if llama is not None:
                theirs = count * sum(llama.seconds(prompt // count, output // count))
                row[f"llama / engine, {name}"] = theirs / seconds
        if reference is not None:
            row["reference one"] = reference.seconds()
            row["reference / engine, one"] = row["reference one"] / row["engine one"]
            row["reference / engine, eight"] = AT_ONCE * row["reference one"] / row["engine eight"]
        rounds.append(row)
        print(f"round {number + 1}", json.dumps({k: round(v, 2) for k, v in row.items()}))
    for name in rounds[0]:
        print(f"{name:28} {statistics.median(row[name] for row in rounds):8.2f}")
    print(f"{_resident_mib()} MiB resident in all")
    opened.engine.close()


class EngineUnderTest:
    """Requests with fresh prompts, so that nothing is found computed."""

    def __init__(self, opened: OpenEngine) -> None:
        self._opened, self._seed = opened, 0
        self._adapters = [
            random_adapter(i, RANK, opened.shapes, torch.float32, pinned=False)
            for i in range(ADAPTERS)
        ]
        self.seconds(1, output=4)

    def seconds(self, count: int, output: int = OUTPUT) -> float:
        """Until the last of `count` concurrent requests has ended."""
        self._seed += 1
        heard: queue.Queue[list[Output]] = queue.Queue()
        began = time.perf_counter()
        for index, prompt in enumerate(prompts(count, self._seed, shared=0, own=(PROMPT, PROMPT))):
            adapter = self._adapters[index % ADAPTERS]
            request = EngineRequest(prompt=prompt, max_tokens=output)
            request = replace(request, digest=adapter.name, adapter=adapter)
            self._opened.engine.submit(request, heard.put)
        while count:
            for news in heard.get():
                if news.error is not None:
                    raise news.error
                count -= news.finish is not None
        return time.perf_counter() - began

    def parts(self) -> dict[str, float]:
        """Tokens per second of one prompt, and of one stream after it."""
        prefill = self.seconds(1, output=1)
        decode = self.seconds(1) - prefill
        return {"engine prefill tok/s": PROMPT / prefill, "engine decode tok/s": OUTPUT / decode}


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, gguf: Path) -> None:
        threads = str(torch.get_num_threads())
        self._process = subprocess.Popen(
            [python, "-c", _LLAMA, str(gguf), threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds(output=4)

    def seconds(self, length: int = PROMPT, output: int = OUTPUT) -> tuple[float, float]:
        """Of the prompt, and of what follows."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        prompt = list(prompts(1, 0, shared=0, own=(length, length))[0])
        self._process.stdin.write(json.dumps([prompt, output]) + "\n")
        self._process.stdin.flush()
        prefill, decode = json.loads(self._process.stdout.readline())
        return prefill, decode


class Questions:
    """Real questions, each about a passage of its own."""

    def __init__(self, backend: EngineBackend) -> None:
        self._backend = backend
        with _CONTEXT.open(encoding="utf-8") as lines:
            passages = [json.loads(line) for line in lines]
        self._contexts = itertools.cycle(p["context"] for p in passages if p["use"] == "final")
        self._adapters = itertools.cycle(
            AdapterFiles(f"mcq-vi-{i}", f"bundled-{i}", Path("adapters/mcq-vi"))
            for i in range(ADAPTERS)
        )
        self.seconds(ADAPTERS)

    def seconds(self, count: int) -> tuple[float, int, int]:
        """Until the last of so many has ended; prompt and output tokens of all together."""
        return asyncio.run(self._ask(count))

    async def _ask(self, count: int) -> tuple[float, int, int]:
        began = time.perf_counter()
        tokens = await asyncio.gather(*(self._answer() for _ in range(count)))
        seconds = time.perf_counter() - began
        return seconds, sum(prompt for prompt, _ in tokens), sum(output for _, output in tokens)

    async def _answer(self) -> tuple[int, int]:
        shape = prompt_format("chat/3")
        request = CompletionRequest(
            prompt=shape.render(next(self._contexts), "vi", []),
            sampling=Sampling(max_tokens=320, temperature=0.0),
            adapter=next(self._adapters),
            grammar=shape.grammar("vi"),
        )
        prompt = output = 0
        async for delta in self._backend.complete(request):
            prompt, output = prompt + delta.prompt_tokens, output + delta.tokens
        return prompt, output


class Reference:
    """The reference backend with the bundled adapter."""

    def __init__(self, base) -> None:
        from service.backends.reference import ReferenceBackend

        self._backend = ReferenceBackend.open(base)
        self._adapter = AdapterFiles("mcq-vi", "bundled", Path("adapters/mcq-vi"))
        with _CONTEXT.open(encoding="utf-8") as lines:
            self._context = json.loads(next(lines))["context"]

    def seconds(self) -> float:
        """Of one request, scaled to the output tokens of the others."""
        return asyncio.run(self._answer())

    async def _answer(self) -> float:
        request = CompletionRequest(
            prompt=prompt_format("chat/1").render(self._context, "vi", []),
            sampling=Sampling(max_tokens=OUTPUT, temperature=0.0),
            adapter=self._adapter,
        )
        await self._backend.load_adapter(self._adapter)
        began, tokens = time.perf_counter(), 0
        async for delta in self._backend.complete(request):
            tokens += delta.tokens
        return (time.perf_counter() - began) * OUTPUT / tokens


def _resident_mib() -> int:
    with suppress(OSError), Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))
    return 0


if __name__ == "__main__":
    main()
