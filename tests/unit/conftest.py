"""What the unit tests share: how hypothesis runs here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Time says nothing on a machine that does other things as well; what an example proves does not depend on it.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
