# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Drives the engine from a test: submit, wait, collect; and the same through transformers."""

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM

from service.engine.adapter_files import HostAdapter, read_adapter
from service.engine.loading import OpenEngine
from service.engine.sequence import EngineRequest, Output, Ticket


@dataclass
class Heard:
    """What a request's listener has heard."""

    ticket: Ticket
    inbox: "queue.Queue[list[Output]]"
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    error: Exception | None = None
    scores: tuple[float, ...] = ()
    logprobs: dict[int, float] = field(default_factory=dict)

    def wait(self, timeout: float = 60) -> "Heard":
        """Until every candidate is over."""
        ended = len(self.finish)
        while ended < self.ticket.request.n:
            for output in self.inbox.get(timeout=timeout):
                self.tokens.setdefault(output.index, []).extend(output.tokens)
                self.logprobs[output.index] = self.logprobs.get(output.index, 0) + output.logprob
                if output.error is not None:
                    self.error = output.error
                if output.finish is not None:
                    self.finish[output.index] = output.finish
                    self.scores = output.scores
                ended += output.finish is not None or output.error is not None
        return self


def submit(opened: OpenEngine, request: EngineRequest) -> Heard:
    inbox: queue.Queue[list[Output]] = queue.Queue()
    return Heard(opened.engine.submit(request, inbox.put), inbox)


def generate(opened: OpenEngine, request: EngineRequest) -> list[int]:
    """The tokens of the only candidate."""
    heard = submit(opened, request).wait()
    assert heard.error is None
    return heard.tokens[0]


def read(opened: OpenEngine, directory: Path) -> HostAdapter:
    return read_adapter(directory.name, directory, opened.shapes, opened.adapter_dtype)


def transformers_greedy(
    base: Path, prompt: tuple[int, ...], tokens: int, adapter: Path | None = None
) -> list[int]:
    """What `generate` continues with, the adapter applied by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # go on to the full length
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        output = cast("Any", model).generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """A random prompt."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(10, 900, (length,), generator=generator).tolist())
