"""What the fault tests share: none of them waits for anything that may be in the way."""

from __future__ import annotations

from random import Random

import pytest


@pytest.fixture
def random() -> Random:
    return Random(3)
