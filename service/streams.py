"""Small tools over async generators: run several as one, and keep a silent one alive."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """What the streams yield, as it comes; the first error ends them all, and so does closing."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield item
        return
    queue: asyncio.Queue[_Item[T] | _End] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T]) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait(_Item(item))
        except Exception as caught:
            error = caught
        queue.put_nowait(_End(error))

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            match await queue.get():
                case _Item(value):
                    yield value
                case _End(error):
                    if error is not None:
                        raise error
                    running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def with_silences(stream: AsyncGenerator[T], after_s: float) -> AsyncGenerator[T | None]:
    """The stream's items, and None whenever it has said nothing for `after_s` seconds."""
    async with aclosing(stream):
        following = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                done, _ = await asyncio.wait([following], timeout=after_s)
                if not done:
                    yield None
                    continue
                item = following.result()
                if item is None:
                    return
                yield item
                following = asyncio.ensure_future(anext(stream, None))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
