"""Reads the layers after a model's pooling from their files. Does not know what they are applied to."""

from __future__ import annotations

from pathlib import Path

from shared.engines.panics import Panicked, panics_are_errors
from shared.errors import InvalidArtefact
from shared.models.manifest import LayerFile
from shared.vectors import DenseLayer, Layer, NormLayer, UnitLayer


def load_layer(folder: Path, described: LayerFile) -> Layer:
    """A layer of the model whose verified files are in `folder`. Raises InvalidArtefact."""
    if described.kind == "unit":
        return UnitLayer()
    # Imported here: most models have no such layer.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        with panics_are_errors():
            tensors = load_file(folder / described.file)
        if described.kind == "norm":
            return NormLayer(tensors["weight"], tensors["bias"])
        return DenseLayer(tensors["weight"], tensors.get("bias"), described.activation)
    except (SafetensorError, KeyError, OSError, Panicked) as error:
        raise InvalidArtefact(f"{described.file} is not a {described.kind} layer") from error
