"""Packed documents are what they are alone: in value, in gradient, and whatever their neighbours say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.errors import TrainingError
from model.training import documents as documents_module
from model.training.documents import PACKED, Documents, attend_by_document, compile_layers, generating, packed_attention

CPU = torch.device("cpu")
LENGTHS = (5, 300, 17, 1, 40, 41, 39)
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
FAMILIES = ["Llama", "Qwen2", "Qwen3"]


def make(family: str, attention: str = "sdpa") -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    if attention == PACKED:
        attend_by_document(model)
    return model


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 100, (length,), generator=generator) for length in lengths]


def alone(model: Any, rows: list[Tensor]) -> Tensor:
    """The last hidden states of every document run by itself, one after another, [T, H]."""
    return torch.cat([model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows])


def packed(model: Any, rows: list[Tensor], **arguments: Any) -> Tensor:
    documents = Documents(tuple(map(len, rows)), CPU)
    hidden: Tensor = model.base_model(
        input_ids=torch.cat(rows)[None], **({"use_cache": False} | documents.forward_arguments() | arguments)
    ).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_unpacked_in_value_and_gradient(family: str) -> None:
    plain, ours = make(family), make(family, PACKED)
    weights = torch.randn(sum(LENGTHS), 64, generator=torch.Generator().manual_seed(3))
    expected, found = alone(plain, texts()), packed(ours, texts())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    (found * weights).sum().backward()  # type: ignore[no-untyped-call]
    for (name, one), two in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, atol=2e-6 * one.grad.abs().max().item(), rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_cache", [False, True])
def test_no_document_feels_another_bit_for_bit(family: str, use_cache: bool) -> None:
    model, rows = make(family, PACKED), texts()
    changed = [texts(seed=2)[0], *rows[1:]]
    before, after = packed(model, rows, use_cache=use_cache), packed(model, changed, use_cache=use_cache)
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_mask_of_ones_would_leak_and_ours_does_not(family: str) -> None:
    """What transformers does by itself with positions that start again and a mask: documents see one another."""
    rows, ones = texts(), torch.ones(1, sum(LENGTHS), dtype=torch.int64)
    expected = alone(make(family), rows)
    leaking = packed(make(family), rows, attention_mask=ones, documents=None)
    assert (leaking - expected).abs().max() > 0.05
    torch.testing.assert_close(packed(make(family, PACKED), rows, attention_mask=ones), expected, atol=1e-5, rtol=0)


def test_a_model_without_our_attention_is_found_out() -> None:
    assert packed(make("Llama"), texts()).isnan().any()


def test_calls_without_documents_are_masked_as_ever() -> None:
    """Generation pads on the left and brings its own mask."""
    tokens = torch.stack([torch.cat([torch.zeros(3, dtype=torch.int64), texts((7,))[0]]), texts((10,))[0]])
    mask = torch.tensor([[0] * 3 + [1] * 7, [1] * 10])
    arguments = {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected = make("Llama").base_model(**arguments).last_hidden_state[mask.bool()]
    torch.testing.assert_close(
        make("Llama", PACKED).base_model(**arguments).last_hidden_state[mask.bool()], expected, atol=1e-6, rtol=0
    )


def test_generating_leaves_the_model_as_it_was() -> None:
    model = make("Llama", PACKED)
    with generating(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == PACKED
    torch.testing.assert_close(packed(model, texts()), alone(make("Llama"), texts()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("long", [2, 1000])
def test_short_and_long_documents_take_either_way(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "_LONG", long)
    torch.testing.assert_close(packed(make("Qwen3", PACKED), texts()), alone(make("Qwen3"), texts()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("long", [2, 1000])
def test_a_prefix_that_all_documents_see(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "_LONG", long)
    prefix, rows = texts((9,), seed=5)[0], texts()
    expected = torch.cat([alone(make("Llama"), [torch.cat([prefix, row])])[9:] for row in rows])
    model = make("Llama", PACKED)
    cache = model.base_model(
        input_ids=prefix[None], use_cache=True, **Documents((9,), CPU).forward_arguments()
    ).past_key_values
    documents = Documents(LENGTHS, CPU, prefix=9)
    found = model.base_model(
        input_ids=torch.cat(rows)[None], past_key_values=cache, **documents.forward_arguments()
    ).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


FORKED = (9, 300, 6, 17, 1, 40, 41)
PARENTS = (-1, -1, 0, 2, 2, 0, 1)


def whole_rows(runs: list[Tensor]) -> list[Tensor]:
    """Each document with all that it goes on from."""
    rows: list[Tensor] = []
    for run, parent in zip(runs, PARENTS, strict=True):
        rows.append(torch.cat([rows[parent], run]) if parent >= 0 else run)
    return rows


@pytest.mark.parametrize("long", [2, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_documents_that_go_on_from_others_are_whole_ones_in_value_and_gradient(
    family: str, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that several go on from gets the gradients of all."""
    monkeypatch.setattr(documents_module, "_LONG", long)
    plain, ours, runs = make(family), make(family, PACKED), texts(FORKED)
    weights = torch.randn(sum(FORKED), 64, generator=torch.Generator().manual_seed(3))
    each = [alone(plain, [row])[len(row) - len(run) :] for row, run in zip(whole_rows(runs), runs, strict=True)]
    documents = Documents(FORKED, CPU, parents=PARENTS)
    found = ours.base_model(
        input_ids=torch.cat(runs)[None], use_cache=False, **documents.forward_arguments()
    ).last_hidden_state[0]
    expected = torch.cat(each)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    (found * weights).sum().backward()  # type: ignore[no-untyped-call]
    for (name, one), two in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, atol=2e-6 * one.grad.abs().max().item(), rtol=1e-4, msg=name)


def test_no_document_feels_one_that_it_does_not_go_on_from() -> None:
    model, runs = make("Llama", PACKED), texts(FORKED)
    arguments = Documents(FORKED, CPU, parents=PARENTS).forward_arguments()

    def hidden(runs: list[Tensor]) -> tuple[Tensor, ...]:
        found: Tensor = model.base_model(input_ids=torch.cat(runs)[None], use_cache=False, **arguments)[0][0]
        return found.split(FORKED)

    before = hidden(runs)
    for changed in range(len(FORKED)):
        after = hidden([texts(FORKED, seed=2)[d] if d == changed else run for d, run in enumerate(runs)])
        felt = [d for d in range(len(FORKED)) if not torch.equal(before[d], after[d])]
        lines: list[set[int]] = []
        for d, parent in enumerate(PARENTS):
            lines.append({d} | (lines[parent] if parent >= 0 else set()))
        assert felt == [d for d in range(len(FORKED)) if changed in lines[d]]


def test_what_others_go_on_from_may_itself_follow_a_prefix() -> None:
    prefix, runs = texts((9,), seed=5)[0], texts(FORKED)
    model = make("Llama", PACKED)
    cache = model.base_model(
        input_ids=prefix[None], use_cache=True, **Documents((9,), CPU).forward_arguments()
    ).past_key_values
    documents = Documents(FORKED, CPU, prefix=9, parents=PARENTS)
    found = model.base_model(
        input_ids=torch.cat(runs)[None], past_key_values=cache, **documents.forward_arguments()
    ).last_hidden_state[0]
    rows = zip(whole_rows(runs), runs, strict=True)
    expected = [alone(make("Llama"), [torch.cat([prefix, row])])[9 + len(row) - len(run) :] for row, run in rows]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
    assert documents.longest == 9 + 300 + 41


def test_keys_by_hand() -> None:
    """Documents of 2, 1 and 2 tokens, the last two of which go on from the first, behind a prefix of one."""
    keys, bounds = Documents((2, 1, 2), CPU, prefix=1, parents=(-1, 0, 0)).keys
    assert isinstance(keys, Tensor)
    assert keys.tolist() == [0, 1, 2, *(0, 1, 2, 3), *(0, 1, 2, 4, 5)]
    assert bounds.tolist() == [0, 3, 7, 12]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_every_token_is_put_back_where_it_was(lengths: list[int]) -> None:
    documents = Documents(tuple(lengths), CPU)
    places = torch.cat([group.flatten() for group, _ in documents.groups])
    assert torch.equal(places[documents.order], torch.arange(documents.total))
    for group, _ in documents.groups:
        whole = sum(len(set(row)) for row in group.tolist())
        assert group.numel() <= documents_module._WASTE * whole


def test_a_sliding_window_is_refused_where_it_would_matter() -> None:
    import transformers

    config = transformers.MistralConfig(**SHAPE, sliding_window=64)
    model = transformers.MistralForCausalLM(config).eval()
    expected = alone(model, texts((40, 30)))
    attend_by_document(model)
    torch.testing.assert_close(packed(model, texts((40, 30))), expected, atol=1e-5, rtol=0)
    with pytest.raises(TrainingError, match="sliding window of 64"):
        packed(model, texts((70,)))


def test_long_documents_are_taken_alone_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "_ALONE", 10)
    assert [run.lengths for run in Documents((10, 3, 4, 12, 11), CPU).runs] == [(10,), (3, 4), (12,), (11,)]
    forked = Documents((10, 3), CPU, parents=(-1, 0))
    assert forked.runs == [forked]


def test_compiled_layers_are_the_others_for_rows_of_all_lengths() -> None:
    """By the compiler's front end alone: no kernels are made. Once for all lengths, and for all layers."""
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    plain, ours = make("Qwen3", PACKED), make("Qwen3", PACKED)
    compile_layers(ours, counter)
    counts = []
    for lengths, parents in ((LENGTHS, ()), (FORKED, PARENTS), ((7, 8), ()), ((300,), ())):
        documents = Documents(lengths, CPU, parents=parents)
        tokens_1T = torch.cat(texts(lengths))[None]
        each = [
            model.base_model(input_ids=tokens_1T, use_cache=False, **documents.forward_arguments())[0]
            for model in (plain, ours)
        ]
        torch.testing.assert_close(each[1], each[0], atol=1e-6, rtol=0)
        for hidden in each:
            hidden.square().sum().backward()
        for one, two in zip(plain.parameters(), ours.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(two.grad, one.grad, atol=2e-6 * one.grad.abs().max().item(), rtol=1e-4)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts == counts[:1] * len(counts)
    written = []
    for model in (plain, ours):
        with generating(model), torch.no_grad():
            written.append(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False))
    assert torch.equal(*written)
    assert counter.frame_count == counts[0], "nothing is compiled to write"


def test_a_long_document_alone_is_what_it_is_side_by_side() -> None:
    """4,100 tokens are laid out as 4,608."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 4100, 16, generator=generator).requires_grad_() for heads in (4, 2, 2))
    documents, slopes = Documents((4100,), CPU), torch.randn(1, 4100, 4, 16, generator=generator)
    expected, _ = packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.25, documents=documents)
    found = documents_module._alone(query, key, value, 0.25)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    each = [torch.autograd.grad((out * slopes).sum(), (query, key, value)) for out in (found, expected)]
    for one, two in zip(*each, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_what_cudnn_plans_for_does_not_depend_on_a_documents_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and strides of queries, keys and values, and of the gradient that comes back; of one row there is no
    stride to the next."""
    seen: list[Any] = []

    def laid_out(table: Tensor) -> Any:
        return table.shape, table.stride()[1:]

    def attention(*given: Tensor, **_: Any) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
        out.register_hook(lambda slope: seen[-1].append(laid_out(slope)))
        seen.append([laid_out(each) for each in given])
        return out

    monkeypatch.setattr(documents_module, "scaled_dot_product_attention", attention)
    row = [torch.randn(1, 4700, heads, 16).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]
    for length in (4608, 4200, 4500):
        out = documents_module._alone(*(each[:, :, :length] for each in row), 0.25)
        beside = torch.randn(1, 30, 4, 16, requires_grad=True)
        (torch.cat([out, beside], dim=1) * torch.randn(1, length + 30, 4, 16)).sum().backward()  # type: ignore[no-untyped-call]
    assert seen[0] == seen[1] == seen[2]
