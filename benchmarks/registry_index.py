"""The registry at 10,000 adapters with 5 versions: `python -m benchmarks.registry_index [URL]`.

Without a URL the index is SQLite in a temporary directory; with `postgresql://…` that (empty)
database. `--postgres` starts a server of its own on loopback. Prints one JSON object; times in
milliseconds. Targets: resolve from the snapshot under 0.05 ms, list and resolve in the index under
20 ms at p95, publish of a 40 MB adapter under 1 s.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model_registry import AdapterManifest, BaseFingerprint, ModelRegistry
from model_registry.index.database import now
from model_registry.index.migrate import migrate
from model_registry.index.tables import adapter, alias, version

_BASE = BaseFingerprint(
    arch="sha256:" + "a" * 64, weights="sha256:" + "b" * 64, tokenizer="sha256:" + "c" * 64
)
_REPEATS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", help="an empty PostgreSQL database")
    parser.add_argument("--postgres", action="store_true", help="start PostgreSQL for this run")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=5)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        if options.postgres:
            from tests.model_registry.servers import run_postgres

            with run_postgres() as url:
                print(json.dumps(measure(url, scratch, options.adapters, options.versions)))
        else:
            print(json.dumps(measure(options.url, scratch, options.adapters, options.versions)))
    finally:
        shutil.rmtree(scratch)


def measure(url: str | None, scratch: Path, adapters: int, versions: int) -> dict[str, Any]:
    """Fill the index, then ask it."""
    if url is None:
        registry = ModelRegistry.open(scratch / "registry", cache_dir=scratch / "cache")
    else:
        migrate(url)
        (scratch / "store").mkdir()
        registry = ModelRegistry.open(url, str(scratch / "store"), cache_dir=scratch / "cache")
    with registry:
        fill(registry, adapters, versions)
        chance = random.Random(0)

        def name() -> str:
            return f"adapter-{chance.randrange(adapters):05d}"

        started = time.perf_counter()
        snapshot = registry.snapshot()
        first = time.perf_counter() - started
        return {
            "index": "sqlite" if url is None else "postgresql",
            "adapters": adapters,
            "versions": adapters * versions,
            "index_resolve_alias": _times(lambda: registry.resolve(f"{name()}@production")),
            "index_resolve_number": _times(lambda: registry.resolve(f"{name()}/3")),
            "index_resolve_digest": _times(
                lambda: registry.resolve(snapshot.versions[name()][2].digest)
            ),
            "index_list_page_of_100": _times(
                lambda: registry.list_adapters(limit=100, after=name())
            ),
            "index_list_versions": _times(lambda: registry.list_versions(name())),
            "snapshot_resolve_first_time": _times(lambda: snapshot.resolve(f"{name()}@production")),
            "snapshot_resolve": _times(lambda: snapshot.resolve("adapter-00001@production")),
            "snapshot_read_whole_ms": round(first * 1e3),
            "snapshot_look_without_change": _times(lambda: registry.snapshot(snapshot)),
            "alias_move": _times(
                lambda: registry.set_alias("adapter-00001", "canary", chance.randrange(1, 6))
            ),
            "publish_40_mb_ms": round(_publish(registry, scratch) * 1e3),
        }


def fill(registry: ModelRegistry, adapters: int, versions: int) -> None:
    """Rows as `publish` writes them, without the files."""
    manifest = AdapterManifest.model_validate(
        {
            "files": {"adapter_model.safetensors": {"sha256": "0" * 64, "size": 1}},
            "adapter": {
                "r": 16, "lora_alpha": 32, "modules": 196, "max_rank": 16,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"],
            },
            "base": _BASE.model_dump(),
            "precision": "bf16",
            "prompt_format": "chat/1",
            "evaluation": {"valid": {"share": 0.95, "count": 190, "of": 200}},
            "training": {"learning_rate": 2e-4, "epochs": 3, "seed": 3407},
        }
    )  # fmt: skip
    text, moment = manifest.canonical().decode(), now()
    with registry.database.write("benchmark") as transaction:
        names = [f"adapter-{i:05d}" for i in range(adapters)]
        rows = [{"name": n, "description": "", "created_at": moment} for n in names]
        transaction.connection.execute(sa.insert(adapter), rows)
        rows = [
            {
                "name": n,
                "number": number,
                "digest": f"sha256:{index * versions + number:064x}",
                "manifest": text,
                "description": "",
                "status": "ready",
                "status_at": moment,
                "created_at": moment,
                "created_by": "benchmark",
                "changed": transaction.revision,
            }
            for index, n in enumerate(names)
            for number in range(1, versions + 1)
        ]
        for start in range(0, len(rows), 5000):
            transaction.connection.execute(sa.insert(version), rows[start : start + 5000])
        rows = [
            {
                "name": n,
                "alias": "production",
                "number": versions,
                "revision": 1,
                "updated_at": moment,
                "changed": transaction.revision,
            }
            for n in names
        ]
        transaction.connection.execute(sa.insert(alias), rows)


def _publish(registry: ModelRegistry, scratch: Path) -> float:
    """A rank-64 adapter of 40 MB, from files to a visible version."""
    directory = scratch / "adapter"
    directory.mkdir()
    rank, width, header, position = 64, 1536, {}, 0
    chunks: list[bytes] = []
    chance = random.Random(1)
    layer = 0
    while position < 40e6:
        for side, shape in (("A", [rank, width]), ("B", [width, rank])):
            size = 2 * rank * width
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
            offsets = [position, position + size]
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
            chunks.append(chance.randbytes(size))
            position += size
        layer += 1
    raw = json.dumps(header).encode()
    weights = len(raw).to_bytes(8, "little") + raw + b"".join(chunks)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    started = time.perf_counter()
    registry.publish("large", directory, prompt_format="chat/1", base=_BASE, precision="bf16")
    return time.perf_counter() - started


def _times(call: Callable[[], object]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    call()
    times: list[float] = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    cuts = statistics.quantiles(times, n=20)
    return {"p50": round(statistics.median(times), 4), "p95": round(cuts[18], 4)}


if __name__ == "__main__":
    main()
