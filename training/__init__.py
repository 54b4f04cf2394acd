"""Data set in, evaluated and registered adapter out."""
