"""Other processes that start in milliseconds: forked off a server that has imported everything."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "model_registry.locations",
        "model_registry.aliases",
        "model_registry.portable",
        "model_registry.publish",
        "model_registry.garbage",
        "model_registry.fetch",
        "model_registry.index.snapshots",
        "tests.model_registry.killed",
        "tests.model_registry.adapter_files",
        "model_registry.bases",
        "model_registry.merging",
        "model_registry.merge",
        "torch",
        "psycopg",
        "sqlalchemy.dialects.postgresql.psycopg",
    ]
)
