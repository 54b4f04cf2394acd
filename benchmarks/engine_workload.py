# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""The common serving workload: shapes, random weights and adapters, prompts; all from a seed.

1,024 requests of 120 shared and 200-360 own prompt tokens and 110 output tokens, over adapters
drawn uniformly. Speed does not depend on what the weights are, so they are random.
"""

import random
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from mcq.grammar import CompletionGrammar, alphabet
from mcq.prompts import prompt_format
from service.engine.adapter_files import HostAdapter, empty_adapter
from service.engine.device_grammar import GrammarCompiler, grammar_key
from service.engine.sequence import EngineRequest

VOCAB_SIZE = 151_936
OUTPUT_TOKENS = 110

_SIZES = {
    "tiny": (256, 512, 4, 2, 2),
    "0.5b": (896, 4864, 14, 24, 2),
    "1.5b": (1536, 8960, 12, 28, 2),
    "7b": (3584, 18944, 28, 28, 4),
}


def qwen2_config(size: str) -> Qwen2Config:
    """The shapes of Qwen2.5 of that size."""
    hidden, inner, heads, layers, kv_heads = _SIZES[size]
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=size != "7b",
    )


def random_model(size: str, device: torch.device, dtype: torch.dtype = torch.bfloat16):
    """A model of that size, written nowhere."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(qwen2_config(size), dtype=dtype)


def random_adapter(
    seed: int, rank: int, shapes: dict[str, tuple[int, int]], dtype: torch.dtype, *, pinned: bool
) -> HostAdapter:
    """An adapter on all linear layers, as `read_adapter` leaves it in host memory."""
    sizes = {name: (rank, *shape) for name, shape in shapes.items()}
    adapter = empty_adapter(f"random-{seed}", sizes, dtype, pinned=pinned)
    generator = torch.Generator().manual_seed(seed)
    adapter.flat.copy_(torch.randn(len(adapter.flat), generator=generator) * 0.01)
    return adapter


def prompts(count: int, seed: int, shared: int = 120, own: tuple[int, int] = (200, 360)):
    """Prompts as token ids: the same first `shared` tokens, then a random number of own ones."""
    prefix_rng, rng = random.Random(0), random.Random(seed + 1)
    prefix = [prefix_rng.randrange(1000, 151_000) for _ in range(shared)]
    return [
        tuple(prefix + [rng.randrange(1000, 151_000) for _ in range(rng.randint(*own))])
        for _ in range(count)
    ]


def synthetic_vocabulary() -> list[bytes | None]:
    """All bytes, then random pieces of Vietnamese: as varied as a real vocabulary."""
    rng = random.Random(0)
    letters = sorted(alphabet("vi"))
    tokens: list[bytes | None] = [bytes([byte]) for byte in range(256)]
    while len(tokens) < VOCAB_SIZE - 300:
        piece = "".join(rng.choices(letters, k=rng.randint(1, 8))).encode()
        tokens.append(piece[rng.choice((0, 0, 0, 1)) :] or b" ")
    return tokens + [None] * (VOCAB_SIZE - len(tokens))


class Structure:
    """The Vietnamese question grammar over the synthetic vocabulary."""

    def __init__(self) -> None:
        self.compiler = GrammarCompiler(synthetic_vocabulary())
        grammar: CompletionGrammar = prompt_format("chat/1").grammar("vi")
        self.key = grammar_key(grammar, frozenset())
        self.table = self.compiler.compile(self.key)

    def constrain(self, request: EngineRequest) -> EngineRequest:
        """The same request with structured output."""
        return replace(request, grammar=self.key, table=self.table)


def requests(count: int, seed: int, adapters: list[HostAdapter]) -> list[EngineRequest]:
    """Requests over adapters drawn uniformly, or over the base if there are none."""
    rng = random.Random(1)
    result = []
    for prompt in prompts(count, seed):
        request = EngineRequest(prompt=prompt, max_tokens=OUTPUT_TOKENS)
        if adapters:
            chosen = rng.choice(adapters)
            request = replace(request, digest=chosen.name, adapter=chosen)
        result.append(request)
    return result
