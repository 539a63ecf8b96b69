"""Two manifests side by side, and what keeps their results apart."""

from __future__ import annotations

from typing import Any

import pytest

from model_build.comparison import differences, side_by_side
from shared.errors import InvalidInput
from shared.models.manifest import Manifest, Quality, Source
from tests.tiny import manifest_of

SCORER: dict[str, Any] = {
    "task": "cross-encoder",
    "pooling": None,
    "normalize": False,
    "prompts": {},
    "dimensions": 1,
    "labels": ("relevant",),
}


def measured(**fields: Any) -> Quality:
    return Quality(**({"batch_max_abs_diff": 0.0, "load_s": 0.5, "inputs_per_s": 99.0} | fields))


def model(**fields: Any) -> Manifest:
    return manifest_of("tiny", **fields)


@pytest.mark.parametrize(
    ("mine", "others", "apart"),
    [
        ({}, {}, []),
        # How it was built and measured does not matter, nor how long a text may be.
        ({}, {"target": "cpu-fp32", "quality": measured(), "max_tokens": 8}, []),
        ({}, {"source": Source("elsewhere", "1")}, []),
        ({}, {"source": Source("there", "2")}, ["weights"]),
        ({}, {"dimensions": 4}, ["dimensions"]),
        ({}, {"pooling": "cls"}, ["pooling"]),
        ({}, {"normalize": False}, ["normalize"]),
        ({}, {"prompts": {"query": "Q: ", "document": "d: "}}, ["prompts"]),
        ({}, {"default_prompt": "query"}, ["default prompt"]),
        ({}, {"int8_ranges": {2: 0.5}}, ["int8 ranges"]),
        ({}, {"source": Source("there", "2"), "dimensions": 4}, ["weights", "dimensions"]),
        # Scores are in no index.
        (SCORER, SCORER | {"source": Source("there", "2")}, []),
        (SCORER, SCORER | {"labels": ("fits",)}, ["labels"]),
    ],
)
def test_what_keeps_results_apart(
    mine: dict[str, Any], others: dict[str, Any], apart: list[str]
) -> None:
    """Whatever makes a vector of one no neighbour of the other's."""
    assert differences(model(**mine), model(**others)) == apart
    assert differences(model(**others), model(**mine)) == apart


def test_another_task_is_another_model() -> None:
    """No request could be answered by both."""
    with pytest.raises(InvalidInput, match="r2 has another task than r1, cross-encoder instead of"):
        differences(model(), model(revision="r2", **SCORER))


def test_another_number_of_labels_is_another_model() -> None:
    """A reranker has one score; with two it would refuse every rerank."""
    two = SCORER | {"labels": ("a", "b"), "dimensions": 2}
    with pytest.raises(InvalidInput, match="another number of labels than r1, 2 instead of 1"):
        differences(model(**SCORER), model(revision="r2", **two))


def test_both_are_told_side_by_side() -> None:
    """What neither has is left out; what was measured of one alone is not."""
    quality = measured(load_s=0.25, inputs_per_s=101.4, cosine_mean=0.9974, cosine_min=0.9953)
    ours = model(quality=quality)
    theirs = measured(batch_max_abs_diff=1e-9, cosine_mean=0.99, evaluations={"sts": 0.75})
    others = model(revision="r2", quality=theirs, int8_ranges={2: 0.25})
    assert side_by_side(ours, others) == [
        "                     current   other",
        "revision             r1        r2",
        "target               cpu-int8  cpu-int8",
        "weights              there 1   there 1",
        "dimensions           2         2",
        "max tokens           16        16",
        "int8 range           1         0.25",
        "prompt document      'd: '     'd: '",
        "prompt query         'q: '     'q: '",
        "size, MB             0.0       0.0",
        "cosine, mean         0.997400  0.990000",
        "cosine, min          0.995300  -",
        "difference by batch  0.0e+00   1.0e-09",
        "loads in s           0.25      0.50",
        "inputs/s when built  101       99",
        "sts                  -         0.7500",
    ]
