"""What is asked of whom: a request that was found in order, before anything is started."""

import secrets
import time
from dataclasses import dataclass, field

from mcq.context import check_context
from mcq.language import detect_language
from mcq.prompts import PromptFormat, prompt_format
from mcq.verdict import VERDICT_FORMAT
from model_registry.adapter import AdapterRef, AdapterVersion
from model_registry.errors import RegistryError
from model_registry.follow import RegistryFollower
from model_registry.variants import MergedVariant
from service.adapters import AdapterCache
from service.backends.base import Backend, Sampling
from service.config import ServiceConfig
from service.errors import ContextTooLongError, TooManyQuestionsError, UnknownVariantError
from service.merged import MergedModels
from service.schema import AdapterUsed, GenerateRequest, GenerateStart, Quality

BARE_BASE = "base"
"""What a request names to get no adapter."""


@dataclass(frozen=True)
class Plan:
    """A request in order, with everything resolved."""

    start: GenerateStart
    request: GenerateRequest
    context: str
    version: AdapterVersion | None
    verifier: AdapterVersion | None
    """What judges the candidates; the bare base if there is none."""
    variant: MergedVariant | None
    """The merged weights that answer instead of adapter and base."""
    prompt_format: PromptFormat
    seed: int
    candidates_per_question: int
    deadline: float
    """On the clock of `time.monotonic()`."""
    began: float = field(default_factory=time.monotonic)

    @property
    def max_candidates(self) -> int:
        """How many completions may be drawn in all."""
        return self.request.n * self.candidates_per_question

    @property
    def rotations(self) -> int:
        """In how many orders of its options a candidate is read; on the ruler two tell right from
        wrong as well as four do, at half the cost (docs/quality.md)."""
        return 4 if self.request.quality == "best" else 2

    @property
    def is_verified(self) -> bool:
        """Whether candidates are judged by the reader before they go out."""
        return self.request.quality != "fast"


class Planner:
    """Checks requests; every refusal that can come early comes here."""

    def __init__(
        self,
        backend: Backend,
        adapters: AdapterCache,
        merged: MergedModels,
        follower: RegistryFollower,
        config: ServiceConfig,
    ) -> None:
        self._backend = backend
        self._adapters = adapters
        self._merged = merged
        self._follower = follower
        self._config = config

    def plan(self, request: GenerateRequest) -> Plan:
        """Check a request without starting anything.

        Raises:
            InvalidContextError, ContextTooLongError, TooManyQuestionsError, UnknownVariantError,
            and what resolving and checking the adapter raises.
        """
        config = self._config
        if request.n > config.max_questions:
            raise TooManyQuestionsError(request.n, config.max_questions)
        context = check_context(
            request.context, min_words=config.min_context_words, max_words=config.max_context_words
        )
        version = self._version(request.adapter)
        variant = self._variant(request, version)
        start = GenerateStart(
            id=f"gen_{secrets.token_hex(8)}",
            base_model=self._backend.info.base_model,
            adapter=version
            and AdapterUsed(name=version.name, version=version.number, digest=version.digest),
            variant=request.variant,
            variant_digest=variant and variant.digest,
            language=detect_language(context) if request.language == "auto" else request.language,
        )
        plan = Plan(
            start=start,
            request=request,
            context=context,
            version=version,
            verifier=None if request.quality == "fast" else self._verifier(),
            variant=variant,
            prompt_format=prompt_format(
                version.manifest.prompt_format if version else self._base_format
            ),
            seed=secrets.randbits(48) if request.seed is None else request.seed,
            candidates_per_question=self._candidates(request.quality),
            deadline=time.monotonic() + config.request_timeout_s,
        )
        self._check_length(plan)
        return plan

    def _version(self, name: str | None) -> AdapterVersion | None:
        name = name if name is not None else self._config.default_adapter
        if name is None or name == BARE_BASE:
            return None
        return self._follower.snapshot.resolve(name)

    def _verifier(self) -> AdapterVersion | None:
        """The configured verifier, if the registry has it and it was made for this base."""
        name, info = self._config.verifier, self._backend.info
        if name is None:
            return None
        version = self._follower.snapshot.known(AdapterRef.parse(name))
        if version is None or version.manifest.prompt_format != VERDICT_FORMAT:
            return None
        if info.fingerprint is not None:
            try:
                version.check_base(info.fingerprint, info.precision)
            except RegistryError:
                return None
        return version

    def _variant(
        self, request: GenerateRequest, version: AdapterVersion | None
    ) -> MergedVariant | None:
        """The merged weights that were asked for; else the adapter has to fit the loaded base."""
        if request.variant == "adapter":
            if version is not None:
                self._adapters.check(version)
            return None
        if version is None:
            raise UnknownVariantError(BARE_BASE, request.variant, ("adapter",))
        return self._merged.find(version)

    @property
    def _base_format(self) -> str:
        return "chat/1" if self._backend.info.supports_chat else "instruct-vi/1"

    def _candidates(self, quality: Quality) -> int:
        match quality:
            case "fast":
                return self._config.candidates_per_question
            case "balanced":
                return self._config.candidates_balanced
            case "best":
                return self._config.candidates_best

    def _check_length(self, plan: Plan) -> None:
        prompt = plan.prompt_format.render(plan.context, plan.start.language, plan.request.avoid)
        limit = self._backend.info.max_context_tokens - Sampling().max_tokens
        tokens = self._backend.count_tokens(prompt)
        if tokens > limit:
            raise ContextTooLongError(tokens, limit)
