"""Small tokenizers of several families, and real rows, for several test files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment_lab.config import Format
from alignment_lab.data import Row, formats
from alignment_lab.data.reasons import BadRow
from alignment_lab.models.tokenizer import resolve_chat_template

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def other_tokenizer(template: str | None, *, bos: str | None = "<s>", eos: str = "</s>"):
    """Byte-level BPE trained on a few sentences, so that some letters merge and most do not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", *([bos] if bos else []), eos]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [
        "<|user|>\nWhat is it?\n<|assistant|>\nIt is Paris.\n",
        "<|im_start|>user\nHello<|im_end|>\n",
        "Hello  ",
    ]
    backend.train_from_iterator(sentences * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token=bos, eos_token=eos
    )
    tokenizer.chat_template = template and resolve_chat_template(template)
    return tokenizer


OTHERS = {
    "zephyr": ("zephyr", {}),
    "zephyr without BOS": ("zephyr", {"bos": None}),
    "zephyr, one token for both ends (GPT-2)": ("zephyr", {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "chatml with the template's stop": ("chatml", {"bos": "<|im_start|>", "eos": "<|im_end|>"}),
    "chatml with a stop of its own": ("chatml", {}),
}


def odd_tokenizer(kind: str):
    """Tokenizers that look across the point where a text might be split, each in its own way."""
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = other_tokenizer("zephyr").backend_tokenizer
    if kind.startswith("metaspace"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.split()[1])
    if "normaliz" in kind:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Lowercase()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    raw = {"special": True, "normalized": False}
    added = {
        "strips what follows": [AddedToken("<|x|>", rstrip=True, **raw)],
        "strips what precedes": [AddedToken("<|x|>", lstrip=True, **raw)],
        "strips what follows, beside white space": [
            AddedToken("<|x|>", rstrip=True, **raw),
            AddedToken("\n\n", normalized=False),
        ],
        "strips what precedes, beside white space": [
            AddedToken("<|x|>", lstrip=True, **raw),
            AddedToken("\n\n", normalized=False),
        ],
        "begins with white space": [
            AddedToken("<|im_end|>", rstrip=True, **raw),
            AddedToken(" <|x|>", **raw),
        ],
        "white space": [AddedToken("\n\n", normalized=False)],
        "a word by itself": [AddedToken("<|x|>", single_word=True, **raw)],
        "found when normalized": [AddedToken("<|x|>", special=True, normalized=True)],
        "the beginning of another": [AddedToken("</s></s>", **raw)],
    }
    for token in added.get(kind, []):
        tokenizer.add_tokens([token], special_tokens=token.special)
    tokenizer.split_special_tokens = kind == "special tokens are text"
    return tokenizer


ODD = [
    "metaspace first", "metaspace always", "normalized", "found when normalized", "special tokens are text",
    "white space", "strips what follows", "strips what precedes", "strips what follows, beside white space",
    "strips what precedes, beside white space", "begins with white space", "a word by itself",
    "the beginning of another",
]  # fmt: skip


def real_rows(name: str, format: Format, count: int) -> list[Row]:
    """The first usable rows of a real file, converted to `format`."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not there")
    text = (SHARED / name).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    convert = formats.choose_converter(format, formats.filled_columns(rows), name)
    converted: list[Row] = []
    for row in rows[:count]:
        try:
            converted += convert(row)
        except BadRow as bad:
            if not bad.reason.uninformative:
                raise
    return converted
