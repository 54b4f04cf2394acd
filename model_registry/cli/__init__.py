"""The command line, `python -m model_registry`: one module per group of commands."""
