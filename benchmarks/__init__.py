"""Every figure that the README and the docs claim, reproducible by one command each."""
