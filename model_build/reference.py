"""What the original answers during a build. It is loaded when first asked, and its answers are kept.

It does not know built models, or how the original runs. A build compares several times, with models of
its own beside it, and an original takes more memory than all of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_build.originals import embedder, scorer
from model_build.source import SourceModel
from model_build.tasks import Evaluation
from shared.contracts import FloatMatrix


class Reference:
    """The original in the folder `root`, read as `source`: an embedding model or a cross-encoder.

    Every method raises InvalidInput if it cannot be loaded or run, and InvalidArtefact for NaN or
    infinite numbers.
    """

    def __init__(self, root: Path, source: SourceModel) -> None:
        self.root = root
        self.source = source
        self._original: Any = None
        self._answers: dict[Hashable, Any] = {}

    def vectors(self, texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        """(N, D) float32 unit vectors. prompt: a name; None: the model's default prompt."""
        rows: FloatMatrix = self._answer((prompt, *texts), lambda original: original(texts, prompt))
        return rows

    def scores(self, pairs: Sequence[tuple[str, str]]) -> FloatMatrix:
        """(N, L) float32 logits."""
        rows: FloatMatrix = self._answer((*pairs,), lambda original: original(pairs))
        return rows

    def tokens(self, text: str) -> int:
        """Number of tokens that it reads of `text`, with special tokens and without a prompt."""
        return int(self._answer((int, text), lambda original: original.tokens(text)))

    def figures(
        self, task: Evaluation, score: Callable[[Evaluation, Any], Mapping[str, float]]
    ) -> Mapping[str, float]:
        """What it reaches in `task`, an object that lives as long as this; its vectors are not kept."""
        found: Mapping[str, float] = self._answer(
            (Evaluation, id(task)), lambda original: score(task, original)
        )
        return found

    def release(self) -> None:
        """Free the original. It is loaded again if it is asked something new."""
        self._original = None
        # The objects of transformers and sentence-transformers refer to each other.
        gc.collect()

    def _answer(self, key: Hashable, ask: Callable[[Any], Any]) -> Any:
        if key not in self._answers:
            if self._original is None:
                load = scorer if self.source.task == "cross-encoder" else embedder
                self._original = load(self.root, self.source)
            self._answers[key] = ask(self._original)
        return self._answers[key]
