"""The texts every contender gets: abstracts and captions, half long and half short."""

from __future__ import annotations

import re
from pathlib import Path

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def load_texts(count: int = 400) -> tuple[str, list[str]]:
    """(what they are, texts). Real ones where the data sets lie beside the checkout."""
    if not SHARED_DATA.is_dir():
        from model_build.samples import sample_texts

        return "generated sentences (no data sets beside the checkout)", sample_texts(count)
    abstracts = re.findall(
        r"\.W\n(.*?)(?=\n\.I |\Z)", (SHARED_DATA / "cranfield" / "cran.all.1400").read_text(), re.S
    )
    captions = [
        line.split("\t")[1]
        for name in ("2016-headlines", "2014-images", "2016-question-question")
        for line in (SHARED_DATA / "sts" / f"{name}.tsv").read_text().splitlines()
    ]
    texts = [" ".join(text.split()) for text in abstracts if text.strip()][: count // 2]
    return "Cranfield abstracts and STS sentences", texts + captions[: count - len(texts)]
