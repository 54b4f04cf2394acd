"""A backend that says what a test wants said, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from service.backends.base import AdapterFiles, CompletionDelta, CompletionRequest, FinishReason
from service.backends.echo import EchoBackend


class ScriptedBackend(EchoBackend):
    """Candidates come from a list of texts; after the last one it goes on with the last."""

    def __init__(self, texts: Iterable[str], finish_reason: FinishReason = "stop") -> None:
        super().__init__()
        self._texts = list(texts)
        self._finish_reason: FinishReason = finish_reason
        self.requests: list[CompletionRequest] = []
        self.running = 0

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Yield one whole text for each candidate."""
        self.requests.append(request)
        self.running += 1
        try:
            for index in range(request.n):
                await asyncio.sleep(0)
                text = self._texts.pop(0) if len(self._texts) > 1 else self._texts[0]
                yield CompletionDelta(index, text, tokens=7, finish_reason=self._finish_reason)
        finally:
            self.running -= 1


class FailingBackend(EchoBackend):
    """Raises instead of completing."""

    def __init__(self, make_error: Callable[[], Exception]) -> None:
        super().__init__()
        self._make_error = make_error

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Fail after a first piece."""
        yield CompletionDelta(0, "Câu")
        raise self._make_error()


class GatedBackend(EchoBackend):
    """Loads adapters only when let; counts what happens to each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.loads: list[str] = []
        self.unloads: list[str] = []

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        """Wait for the gate."""
        self.loads.append(adapter.engine_name)
        await self.gate.wait()
        await super().load_adapter(adapter)

    async def unload_adapter(self, digest: str) -> None:
        """Remember it."""
        self.unloads.append(digest)
        await super().unload_adapter(digest)
