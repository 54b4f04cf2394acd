"""The inference engine: one base model, many adapters, short structured outputs.

Start reading at `engine.py` (the loop); `docs/engine.md` has the picture. Nothing here knows HTTP,
the registry's index, or questions; the adapter to the service is `service/backends/engine.py`.
"""
