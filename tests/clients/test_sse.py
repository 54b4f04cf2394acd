"""Events come out whole however the bytes are cut."""

import pytest

from mcq_client.sse import Event, EventDecoder

STREAM = (
    ": keep-alive\r\n\r\n"
    'event: question\r\ndata: {"question": "Thủ đô\u2028 là gì?\x85"}\r\n\r\n'
    "event:done\ndata:first\ndata: second\n\n"
    "data: unnamed\r\r"
    "event: nothing\n\n"
    "event: cut\ndata: short"
).encode()

EVENTS = [
    Event("question", '{"question": "Thủ đô\u2028 là gì?\x85"}'),
    Event("done", "first\nsecond"),
    Event("message", "unnamed"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_events_do_not_depend_on_how_the_bytes_are_cut(size: int) -> None:
    decoder = EventDecoder()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]

    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


def test_an_event_is_handed_out_as_soon_as_its_blank_line_has_come() -> None:
    decoder = EventDecoder()

    assert list(decoder.feed(b"event: question\ndata: {}\n")) == []
    assert list(decoder.feed(b"\n")) == [Event("question", "{}")]
