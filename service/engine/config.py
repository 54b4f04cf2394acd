"""The engine's sizes, fixed at start: everything on the device is allocated once from them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much of everything the engine holds at once."""

    max_sequences: int = 8
    """KV slots, which is also the largest decode batch."""
    max_context: int = 2048
    """Tokens of prompt and completion together that one slot holds."""
    prefill_tokens: int = 512
    """Prompt tokens computed in one step; streams wait at most this long for their next token."""
    block: int = 1
    """Prompts are cut, and beginnings reused, at multiples of this many tokens; with blocks of
    `service.engine.attention` a prompt is computed in the same products however it is cut."""
    prefill_patience_s: float = 0.0
    """How long a small prefill may wait for company while others decode; 0 starts it at once."""
    max_queue: int = 256
    """Waiting candidates beyond which requests are refused."""
    max_adapters: int = 8
    """Adapters usable in one batch (LoRA slots)."""
    max_ranks: int = 1024
    """Sum of the ranks of the adapters in slots; decides the memory they take."""
    host_adapter_bytes: int = 2**31
    """Host memory for adapters that wait outside slots."""
    max_grammar_states: int = 1024
    """Rows of the grammar table; a language takes about 150, a passage with foreign letters as
    many."""
    overlap: bool = False
    """Launch a step before reading the one before it; pays on a GPU."""
    int8_on_cpu: bool = False
    """Multiply 16-bit weights as 8-bit integers on a CPU: many times faster, nearly as exact."""
    compile_layers: bool = False
    """Compile decoder layers and the sampler with torch.compile."""
    max_drafts: int = 0
    """Tokens that are guessed and checked in a step of one sequence; pays where a step takes as
    long for a few rows as for one, without overlap."""
    draft_rows: int = 8
    """With guesses a decode step has at most so many rows."""
    jump_forward: bool = True
    """Feed several tokens at once where the grammar leaves no choice; pays without overlap."""
