"""Which KV slot holds which prompt, and where a new prompt finds its beginning computed already.

Reuse is by copying rows between slots: contexts are short, so a copy costs microseconds and every
sequence owns its slot alone. A prefix is shared only under the same salt, the adapter's digest:
keys and values of one adapter are wrong for every other.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

WORTH_WAITING = 16
"""A prompt waits for a beginning that another one is just computing if it saves this many
tokens."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """The slot whose first `tokens` rows begin a prompt; it may be the prompt's own slot."""

    source: int
    tokens: int


class KvSlots:
    """The slots and what is known of their content. Owned by the engine thread."""

    def __init__(self, slots: int, max_context: int, block: int = 1) -> None:
        self._block = block
        self._tokens = np.zeros((slots, max_context), dtype=np.int32)
        self._planned = np.zeros(slots, dtype=np.int64)
        self._filled = np.zeros(slots, dtype=np.int64)
        self._salt = [""] * slots
        self._free = list(range(slots))  # the one released longest ago first

    @property
    def free(self) -> int:
        """Slots that no sequence has."""
        return len(self._free)

    def find(self, prompt: Items[int], salt: str) -> Reuse | None:
        """The best beginning of `prompt`, or None when it is worth waiting for one.

        At least the last token is left to compute, since its logits are wanted.
        """
        candidates = [slot for slot, other in enumerate(self._salt) if other == salt]
        if not candidates:
            return Reuse(0, 0)
        length = len(prompt) - 1
        same = self._tokens[candidates, :length] == np.asarray(prompt[:length], dtype=np.int32)
        common = np.where(same.all(axis=1), length, np.argmin(same, axis=1)) if length else 0
        planned = np.minimum(common, self._planned[candidates])
        ready = np.minimum(common, self._filled[candidates])
        best = int(ready.argmax())
        if planned.max() >= ready[best] + WORTH_WAITING or (
            # Candidates of one request: all but the last token is being computed for the first.
            planned.max() == length > ready[best] + 1
        ):
            return None
        return Reuse(candidates[best], int(ready[best]) // self._block * self._block)

    def take(self, prompt: Items[int], salt: str, reuse: Reuse) -> int:
        """Give the slot idle longest to a prompt of which `reuse` will be copied there at once."""
        slot = self._free.pop(0)
        if reuse.tokens and reuse.source in self._free:
            self._free.remove(reuse.source)  # a beginning that is in use goes last
            self._free.append(reuse.source)
        self._tokens[slot, : len(prompt)] = prompt
        self._planned[slot], self._filled[slot] = len(prompt), reuse.tokens
        self._salt[slot] = salt
        return slot

    def fill(self, slot: int, computed: int) -> None:
        """Record that the first `computed` tokens of the sequence are, or will be, in the slot."""
        self._filled[slot] = min(computed, self._planned[slot])

    def release(self, slot: int, *, spoiled: bool = False) -> None:
        """Free a slot; its prompt stays to be reused unless it is `spoiled`."""
        if spoiled:
            self._filled[slot] = 0
        self._planned[slot] = self._filled[slot]
        if self._filled[slot]:
            self._free.append(slot)
        else:
            self._salt[slot] = ""
            self._free.insert(0, slot)

    def forget(self, salt: str) -> None:
        """Drop what was computed under a salt."""
        for slot, other in enumerate(self._salt):
            if other == salt and slot in self._free:
                self._filled[slot] = self._planned[slot] = 0
