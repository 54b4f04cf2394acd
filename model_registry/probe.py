# pyright: basic
# torch, transformers and peft are typed too loosely for strict checking.
"""Whether an adapter does anything: the largest change of a logit when it is switched on.

An engine that finds no module for a tensor ignores it in silence and answers as the base does; this
is the check that PEFT at least found all of them a place where they act.
"""

import gc
from pathlib import Path
from typing import Any

from model_registry.errors import InvalidAdapterError

_TOKENS = 48


def probe_logit_change(base_directory: Path, adapter_directory: Path) -> float:
    """Load both on the CPU and compare the logits of a fixed row of tokens.

    Raises:
        InvalidAdapterError: `no_effect`, or `not_finite`.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        base_directory, dtype="auto", local_files_only=True
    )
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(7, 7 + 101 * _TOKENS, 101)[None] % size
    adapted = PeftModel.from_pretrained(model, str(adapter_directory)).eval()
    with torch.inference_mode():
        changed = adapted(input_ids=ids).logits.float()
        with adapted.disable_adapter():
            plain = adapted(input_ids=ids).logits.float()
    largest = float((changed - plain).abs().max())
    del adapted, model
    gc.collect()
    if not torch.isfinite(changed).all():
        raise InvalidAdapterError("not_finite", "with the adapter, logits are not finite")
    if largest == 0:
        raise InvalidAdapterError("no_effect", "with the adapter, every logit stays the same")
    return largest
