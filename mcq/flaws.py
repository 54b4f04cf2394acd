"""Which failed checks spoil a question whatever else speaks for it."""

from collections.abc import Iterable

BLOCKING_FLAWS = frozenset(
    {
        "foreign_script",
        "wrong_language",
        "leftovers",
        "all_or_none_of_the_above",
        "combined_options",
        "unfocused_stem",
        "options_overlap",
        "stem_gives_key",
    }
)
"""Failed checks that no probability makes up for."""


def is_blocked(failed: Iterable[str]) -> bool:
    """Whether one of these failed checks is a blocking one."""
    return not BLOCKING_FLAWS.isdisjoint(failed)
