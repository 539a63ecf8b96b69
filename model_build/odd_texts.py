"""Texts that tokenizers treat in ways of their own, by kind; the same in every build.

It does not know models.
"""

from __future__ import annotations

from collections.abc import Mapping

ODD_TEXTS: Mapping[str, tuple[str, ...]] = {
    "upper case": (
        "WHO SOLD THE SPARE KEYS?",
        "The NASA iPhone McDonald's eBay",
        "ÀÉÎÕÜ STRASSE İSTANBUL",
    ),
    "accents": (
        "Le café crème coûte 3,50 € à Orléans",
        "Le cafe\u0301 cre\u0300me, accents apart",  # decomposed
        "Größe, Straße, naïve, piñata, Łódź, smørrebrød",
    ),
    "Chinese, Japanese, Korean": (
        "夜班护士修好了三个铜水壶",
        "図書館は日曜日に閉まっています。カタカナも平仮名も。",
        "서울의 도서관은 일요일에 문을 닫습니다",
        "ＦＵＬＬ　ｗｉｄｔｈ　１２３",  # noqa: RUF001 - full-width, as meant
    ),
    "other scripts": (
        "Библиотека закрыта в воскресенье",
        "المكتبة مغلقة يوم الأحد",
        "पुस्तकालय रविवार को बंद रहता है",
        "ห้องสมุดปิดวันอาทิตย์",
    ),
    "emoji": ("🙂", "great 👍🏽 game 👩‍👩‍👧‍👦 tonight 🇫🇷🎉", "❤️ or ♥"),
    "runs of white space": (
        "two  spaces   three\ttab\n\nlines\r\nend",
        "   around   ",
        "no\u00a0break\u3000ideographic\u200bzero\u2009thin",
    ),
    "special tokens as text": (
        "[CLS] the harbour pilot [SEP] [MASK] [PAD] [UNK]",
        "<s> the harbour pilot </s> <mask> <pad> <unk>",
        "<bos> the harbour pilot <eos> <|endoftext|> <|im_start|>user<|im_end|> [INST]",
    ),
    "punctuation and code": (
        "...",
        "a",
        "https://example.org/a?b=c&d=%20#e",
        "for (i = 0; i < n; ++i) { x[i] *= 2.5e-3; } // done",
        "1,234.56 + 7/8 = 50 %",
        "don't — “quoted” ‘single’ … ½ № ™",  # noqa: RUF001 - typographic, as meant
    ),
    "control characters": ("bell\x07 null-free\x01 soft\u00adhyphen \ufeffmark \ufffd",),
    "words without end": ("a" * 300, "Donaudampfschifffahrtsgesellschaftskapitän" * 5),
    "nothing but white space": (" ", "\n\t  "),
}
