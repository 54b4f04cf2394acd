"""The index: which versions, aliases and events there are. SQLite in a directory, or PostgreSQL."""
