"""What the unit tests share: how hypothesis runs here, and that no test leaves its logging to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Time says nothing on a machine that does other things as well; what an example proves does not depend on it.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """A test that configures logging writes to its own captured streams, which are closed when the next one runs."""
    yield
    structlog.reset_defaults()
