"""The inference engine: many adapters in one batch over one base model."""
