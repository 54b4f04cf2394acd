"""Thin HTTP handlers: they translate, and decide nothing."""
