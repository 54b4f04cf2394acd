"""Every figure of the engine on one GPU, in one run.

    python -m benchmarks.engine_gpu --out results.jsonl

Groups of cases that need the same engine share a process with a time limit, so that no failure
costs another group, and each figure is printed and appended to the file as soon as it is known.
Start-up of the first group is cold (an empty cache of compiled kernels), that of the others warm.
`--around CMD` runs `CMD begin` before and `CMD end` after each group's measurements, for instance
to hold still what shares the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Group:
    """An engine, and the cases measured on it, the most important first."""

    cases: tuple[str, ...]
    adapters: int = 32
    rank: int = 16
    size: str = "1.5b"
    limit_s: int = 120


GROUPS = {
    "first": Group(
        ("throughput", "alone", "loading", "floor", "forms", "kernels", "disk"), limit_s=240
    ),
    "adapters-256": Group(("mixed", "forms"), adapters=256),
    "rank-128": Group(("mixed", "forms"), adapters=16, rank=128),
    "7b": Group(("mixed", "alone", "floor"), size="7b", limit_s=150),
    "again": Group(("throughput", "alone")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--size", help="other shapes for all groups, such as tiny")
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--cache", type=Path, help="folder of compiled kernels; default: a new one")
    parser.add_argument("--around", help="command called with `begin` and `end`")
    args = parser.parse_args()
    cache: Path = args.cache or Path(tempfile.mkdtemp(prefix="engine-gpu-"))
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    for name in args.groups:
        group = GROUPS[name]
        command = [sys.executable, "-m", "benchmarks.engine_gpu_cases", name]
        command += ["--size", args.size or group.size, "--adapters", str(group.adapters)]
        command += ["--rank", str(group.rank), "--cases", *group.cases]
        command += ["--requests", str(args.requests), "--out", str(args.out)]
        command += ["--weights", str(cache / "weights"), "--started", str(time.time())]
        command += ["--around", args.around] if args.around else []
        try:
            status = subprocess.run(
                command, env=os.environ | caches, timeout=group.limit_s, check=False
            ).returncode
            print(f"group {name} ended with {status}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"group {name} took more than {group.limit_s} s", flush=True)


if __name__ == "__main__":
    main()
