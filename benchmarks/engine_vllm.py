# pyright: basic
# torch, transformers and vLLM are typed too loosely for strict mode.
"""Our engine and vLLM on the same GPU in one run, taking turns on the common workload.

    python -m benchmarks.engine_vllm --vllm-site DIR --tokenizer DIR

vLLM lies in a folder of its own (`pip install --target DIR vllm`), since it pins other versions.
Both hold their weights at once; while one works the other waits. Prints one line for each case and
pass. Ours is opened first: vLLM's plan of its memory does not bear a neighbour that grows.
"""

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REGEX = (
    r"Câu hỏi: [^\n]{10,400}\nA\. [^\n]{1,120}\nB\. [^\n]{1,120}\nC\. [^\n]{1,120}"
    r"\nD\. [^\n]{1,120}\nĐáp án: [ABCD]"
)
CASES = ("base", "adapters", "one request, base", "one request, adapter", "adapters, structured")
_READY_S = 420


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.5b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--vllm-site", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as-peer", type=Path, help="internal: be the vLLM side, on this folder")
    args = parser.parse_args()
    if args.as_peer:
        _be_peer(args)
    elif not (args.vllm_site and args.tokenizer):
        parser.error("--vllm-site and --tokenizer are needed: see above")
    else:
        _take_turns(args)


def _take_turns(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench, adapters = _open(args)
        peer = start_peer(args, Path(folder))
        try:
            take_turns(args, bench, adapters, peer)
        finally:
            peer.kill()
            bench.engine.close()


def take_turns(args: argparse.Namespace, bench: Any, adapters: list[Any], peer: "Peer") -> None:
    """Measure each case on ours, then on vLLM, as often as asked."""
    from benchmarks.engine_throughput import run
    from benchmarks.engine_workload import requests

    def ours(case: str, seed: int) -> float:
        count = 1 if case.startswith("one") else args.requests
        work = requests(count, seed, [] if "base" in case else adapters)
        if "structured" in case:
            work = [bench.structure.constrain(request) for request in work]
        return run(bench, work)["tokens_per_s"]

    print("vLLM:", peer.answer(_READY_S), flush=True)
    for case in CASES:
        ours(case, 9)
    for number in range(args.passes):
        for case in CASES:
            rates = {"ours": ours(case, 11 + number)}
            peer.tell(json.dumps([case, 11 + number]))
            rates["vllm"] = float(peer.answer(240))
            _note(args.out, {"case": case, "pass": number} | rates)


def write_files(args: argparse.Namespace, work: Path) -> None:
    """A model without weights, and adapters in PEFT layout."""
    import torch

    from benchmarks.engine_loading import write_adapter
    from benchmarks.engine_workload import qwen2_config, random_adapter

    config = qwen2_config(args.size)
    (work / "model").mkdir()
    # Written by hand, since vLLM reads it with another version of transformers.
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
            "num_hidden_layers", "num_key_value_heads", "max_position_embeddings",
            "tie_word_embeddings")  # fmt: skip
    fields = {name: getattr(config, name) for name in kept}
    fields |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
    fields |= {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "torch_dtype": "bfloat16"}
    fields |= {"bos_token_id": 151_643, "eos_token_id": 151_645, "use_sliding_window": False}
    (work / "model" / "config.json").write_text(json.dumps(fields))
    for file in args.tokenizer.glob("*token*"):
        (work / "model" / file.name).write_bytes(file.read_bytes())
    shapes = _linear_shapes(config)
    for number in range(args.adapters):
        directory = work / f"a{number}"
        directory.mkdir()
        adapter = random_adapter(number % 4, args.rank, shapes, torch.bfloat16, pinned=False)
        write_adapter(adapter, directory)


def _note(out: Path | None, row: dict[str, Any]) -> None:
    ratio = row["ours"] / row["vllm"]
    print(
        f"{row['case']:24} ours {row['ours']:9.0f}  vLLM {row['vllm']:9.0f}  {ratio:5.2f} x",
        flush=True,
    )
    if out:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _open(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    import torch

    from benchmarks.engine_throughput import open_bench, workload_config
    from benchmarks.engine_workload import Structure, random_adapter

    config = workload_config(args.adapters, args.rank, args.requests)
    bench = open_bench(args.size, config, Structure())
    adapters = [
        random_adapter(i, args.rank, bench.shapes, torch.bfloat16, pinned=True)
        for i in range(args.adapters)
    ]
    return bench, adapters


def _linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every linear layer, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        f"model.layers.{number}.{name}": shape
        for number in range(config.num_hidden_layers)
        for name, shape in layer.items()
    }


def start_peer(args: argparse.Namespace, work: Path) -> "Peer":
    """vLLM in a process of its own; it says `> ready` when it is."""
    write_files(args, work)
    command = [sys.executable, __file__, "--as-peer", str(work), "--rank", str(args.rank)]
    command += ["--adapters", str(args.adapters), "--requests", str(args.requests)]
    environment = os.environ | {
        "PYTHONPATH": str(args.vllm_site),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # One process and the loopback address: a machine without a network has no other.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    return Peer(command, environment)


class Peer:
    """A process that is told a line and answers with one that begins with `> `."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def tell(self, line: str) -> None:
        """Say a line to it."""
        print(line, file=self._process.stdin, flush=True)

    def answer(self, seconds: float) -> str:
        """Its next answer; what else it prints is passed on."""
        end = time.time() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.time()))
            except queue.Empty:
                raise TimeoutError(f"the peer has not answered for {seconds:.0f} s") from None
            if not line:
                raise RuntimeError("the peer has ended")
            if line.startswith("> "):
                return line[2:].strip()
            print("vLLM:", line.rstrip(), flush=True)

    def kill(self) -> None:
        self._process.kill()


def _be_peer(args: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

    llm = LLM(
        model=str(args.as_peer / "model"),
        load_format="dummy",
        dtype="bfloat16",
        enable_lora=True,
        max_loras=args.adapters,
        max_cpu_loras=args.adapters,
        max_lora_rank=max(args.rank, 8),
        max_num_seqs=256,
        max_model_len=1024,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.4,
        seed=0,
    )
    fixed = SamplingParams(max_tokens=110, ignore_eos=True, temperature=0.0)
    structured = SamplingParams(
        max_tokens=110, temperature=0.0, structured_outputs=StructuredOutputsParams(regex=REGEX)
    )

    def rate(case: str, seed: int, count: int) -> float:
        rng = random.Random(1)
        numbers = [rng.randrange(args.adapters) for _ in range(count)]
        lora = [LoRARequest(f"a{i}", i + 1, str(args.as_peer / f"a{i}")) for i in numbers]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in _prompts(count, seed)]
        started = time.perf_counter()
        outputs = llm.generate(
            inputs,
            structured if "structured" in case else fixed,
            lora_request=None if "base" in case else lora,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - started
        return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds

    for case, count in (("base", 256), ("adapters", 64), ("adapters, structured", 32)):
        rate(case, 9, count)
    print("> ready", flush=True)
    for line in sys.stdin:
        case, seed = json.loads(line)
        print(f"> {rate(case, seed, 1 if case.startswith('one') else args.requests)}", flush=True)


def _prompts(count: int, seed: int) -> list[tuple[int, ...]]:
    """Those of `benchmarks.engine_workload`, which cannot be imported beside vLLM's packages."""
    prefix_rng, rng = random.Random(0), random.Random(seed + 1)
    prefix = [prefix_rng.randrange(1000, 151_000) for _ in range(120)]
    return [
        tuple(prefix + [rng.randrange(1000, 151_000) for _ in range(rng.randint(200, 360))])
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()
