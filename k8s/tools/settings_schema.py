"""Write the service's settings into the chart's schema, so that `helm install` knows them.

python k8s/tools/settings_schema.py        run it after a change of service/config.py
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "k8s" / "chart" / "values.schema.json"

# What the pod's own shape decides: its port, its volumes, its time to stop.
CHARTS_OWN = frozenset({"host", "port", "cache_dir", "drain_timeout_s"})


def setting_schemas() -> dict[str, dict[str, Any]]:
    """What each setting may be, without defaults: those belong to the service."""
    sys.path.insert(0, str(ROOT))
    from service.config import ServiceConfig

    properties = ServiceConfig.model_json_schema()["properties"]
    return {
        name: {key: value for key, value in schema.items() if key not in ("default", "title")}
        for name, schema in sorted(properties.items())
        if name not in CHARTS_OWN
    }


def with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema with today's settings in it."""
    settings = setting_schemas()
    properties = schema["properties"]
    properties["settings"]["properties"] = settings
    properties["settingsFromSecret"]["propertyNames"] = {"enum": list(settings)}
    return schema


def main() -> int:
    """Rewrite the file."""
    schema = with_settings(json.loads(SCHEMA.read_text(encoding="utf-8")))
    text = json.dumps(schema, indent=2, ensure_ascii=False)
    SCHEMA.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
