"""Packed attention as a function of queries, keys and values: what a token sees, on both ways of computing it, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Module

from alignment_lab.models import packed_attention
from alignment_lab.models.packed_attention import PackedLayout, shared_prefix_attention

LAYOUTS = {
    "one tree, one answer": ((4, (3,)),),
    "one tree, three answers": ((4, (3, 1, 5)),),
    "no prompt": ((0, (6,)),),
    "a prompt of one token": ((1, (2, 3)),),
    "answers of one token": ((3, (1, 1, 1)),),
    "one token": ((0, (1,)),),
    "several trees": ((4, (3, 2)), (0, (5,)), (1, (1, 1, 4)), (7, (2,)), (2, (6, 6))),
    "an answer longer than its prompt": ((2, (9, 11)), (3, (1, 8))),
}


def drawn(
    layout: PackedLayout,
    heads: int = 4,
    kv_heads: int = 2,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    size: int = 8,
):
    """Query, key and value of a row: [1, heads, T, size], and T."""
    length = sum(prompt + sum(answers) for prompt, answers in layout.trees)
    generator = torch.Generator().manual_seed(length)
    drawn = (
        torch.randn(1, n, length, size, generator=generator).bfloat16() for n in (heads, kv_heads, kv_heads)
    )  # exact in every dtype
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def visible(layout: PackedLayout) -> torch.Tensor:
    """[T, T], by the definition: a token sees itself and what is before it in its own answer, and in its own tree's prompt."""
    owners = [
        (tree, answer)
        for tree, (prompt, answers) in enumerate(layout.trees)
        for answer, n in enumerate((prompt, *answers))
        for _ in range(n)
    ]
    sees = [
        [i >= j and a[0] == b[0] and b[1] in (0, a[1]) for j, b in enumerate(owners)]
        for i, a in enumerate(owners)
    ]
    return torch.tensor(sees)


def by_definition(query, key, value, layout, scaling=None):
    """Softmax over what is visible: [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    weights = scores.masked_fill(~visible(layout).to(query.device), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def gathered(query, key, value, layout, scaling=None):
    """Attention from `PackedLayout.gathered` in plain torch, as a varlen kernel with a causal mask at the bottom right does it."""
    where = layout.gathered(query.device)
    groups = query.shape[1] // key.shape[1]
    keys, values = (
        tensor[0].repeat_interleave(groups, 0)[:, where.keys] for tensor in (key, value)
    )  # [H, T_k, D]
    found = []
    spans = zip(
        where.query_ends.tolist(),
        where.query_ends[1:].tolist(),
        where.key_ends.tolist(),
        where.key_ends[1:].tolist(),
        strict=False,
    )
    for q0, q1, k0, k1 in spans:
        assert q1 - q0 <= where.longest_query
        assert k1 - k0 <= where.longest_key
        sees = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
        found.append(
            F.scaled_dot_product_attention(
                query[0, :, q0:q1], keys[:, k0:k1], values[:, k0:k1], attn_mask=sees, scale=scaling
            )
        )
    return torch.cat(found, 1).transpose(0, 1)[None]


def attend(query, key, value, layout, scaling=None):
    return shared_prefix_attention(
        Module(), query, key, value, packed_attention.dummy_mask(query.device), layout=layout, scaling=scaling
    )[0]


def value_and_gradients(function, layout, scaling=None, **options):
    tensors = drawn(layout, **options)
    output = function(*tensors, layout, scaling)
    output.backward(
        torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    )
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("way", [attend, gathered])
def test_a_token_sees_its_answer_and_its_prompt_and_nothing_else(way, name, heads):
    layout = PackedLayout(LAYOUTS[name])
    for scaling in (None, 0.7):
        found, true = (
            value_and_gradients(function, layout, scaling, heads=heads[0], kv_heads=heads[1])
            for function in (way, by_definition)
        )
        for one, other in zip(found, true, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_keys_that_are_gathered():
    """Two trees, [a b | c d | e] and [f | g]: the segments are `abcd`, `e` behind another copy of `ab`, and `fg`."""
    where = PackedLayout(((2, (2, 1)), (1, (1,)))).gathered(torch.device("cpu"))
    assert where.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert where.query_ends.tolist() == [0, 4, 5, 7]
    assert where.key_ends.tolist() == [0, 4, 7, 9]
    assert (where.longest_query, where.longest_key) == (4, 4)
    assert where.query_ends.dtype == where.key_ends.dtype == torch.int32  # as kernels want them


def test_what_is_gathered_is_made_once_for_all_layers():
    layout = PackedLayout(((2, (2, 1)),))
    assert layout.gathered(torch.device("cpu")) is layout.gathered(torch.device("cpu"))


def test_the_longest_sequence_counts_its_prompt_and_one_answer():
    assert PackedLayout(((2, (2, 5)), (1, (4,)))).longest == 7


class Kernel:
    """Stands for torch's varlen attention, which has no CPU form: the same arguments, FlashAttention's demands, plain arithmetic."""

    @staticmethod
    def varlen_attn(
        q, k, v, q_ends, k_ends, longest_q, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError(
                f"FlashAttention only supports fp16 and bf16 data type, not {q.dtype}, {k.dtype} and {v.dtype}"
            )
        assert all(tensor.stride(-1) == 1 for tensor in (q, k, v))
        assert window_size == (-1, 0)
        assert enable_gqa or q.shape[1] == k.shape[1]
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        found = []
        for q0, q1, k0, k1 in zip(
            q_ends.tolist(), q_ends[1:].tolist(), k_ends.tolist(), k_ends[1:].tolist(), strict=False
        ):
            assert q1 - q0 <= longest_q and k1 - k0 <= longest_k
            one, two, three = q[q0:q1].transpose(0, 1), k[k0:k1].transpose(0, 1), v[k0:k1].transpose(0, 1)
            sees = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
            found.append(
                F.scaled_dot_product_attention(one, two, three, attn_mask=sees, scale=scale).transpose(0, 1)
            )
        return torch.cat(found)


def test_one_call_of_the_kernel_says_the_same(monkeypatch):
    """What an accelerator computes, with the kernel's arguments read by plain torch, in bfloat16."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", Kernel.varlen_attn)
    layout = PackedLayout(LAYOUTS["several trees"])
    found = value_and_gradients(
        lambda *given: packed_attention._by_gathering(*given), layout, dtype=torch.bfloat16
    )
    true = value_and_gradients(by_definition, layout)
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_kernel_of_an_accelerator_says_the_same(name, heads):
    """FlashAttention in bfloat16 with gradients; the truth is float64."""
    layout = PackedLayout(LAYOUTS[name])
    options = {"heads": heads[0], "kv_heads": heads[1], "size": 64}
    found = value_and_gradients(attend, layout, device="cuda", dtype=torch.bfloat16, **options)
    true = value_and_gradients(by_definition, layout, **options)
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("asked", ["softcap", "s_aux", "position_bias"])
def test_what_is_more_than_plain_attention_is_refused(asked):
    layout = PackedLayout(((2, (2, 1)),))
    with pytest.raises(ValueError, match=asked):
        shared_prefix_attention(Module(), *drawn(layout), None, layout=layout, **{asked: torch.ones(1)})


def test_dropout_and_a_window_that_cuts_are_refused():
    """The longest sequence of the row has 4 tokens, the row itself 5."""
    layout = PackedLayout(((2, (2, 1)),))
    with pytest.raises(ValueError, match="dropout"):
        shared_prefix_attention(Module(), *drawn(layout), None, layout=layout, dropout=0.1)
    with pytest.raises(ValueError, match="window of 3"):
        shared_prefix_attention(Module(), *drawn(layout), None, layout=layout, sliding_window=3)
    assert shared_prefix_attention(Module(), *drawn(layout), None, layout=layout, sliding_window=4)[
        0
    ].shape == (1, 5, 4, 8)
