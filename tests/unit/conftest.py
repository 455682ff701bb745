"""What the unit tests share: no test leaves its logging to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """A test that configures logging writes to its own captured streams, which are closed when the next one runs."""
    yield
    structlog.reset_defaults()
