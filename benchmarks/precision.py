# pyright: basic
# torch, transformers and peft are typed too loosely for strict mode.
"""How far the bundled adapter's next tokens move when its model is computed in fewer bits.

    python -m benchmarks.precision [--answers 8]

Along answers that were read (benchmarks/data/read_blind.jsonl), against 32 bits throughout: bf16,
fp16, and a residual stream in 32 bits between linear layers that take and give bf16. Prints the
mean KL divergence and the share of tokens of which the most likely one is the same. Takes some
minutes on a CPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcq.prompts import CHAT_TEMPLATE_ARGUMENTS, prompt_format
from model_registry.bases import prepare_base

BASE, ADAPTER = "embedded:qwen2.5-coder-1.5b-instruct", "adapters/mcq-vi"
_DATA = Path("benchmarks/data")
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Row = tuple[list[int], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=8)
    args = parser.parse_args()
    base = prepare_base(BASE).path
    rows = answers(AutoTokenizer.from_pretrained(base), args.answers)
    model = load(base, torch.float32)
    exact = log_probabilities(model, rows)
    print(f"{len(exact)} tokens", flush=True)
    round_linears(model)
    show("linear layers in bf16, residual stream in 32 bits", model, rows, exact)
    del model
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        show(name, load(base, dtype), rows, exact)


def load(base: Path, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, ADAPTER).eval()


def answers(tokenizer: Any, count: int) -> list[Row]:
    """Prompts and completions of Vietnamese questions that the adapter wrote on a CPU."""
    contexts = {row["id"]: row["context"] for row in _lines("held_out.jsonl")}
    form = prompt_format("chat/3")
    rows: list[Row] = []
    for item in _lines("read_blind.jsonl"):
        way = item["adapter"], item["qualities"], item["language"]
        if way != ("mcq-vi/2", ["fast"], "vi") or len(rows) == count:
            continue
        prompt = form.render(contexts[item["id"]], "vi", []).to_text(
            lambda turns: tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGUMENTS
            )
        )
        asked = item["question"]
        right = asked["options"][asked["key"]]
        wrong = [text for letter, text in asked["options"].items() if letter != asked["key"]]
        lines = [f"Câu hỏi: {asked['question']}", f"Đúng: {right}", *(f"Sai: {w}" for w in wrong)]
        texts = (prompt, "\n".join(lines))
        rows.append(tuple(tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts))
    return rows


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_DATA / name).read_text("utf-8").splitlines()]


@torch.inference_mode()
def log_probabilities(model: Any, rows: list[Row]) -> torch.Tensor:
    """Of every completion token's place: [tokens, vocabulary]."""
    return torch.cat(
        [
            model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].float()
            for prompt, said in rows
        ]
    ).log_softmax(-1)


def round_linears(model: Any) -> None:
    """Have the base's linear layers, adapters included, take and give bf16."""
    for name, module in model.named_modules():
        if name.endswith(_LINEAR):
            module.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]), *inputs[1:]))
            module.register_forward_hook(lambda *call: _rounded(call[2]))


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().float()


def show(name: str, model: Any, rows: list[Row], exact: torch.Tensor) -> None:
    ours = log_probabilities(model, rows)
    divergence = (exact.exp() * (exact - ours)).sum(-1).mean()
    same = (ours.argmax(-1) == exact.argmax(-1)).float().mean()
    print(f"{name:52} KL {divergence:.5f}, same most likely token {same:.1%}", flush=True)


if __name__ == "__main__":
    main()
