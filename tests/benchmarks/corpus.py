"""The texts that every contender gets: questions, sentences, abstracts, and a mixture."""

from __future__ import annotations

import csv
import re
from pathlib import Path

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def load_texts(count: int = 400) -> tuple[str, list[str]]:
    """(what they are, texts), half of them long. Real ones where the data sets are at hand."""
    if not SHARED_DATA.is_dir():
        return "generated sentences (no data sets beside the checkout)", _generated(count)
    texts = _abstracts()[: count // 2]
    return "Cranfield abstracts and STS sentences", texts + _sentences()[: count - len(texts)]


def load_corpora() -> dict[str, list[str]]:
    """Texts of one length each; none where the data sets are not there."""
    if not SHARED_DATA.is_dir():
        return {}
    return {
        "questions (TREC QA)": _questions()[:200],
        "sentences (STS)": _sentences()[:200],
        "abstracts (Cranfield)": _abstracts()[-100:],
    }


def _abstracts() -> list[str]:
    whole = (SHARED_DATA / "cranfield" / "cran.all.1400").read_text()
    found = re.findall(r"\.W\n(.*?)(?=\n\.I |\Z)", whole, re.S)
    return [" ".join(text.split()) for text in found if text.strip()]


def _sentences() -> list[str]:
    return [
        line.split("\t")[1]
        for name in ("2016-headlines", "2014-images", "2016-question-question")
        for line in (SHARED_DATA / "sts" / f"{name}.tsv").read_text().splitlines()
    ]


def _questions() -> list[str]:
    with (SHARED_DATA / "trecqa" / "train.csv").open(newline="") as file:
        return list(dict.fromkeys(row["qtext"] for row in csv.DictReader(file)))


def _generated(count: int) -> list[str]:
    from model_build.samples import sample_texts

    return sample_texts(count)
