# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""The oracle itself: what transformers and PEFT give directly, through the backend."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcq.grammar import Choice, CompletionGrammar, Field, Text
from mcq.prompts import Message, Prompt, prompt_format
from model_registry.bases import prepare_base
from model_registry.bases.tiny import write_tiny_model
from service.backends.base import (
    AdapterFiles,
    CompletionDelta,
    CompletionRequest,
    Sampling,
    ScoreRequest,
)
from service.backends.reference import ReferenceBackend
from service.errors import AdapterRejectedError, BackendError, ContextTooLongError

# PEFT asks transformers under an old name whether activations are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPT = Prompt(messages=(Message("user", "Sông Hồng chảy qua miền Bắc Việt Nam."),))
PLAIN = Prompt(plain="### Ngữ cảnh: nước sôi ở một trăm độ.\n\n### Phản hồi:\n")
GRAMMAR = prompt_format("chat/1").grammar("vi")


def write_adapter(base: Path, directory: Path, seed: int, rank: int = 4, **options) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", **options)
        peft = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        peft.save_pretrained(directory)
    return directory


def files(directory: Path, letter: str) -> AdapterFiles:
    return AdapterFiles(f"{directory.name}-v1-{letter * 12}", f"sha256:{letter * 64}", directory)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("reference") / "tiny", "qwen2")


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[AdapterFiles]:
    return [
        files(write_adapter(base, base.parent / "first", 1), "a"),
        files(write_adapter(base, base.parent / "second", 2, rank=8, use_rslora=True), "b"),
    ]


@pytest.fixture
async def backend(base: Path, tmp_path: Path) -> AsyncGenerator[ReferenceBackend]:
    opened = ReferenceBackend.open(prepare_base(str(base), tmp_path), "fp32", "cpu")
    yield opened
    await opened.close()


def greedy(prompt: Prompt = PROMPT, tokens: int = 24, **options) -> CompletionRequest:
    return CompletionRequest(prompt, Sampling(max_tokens=tokens), **options)


async def collect(backend: ReferenceBackend, request: CompletionRequest) -> list[CompletionDelta]:
    return [delta async for delta in backend.complete(request)]


async def texts(backend: ReferenceBackend, request: CompletionRequest) -> list[str]:
    result = [""] * request.n
    for delta in await collect(backend, request):
        result[delta.index] += delta.text
    return result


def directly(base: Path, adapter: AdapterFiles | None, tokens: int = 24) -> str:
    """The same greedy completion without any of our code."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.directory)
    ids = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in PROMPT.messages],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    # The rows that pad the matrix have no text; a random model would choose them now and then.
    padding = list(range(len(tokenizer), model.config.vocab_size))
    output = model.generate(**ids, do_sample=False, max_new_tokens=tokens, suppress_tokens=padding)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


async def test_it_says_what_transformers_and_peft_say(
    backend: ReferenceBackend, base: Path, adapters: list[AdapterFiles]
) -> None:
    for adapter in (None, *adapters, None):
        assert await texts(backend, greedy(adapter=adapter)) == [directly(base, adapter)]


async def test_concurrent_requests_for_different_adapters_answer_as_each_does_alone(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    choices = [None, *adapters]
    alone = [await texts(backend, greedy(adapter=adapter)) for adapter in choices]
    assert len({text for (text,) in alone}) == 3
    together = await asyncio.gather(
        *(texts(backend, greedy(adapter=adapter)) for adapter in choices * 4)
    )
    assert together == alone * 4


async def test_a_grammar_makes_every_completion_parse(backend: ReferenceBackend) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3, max_tokens=1500)
    request = CompletionRequest(PROMPT, sampling, grammar=GRAMMAR, n=2)
    for text in await texts(backend, request):
        assert GRAMMAR.accepts(text), text
    deltas = await collect(backend, request)
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop", "stop"]


async def test_a_field_is_closed_before_it_is_too_long(backend: ReferenceBackend) -> None:
    short = CompletionGrammar(
        "vi", (Text("X: "), Field("x", 60), Text("\nY: "), Choice("y", ("A", "B")))
    )
    request = CompletionRequest(
        PROMPT, Sampling(temperature=1.0, seed=1, max_tokens=200), grammar=short, n=4
    )
    for text in await texts(backend, request):
        assert short.accepts(text), text


async def test_characters_of_the_passage_are_admitted_and_no_others(
    backend: ReferenceBackend,
) -> None:
    grammar = CompletionGrammar("en", (Text("X: "), Field("x", 90), Text("\nY")))
    sampling = Sampling(temperature=2.0, seed=5, max_tokens=200)
    plain = CompletionRequest(PROMPT, sampling, grammar=grammar, n=3)
    admitted = CompletionRequest(
        PROMPT, sampling, grammar=grammar, extra_characters=frozenset("ôồộữắ"), n=3
    )
    assert not set("".join(await texts(backend, plain))) & set("ôồộữắ")
    assert set("".join(await texts(backend, admitted))) & set("ôồộữắ")


async def test_a_seed_fixes_each_candidate_and_candidates_differ(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    def sampled(seed: int | None, n: int) -> CompletionRequest:
        return CompletionRequest(PROMPT, Sampling(1.0, 0.9, seed, 16), adapters[0], n=n)

    three = await texts(backend, sampled(7, 3))
    assert len(set(three)) == 3
    busy = await asyncio.gather(*(texts(backend, sampled(seed, 3)) for seed in (8, 7, None)))
    assert busy[1] == three
    assert await texts(backend, sampled(7, 1)) == three[:1]
    assert await texts(backend, sampled(8, 1)) != three[:1]


async def test_several_candidates_equal_one_at_a_time(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    one = await texts(backend, greedy(adapter=adapters[1]))
    assert await texts(backend, greedy(adapter=adapters[1], n=3)) == one * 3


async def test_tokens_stream_and_are_counted(backend: ReferenceBackend) -> None:
    deltas = await collect(backend, greedy(PLAIN, tokens=30))
    assert len(deltas) > 5
    assert sum(delta.tokens for delta in deltas) == 30
    assert [delta.prompt_tokens for delta in deltas] == [backend.count_tokens(PLAIN)] + [0] * (
        len(deltas) - 1
    )
    assert deltas[-1].finish_reason == "length"


async def test_no_piece_of_the_stream_ends_inside_a_character(backend: ReferenceBackend) -> None:
    request = CompletionRequest(
        PROMPT, Sampling(temperature=1.0, seed=2, max_tokens=100), grammar=GRAMMAR
    )
    deltas = await collect(backend, request)
    assert all("\ufffd" not in delta.text for delta in deltas[:-1])


async def test_closing_the_stream_frees_the_backend(backend: ReferenceBackend) -> None:
    stream = backend.complete(greedy(tokens=3000))
    await anext(stream)
    await stream.aclose()
    started = time.monotonic()
    await texts(backend, greedy(tokens=2))
    assert time.monotonic() - started < 2


async def test_a_deadline_ends_every_candidate(backend: ReferenceBackend) -> None:
    request = CompletionRequest(
        PROMPT, Sampling(max_tokens=3000), n=2, deadline=time.monotonic() + 0.3
    )
    deltas = await collect(backend, request)
    ends = [(d.index, d.finish_reason) for d in deltas if d.finish_reason]
    assert ends == [(0, "cancelled"), (1, "cancelled")]


async def test_a_prompt_beyond_the_window_is_refused(backend: ReferenceBackend) -> None:
    long = Prompt(plain="nước " * 5000)
    with pytest.raises(ContextTooLongError):
        await collect(backend, greedy(long))


async def test_scores_are_the_models_own(
    backend: ReferenceBackend, base: Path, adapters: list[AdapterFiles]
) -> None:
    requests = [
        ScoreRequest(PLAIN, ("A", "B", "C", "D"), "Đáp án: ", adapter)
        for adapter in (None, *adapters)
    ]
    scores = await backend.score(requests)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for request, row in zip(requests, scores, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base)
        if request.adapter is not None:
            model = PeftModel.from_pretrained(model, request.adapter.directory)
        prompt = tokenizer(PLAIN.plain + "Đáp án:", return_tensors="pt").input_ids
        letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
        with torch.inference_mode():
            logits = model(prompt).logits[0, -1]
        expected = torch.log_softmax(logits[letters], -1)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


async def test_choices_that_begin_alike_are_refused(backend: ReferenceBackend) -> None:
    with pytest.raises(ValueError, match="first token"):
        await backend.score([ScoreRequest(PLAIN, ("nước A", "nước B", "X"))])


async def test_an_unloaded_adapter_comes_back_when_it_is_asked_for(
    backend: ReferenceBackend, adapters: list[AdapterFiles]
) -> None:
    before = await texts(backend, greedy(adapter=adapters[0]))
    await backend.load_adapter(adapters[0])
    await backend.unload_adapter(adapters[0].digest)
    await backend.unload_adapter("sha256:unknown")
    assert await texts(backend, greedy(adapter=adapters[0])) == before


Damage = Callable[[Path], None]


def without_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, directory / "adapter_model.safetensors")


def with_a_foreign_tensor(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(4, 64)
    save_file(tensors, directory / "adapter_model.safetensors")


def without_effect(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    zeroed = {name: t * ("lora_A" in name) for name, t in tensors.items()}
    save_file(zeroed, directory / "adapter_model.safetensors")


def full_of_nan(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file(
        {n: t * float("nan") for n, t in tensors.items()}, directory / "adapter_model.safetensors"
    )


def of_another_shape(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file(
        {**tensors, name: tensors[name][:, :-1].clone()}, directory / "adapter_model.safetensors"
    )


def for_other_modules(directory: Path) -> None:
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["c_attn"]})
    )


def no_safetensors(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 a pickle")


@pytest.mark.parametrize(
    "damage",
    [
        without_a_tensor,
        with_a_foreign_tensor,
        without_effect,
        full_of_nan,
        of_another_shape,
        for_other_modules,
        no_safetensors,
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_an_adapter_that_does_not_fit_is_refused_and_leaves_no_trace(
    backend: ReferenceBackend,
    base: Path,
    adapters: list[AdapterFiles],
    tmp_path: Path,
    damage: Damage,
    is_first: bool,
) -> None:
    bad = Path(shutil.copytree(adapters[0].directory, tmp_path / "bad"))
    damage(bad)
    if not is_first:
        await backend.load_adapter(adapters[1])
    with pytest.raises(AdapterRejectedError, match="bad-v1"):
        await backend.load_adapter(files(bad, "c"))
    with pytest.raises(AdapterRejectedError):
        await collect(backend, greedy(adapter=files(bad, "c")))
    for adapter in (None, adapters[1]):
        assert await texts(backend, greedy(adapter=adapter)) == [directly(base, adapter)]


async def test_16_bits_on_the_cpu_stay_close_to_32(
    base: Path, adapters: list[AdapterFiles], tmp_path: Path
) -> None:
    prepared = prepare_base(str(base), tmp_path)
    requests = [ScoreRequest(PLAIN, "ABCD", "Đáp án: ", a) for a in (None, *adapters)]
    rows = []
    for precision in ("fp32", "bf16"):
        backend = ReferenceBackend.open(prepared, precision, "cpu")
        assert backend.info.precision == precision
        rows.append(torch.tensor(await backend.score(requests)))
        await backend.close()
    assert (rows[0] - rows[1]).abs().max() < 0.5
    assert not torch.equal(*rows)


async def test_an_unknown_precision_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="int3"):
        ReferenceBackend.open(prepare_base(str(base), tmp_path), "int3")


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3"])
async def test_other_architectures_work_the_same(architecture, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny", architecture)
    adapter = files(write_adapter(path, tmp_path / "adapter", 1), "a")
    backend = ReferenceBackend.open(prepare_base(str(path), tmp_path / "cache"), "fp32", "cpu")
    for acting in (None, adapter):
        assert await texts(backend, greedy(adapter=acting)) == [directly(path, acting)]
    await backend.close()
