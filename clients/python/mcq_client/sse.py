"""Server-sent events out of a stream of bytes, after the HTML standard.

Lines end at CR, LF or CRLF and nowhere else. `str.splitlines` (and httpx's `iter_lines`) also
breaks at U+2028 and U+0085, which may stand inside a question's JSON.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event."""

    name: str
    data: str


class EventDecoder:
    """Turns chunks of bytes, cut anywhere, into events."""

    def __init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that this chunk completes."""
        self._rest += self._characters.decode(chunk)
        while match := _LINE_END.search(self._rest):
            if match.group() == "\r" and match.end() == len(self._rest):
                return  # the LF of this CR may be the next byte
            line, self._rest = self._rest[: match.start()], self._rest[match.end() :]
            event = self._take(line)
            if event is not None:
                yield event

    def _take(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")  # a comment has an empty field name
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
