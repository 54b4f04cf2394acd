# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Errors, cancels and deadlines end what they concern; everything held is given back."""

import random
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mcq.grammar import passage_characters
from mcq.prompts import prompt_format
from model_registry.bases.tiny import write_tiny_model
from service.engine.compiled_grammars import CompiledGrammars
from service.engine.loading import OpenEngine, open_engine
from service.engine.sequence import EngineRequest
from service.errors import BackendFailedError, BackendOverloadedError
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter
from tests.service.engine.driving import Heard, generate, prompt_of, read, submit

REQUEST = EngineRequest(prompt=prompt_of(20), max_tokens=8)


def held(opened: OpenEngine) -> dict[str, int]:
    """What sequences hold of the engine, seen between two steps."""
    engine = opened.engine

    def look() -> dict[str, int]:
        grammars = engine._runner.grammar._loaded.values()
        return {
            "kv slots": opened.config.max_sequences - engine._kv.free,
            "lora slots": engine._lora.held,
            "grammars": sum(loaded.users for loaded in grammars),
            "queued": engine._queued,
            "waiting": engine._scheduler.waiting,
        }

    return engine.call(look).result(10)


def assert_nothing_is_held(opened: OpenEngine) -> None:
    deadline = time.monotonic() + 5
    while any((found := held(opened)).values()):
        assert time.monotonic() < deadline, found
    assert opened.store.holders == 0


def fail_at(opened: OpenEngine, slots: set[int], error: Exception) -> None:
    """Make every step fail in which one of these KV slots takes part, once."""
    runner: Any = opened.engine._runner

    def failing(original: Any) -> Any:
        def run(parts: Any, **options: Any) -> Any:
            if slots & {part.slot for part in parts}:
                slots.clear()
                raise error
            return original(parts, **options)

        return run

    runner.extend, runner.decode = failing(runner.extend), failing(runner.decode)


def test_a_failing_step_fails_its_requests_and_not_the_engine(opened: OpenEngine) -> None:
    expected = generate(opened, REQUEST)
    fail_at(opened, set(range(SIZES.max_sequences)), RuntimeError("a kernel broke"))
    assert isinstance(submit(opened, REQUEST).wait().error, BackendFailedError)
    assert opened.engine.is_healthy
    assert generate(opened, REQUEST) == expected
    assert_nothing_is_held(opened)


def test_running_out_of_device_memory_sheds_load_and_recovers(opened: OpenEngine) -> None:
    expected = generate(opened, REQUEST)
    fail_at(opened, set(range(SIZES.max_sequences)), torch.OutOfMemoryError("CUDA out of memory"))
    assert isinstance(submit(opened, REQUEST).wait().error, BackendOverloadedError)
    assert generate(opened, REQUEST) == expected
    assert_nothing_is_held(opened)


def test_a_dead_engine_is_unhealthy_and_every_waiting_caller_hears_an_error(
    opened: OpenEngine,
) -> None:
    long = EngineRequest(prompt=prompt_of(20), n=4, max_tokens=400)
    waiting = [submit(opened, long) for _ in range(3)]

    def die() -> None:
        raise KeyboardInterrupt

    opened.engine._inbox.append(die)
    opened.engine._wake.set()
    died = time.monotonic()
    for heard in waiting:
        assert isinstance(heard.wait(5).error, BackendFailedError)
    assert not opened.engine.is_healthy
    assert time.monotonic() - died < 1
    with pytest.raises(BackendFailedError):
        submit(opened, REQUEST)


def test_closing_the_engine_ends_what_runs(opened: OpenEngine) -> None:
    heard = submit(opened, EngineRequest(prompt=prompt_of(20), n=6, max_tokens=400))
    opened.engine.close()
    assert isinstance(heard.wait(5).error, BackendFailedError)


def test_a_cancelled_request_ends_before_its_length(opened: OpenEngine) -> None:
    heard = submit(opened, EngineRequest(prompt=prompt_of(20), n=2, max_tokens=450))
    heard.inbox.get(timeout=10)
    opened.engine.cancel(heard.ticket)
    assert set(heard.wait(10).finish.values()) == {"cancelled"}
    assert sum(map(len, heard.tokens.values())) < 900
    assert_nothing_is_held(opened)


def test_a_deadline_ends_requests_that_run_and_requests_that_wait(opened: OpenEngine) -> None:
    deadline = time.monotonic() + 0.3
    heard = [
        submit(opened, EngineRequest(prompt=prompt_of(20), n=4, max_tokens=450, deadline=deadline))
        for _ in range(3)
    ]
    for request in heard:
        assert "cancelled" in request.wait(10).finish.values()
    assert time.monotonic() < deadline + 2
    assert_nothing_is_held(opened)


def test_a_full_queue_refuses_and_drains(opened: OpenEngine) -> None:
    large = EngineRequest(prompt=prompt_of(20), n=SIZES.max_queue, max_tokens=5)
    heard = submit(opened, large)
    with pytest.raises(BackendOverloadedError):
        submit(opened, large)
    assert opened.engine.metrics.refused == 1
    assert heard.wait().error is None
    assert_nothing_is_held(opened)


def storm(opened: OpenEngine, adapters: dict[str, Path], requests: int) -> None:
    """Requests of every kind at once, some cancelled, some late, some with steps that fail."""
    rng = random.Random(5)
    tokenizer: Any = opened.tokenizer
    grammars = CompiledGrammars(
        opened.compiler, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    chat = prompt_format("chat/1")
    tables = [grammars.get(chat.grammar("vi"), passage_characters(c)) for c in ("a", "漢", "字")]
    host = {kind: read(opened, path) for kind, path in adapters.items()}
    runner: Any = opened.engine._runner
    original = runner.decode
    steps = iter(range(10**9))

    def decode(parts: Any, **options: Any) -> Any:
        if next(steps) % 211 == 210:
            raise RuntimeError("a kernel broke")
        return original(parts, **options)

    runner.decode = decode
    running: list[Heard] = []
    for _ in range(requests):
        kind = rng.choice([*host, ""])
        key, table, forced = rng.choice(tables) if rng.random() < 0.4 else (None, None, {})
        request = EngineRequest(
            prompt=prompt_of(rng.randint(10, 30), seed=rng.randint(0, 5)),
            n=rng.choice([1, 1, 1, 2, 3]),
            max_tokens=rng.randint(1, 6),
            temperature=rng.choice([0.0, 0.9]),
            seed=rng.getrandbits(31),
            digest=kind,
            adapter=host.get(kind),
            grammar=key,
            table=table,
            forced=forced,
            deadline=time.monotonic() + rng.choice([0.0, 0.02]) if rng.random() < 0.05 else None,
            choices=(5, 6, 7) if table is None and rng.random() < 0.1 else (),
        )
        heard = submit(opened, request)
        running.append(heard)
        if rng.random() < 0.1:
            opened.engine.cancel(rng.choice(running).ticket)
        while len(running) > 3 * opened.config.max_sequences:
            running.pop(0).wait(30)
    for heard in running:
        heard.wait(30)


def test_a_storm_leaves_nothing_held(opened: OpenEngine, adapters: dict[str, Path]) -> None:
    storm(opened, adapters, 200)
    metrics = opened.engine.metrics
    assert metrics.adapter_evictions > 0
    assert (
        {"stop", "length", "cancelled", "failed"} >= set(metrics.ended) >= {"length", "cancelled"}
    )
    assert opened.engine.is_healthy
    assert_nothing_is_held(opened)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_ten_thousand_requests(
    tmp_path: Path,
) -> None:
    base = write_tiny_model(tmp_path / "base", layers=1, hidden=32)
    shapes = linear_shapes(base)
    adapters = {
        name: write_adapter(tmp_path / name, shapes, seed=seed, r=8)
        for seed, name in enumerate(("one", "two", "three", "four", "five"))
    }
    opened = open_engine(base, "fp32", replace(SIZES, max_sequences=32, max_queue=256))
    try:
        storm(opened, adapters, 2_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        storm(opened, adapters, 8_000)
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mib < 50
        assert_nothing_is_held(opened)
    finally:
        opened.engine.close()
