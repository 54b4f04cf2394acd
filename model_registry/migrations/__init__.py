"""Changes of the index's schema over time; run by `python -m model_registry migrate`."""
