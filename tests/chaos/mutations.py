"""Mutations: every kind of fault that can be planted, and what the checker is to find it as."""

from __future__ import annotations

from tests.chaos.mutations_owners import OWNER_MUTATIONS
from tests.chaos.mutations_requests import REQUEST_MUTATIONS
from tests.chaos.mutations_runs import RUN_MUTATIONS

MUTATIONS = RUN_MUTATIONS | OWNER_MUTATIONS | REQUEST_MUTATIONS
