"""Packed attention as a function of queries, keys and values: what a token sees, in both implementations.

Also what it refuses.
"""

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


def random_qkv(
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
    # bfloat16 values are exact in every dtype
    qkv = (
        torch.randn(1, n, length, size, generator=generator).bfloat16() for n in (heads, kv_heads, kv_heads)
    )
    return [tensor.to(device, dtype).requires_grad_() for tensor in qkv]


def visible_mask(layout: PackedLayout) -> torch.Tensor:
    """[T, T] by definition: a token sees itself, what precedes it in its answer, and its tree's prompt."""
    owners = [
        (tree, answer)
        for tree, (prompt, answers) in enumerate(layout.trees)
        for answer, n in enumerate((prompt, *answers))
        for _ in range(n)
    ]
    return torch.tensor(
        [
            [i >= j and a[0] == b[0] and b[1] in (0, a[1]) for j, b in enumerate(owners)]
            for i, a in enumerate(owners)
        ]
    )


def masked_softmax(query, key, value, layout, scaling=None):
    """Softmax over what is visible: [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    weights = scores.masked_fill(~visible_mask(layout).to(query.device), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def varlen_by_hand(query, key, value, layout, scaling=None):
    """Attention from `PackedLayout.varlen` in plain torch, as a varlen kernel does it."""
    varlen = layout.varlen(query.device)
    groups = query.shape[1] // key.shape[1]
    # [H, T_k, D]
    keys, values = (tensor[0].repeat_interleave(groups, 0)[:, varlen.key_indices] for tensor in (key, value))
    outputs = []
    spans = zip(
        varlen.cu_seqlens_q.tolist(),
        varlen.cu_seqlens_q[1:].tolist(),
        varlen.cu_seqlens_k.tolist(),
        varlen.cu_seqlens_k[1:].tolist(),
        strict=False,
    )
    for q0, q1, k0, k1 in spans:
        assert q1 - q0 <= varlen.max_seqlen_q
        assert k1 - k0 <= varlen.max_seqlen_k
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
        outputs.append(
            F.scaled_dot_product_attention(
                query[0, :, q0:q1], keys[:, k0:k1], values[:, k0:k1], attn_mask=mask, scale=scaling
            )
        )
    return torch.cat(outputs, 1).transpose(0, 1)[None]


def attend(query, key, value, layout, scaling=None):
    return shared_prefix_attention(
        Module(), query, key, value, packed_attention.dummy_mask(query.device), layout=layout, scaling=scaling
    )[0]


def value_and_gradients(function, layout, scaling=None, **options):
    tensors = random_qkv(layout, **options)
    output = function(*tensors, layout, scaling)
    output.backward(
        torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    )
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("implementation", [attend, varlen_by_hand])
def test_a_token_sees_its_answer_and_its_prompt_and_nothing_else(implementation, name, heads):
    layout = PackedLayout(LAYOUTS[name])
    for scaling in (None, 0.7):
        outputs, expected = (
            value_and_gradients(function, layout, scaling, heads=heads[0], kv_heads=heads[1])
            for function in (implementation, masked_softmax)
        )
        for output, target in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, target, rtol=1e-12, atol=1e-12)


def test_the_key_indices_of_two_trees():
    """[a b | c d | e] and [f | g]: the segments are `abcd`, `e` after another copy of `ab`, and `fg`."""
    varlen = PackedLayout(((2, (2, 1)), (1, (1,)))).varlen(torch.device("cpu"))
    assert varlen.key_indices.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert varlen.cu_seqlens_q.tolist() == [0, 4, 5, 7]
    assert varlen.cu_seqlens_k.tolist() == [0, 4, 7, 9]
    assert (varlen.max_seqlen_q, varlen.max_seqlen_k) == (4, 4)
    assert varlen.cu_seqlens_q.dtype == varlen.cu_seqlens_k.dtype == torch.int32  # as kernels require


def test_the_varlen_layout_is_made_once_for_all_layers():
    layout = PackedLayout(((2, (2, 1)),))
    assert layout.varlen(torch.device("cpu")) is layout.varlen(torch.device("cpu"))


def test_the_longest_sequence_counts_its_prompt_and_one_answer():
    assert PackedLayout(((2, (2, 5)), (1, (4,)))).longest == 7


class Kernel:
    """A fake of torch's varlen attention, which has no CPU kernel: same arguments, plain arithmetic."""

    @staticmethod
    def varlen_attn(
        q, k, v, q_ends, k_ends, longest_q, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError(
                f"FlashAttention only supports fp16 and bf16 data type, not {q.dtype}, {k.dtype}, {v.dtype}"
            )
        assert all(tensor.stride(-1) == 1 for tensor in (q, k, v))
        assert window_size == (-1, 0)
        assert enable_gqa or q.shape[1] == k.shape[1]
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        outputs = []
        for q0, q1, k0, k1 in zip(
            q_ends.tolist(), q_ends[1:].tolist(), k_ends.tolist(), k_ends[1:].tolist(), strict=False
        ):
            assert q1 - q0 <= longest_q and k1 - k0 <= longest_k
            segment = (q[q0:q1].transpose(0, 1), k[k0:k1].transpose(0, 1), v[k0:k1].transpose(0, 1))
            mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
            attended = F.scaled_dot_product_attention(*segment, attn_mask=mask, scale=scale)
            outputs.append(attended.transpose(0, 1))
        return torch.cat(outputs)


def older_varlen_attn(q, k, v, q_ends, k_ends, longest_q, longest_k, *, scale=None, window_size=(-1, -1)):
    """Of torch 2.11: it counts the heads itself."""
    options = {"scale": scale, "window_size": window_size, "enable_gqa": True}
    return Kernel.varlen_attn(q, k, v, q_ends, k_ends, longest_q, longest_k, **options)


@pytest.mark.parametrize("kernel", [Kernel.varlen_attn, older_varlen_attn])
def test_one_varlen_call_agrees(kernel, monkeypatch):
    """What an accelerator computes, with the kernel's arguments read by plain torch, in bfloat16."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    layout = PackedLayout(LAYOUTS["several trees"])
    outputs = value_and_gradients(packed_attention._varlen_attention, layout, dtype=torch.bfloat16)
    expected = value_and_gradients(masked_softmax, layout)
    for output, target in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.double(), target, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_kernel_of_an_accelerator_agrees(name, heads):
    """FlashAttention in bfloat16 with gradients, against float64."""
    layout = PackedLayout(LAYOUTS[name])
    options = {"heads": heads[0], "kv_heads": heads[1], "size": 64}
    outputs = value_and_gradients(attend, layout, device="cuda", dtype=torch.bfloat16, **options)
    expected = value_and_gradients(masked_softmax, layout, **options)
    for output, target in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.double().cpu(), target, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_what_is_more_than_plain_attention_is_refused(option):
    layout = PackedLayout(((2, (2, 1)),))
    with pytest.raises(ValueError, match=option):
        shared_prefix_attention(Module(), *random_qkv(layout), None, layout=layout, **{option: torch.ones(1)})


def test_dropout_and_a_window_that_cuts_are_refused():
    """The longest sequence of the row has 4 tokens, the row itself 5."""
    layout = PackedLayout(((2, (2, 1)),))
    with pytest.raises(ValueError, match="dropout"):
        shared_prefix_attention(Module(), *random_qkv(layout), None, layout=layout, dropout=0.1)
    with pytest.raises(ValueError, match="window of 3"):
        shared_prefix_attention(Module(), *random_qkv(layout), None, layout=layout, sliding_window=3)
    assert shared_prefix_attention(Module(), *random_qkv(layout), None, layout=layout, sliding_window=4)[
        0
    ].shape == (1, 5, 4, 8)
