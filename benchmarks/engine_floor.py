# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""What the hardware allows: bytes and operations counted from the shapes, over the data sheet's
rates.

A decode step must read every weight, the keys and values of its rows and the adapters in use, once;
a prompt token must go through every weight. No version of the engine gets below these times.
"""

from dataclasses import dataclass
from typing import Any

H100_BYTES_PER_S = 3.35e12
H100_FLOPS = 989e12
"""bf16, dense."""
_BYTES = 2


@dataclass(frozen=True)
class Floor:
    """The least times of a model with these shapes."""

    config: Any
    """Of a Qwen2 model; transformers does not say which of its fields are set."""
    bytes_per_s: float = H100_BYTES_PER_S
    flops: float = H100_FLOPS

    @property
    def layer_weights(self) -> int:
        """Weights of all linear layers below the head."""
        c, head = self.config, self.config.hidden_size // self.config.num_attention_heads
        attention = 2 * c.hidden_size + 2 * c.num_key_value_heads * head
        return c.num_hidden_layers * c.hidden_size * (attention + 3 * c.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Weights of the product with the vocabulary."""
        return self.config.vocab_size * self.config.hidden_size

    def adapter_weights(self, rank: int) -> int:
        """Weights of an adapter on all linear layers."""
        c, head = self.config, self.config.hidden_size // self.config.num_attention_heads
        hidden, keys = c.hidden_size, c.num_key_value_heads * head
        sides = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + c.intermediate_size)
        return c.num_hidden_layers * rank * sides

    def decode_s(self, rows: int, context: int, adapters: int = 0, rank: int = 0) -> float:
        """A step of `rows` sequences that have `context` tokens each: bytes over bandwidth."""
        c, head = self.config, self.config.hidden_size // self.config.num_attention_heads
        per_token = c.num_hidden_layers * 2 * c.num_key_value_heads * head
        weights = self.layer_weights + self.head_weights + adapters * self.adapter_weights(rank)
        return _BYTES * (weights + rows * context * per_token) / self.bytes_per_s

    def prefill_s(self, tokens: int, context: int, rank: int = 0) -> float:
        """Prompt tokens that look back at `context` tokens on average: operations over rate."""
        c = self.config
        attention = c.num_hidden_layers * 2 * context * c.hidden_size
        weights = self.layer_weights + self.adapter_weights(rank)
        return 2 * tokens * (weights + attention) / self.flops
