# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""With 8-bit weights an answer is the same, bit for bit, whatever else the engine computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.engine.attention import BLOCK
from service.engine.cpu_int8 import Int8Linear
from service.engine.loading import OpenEngine, open_engine
from service.engine.sequence import EngineRequest
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter
from tests.service.engine.driving import prompt_of, read, submit

pytestmark = [
    pytest.mark.skipif(not Int8Linear.is_supported(), reason="no 8-bit kernels here"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the engine runs on the GPU"),
]
_CONFIG = replace(SIZES, int8_on_cpu=True, block=BLOCK, max_sequences=3)
_TOKENS = 24
History = dict[tuple[tuple[int, ...], str], dict[int, torch.Tensor]]
"""Logits of a prompt and adapter, by position."""


def listen(opened: OpenEngine) -> History:
    """Note the logits of every draw from now on; a second time they must be the same."""
    history: History = {}
    runner, running = opened.engine._runner, opened.engine._scheduler.running
    draw = runner._draw

    def noting(logits: torch.Tensor, slots: torch.Tensor, sampling: bool) -> torch.Tensor:
        requests = {s.slot: s.request for s in running}
        positions = runner.state.integers[slots, 1].tolist()
        for row, slot, position in zip(logits, slots.tolist(), positions, strict=True):
            key = (requests[slot].prompt, requests[slot].digest)
            known = history.setdefault(key, {}).setdefault(position, row.clone())
            assert torch.equal(known, row), f"changed at position {position}"
        return draw(logits, slots, sampling)

    runner._draw = noting
    return history


def test_logits_do_not_depend_on_what_else_is_computed(tiny: Path, tmp_path: Path) -> None:
    adapters = [
        write_adapter(tmp_path / f"a{rank}", linear_shapes(tiny), seed=rank, r=rank)
        for rank in (4, 16)
    ]
    requests = [
        # Of 100 tokens the first 70 are common: found again under the same adapter.
        EngineRequest(prompt=prompt_of(70, 0) + prompt_of(length, seed), max_tokens=_TOKENS)
        for seed, length in ((1, 30), (2, 30), (3, 1), (4, 77))
    ]
    alone: History = {}
    together = open_engine(tiny, "bf16", _CONFIG)
    try:
        mixed = [
            replace(request, digest=adapter.name, adapter=read(together, adapter))
            for adapter in adapters
            for request in requests
        ] + requests
        for request in mixed:
            opened = open_engine(tiny, "bf16", _CONFIG)
            heard = listen(opened)
            submit(opened, request).wait()
            opened.engine.close()
            alone |= heard
        heard = listen(together)
        for request in [submit(together, r) for r in [*mixed, *reversed(mixed)]]:
            assert request.wait().error is None
        for request in mixed:  # one after the other: these find their beginnings computed
            submit(together, request).wait()
    finally:
        together.engine.close()
    assert together.engine.metrics.reused_tokens > 0
    assert alone.keys() == heard.keys()
    for key, logits in alone.items():
        assert logits.keys() == heard[key].keys()
        for position, row in logits.items():
            assert torch.equal(row, heard[key][position]), f"differs at position {position}"


def test_a_beginning_is_never_copied_out_of_a_slot_before_it_has_arrived_there(tiny: Path) -> None:
    opened = open_engine(tiny, "fp32", SIZES)
    try:
        runner = opened.engine._runner
        rows = runner.model.keys_values
        for slot in range(4):
            rows[:, :, slot] = slot
        runner.copy_prefixes([(3, 1, 8), (1, 0, 8), (2, 3, 4), (3, 2, 2)])
        seen = {slot: rows[0, 0, slot, 0, :9, 0].tolist() for slot in range(4)}
        assert seen[1] == [3.0] * 8 + [1.0]
        assert seen[0] == [3.0] * 8 + [0.0], "what slot 1 has been given, not what it had"
        assert seen[3] == [2.0] * 4 + [3.0] * 5
        assert seen[2][:2] == [2.0] * 2
    finally:
        opened.engine.close()
