"""What the answers of a cluster mean."""

from __future__ import annotations

from engine.cluster_survey import Survey, WorkerAnswer, versions
from engine.doctor import dask_checks, serving_check
from engine.vital_signs import EngineVital

OWN = {"python": "3.11.7", "dask": "1"}


def failed(survey: Survey, modules: list[str] | None = None) -> dict[str, str]:
    """Failed checks and what they found; each has a remedy."""
    checks = list(dask_checks(survey, OWN, modules or []))
    assert all(check.remedy for check in checks if not check.ok)
    return {check.name: check.found for check in checks if not check.ok}


def test_a_cluster_like_ours_is_well() -> None:
    assert failed(Survey(OWN, {"w": WorkerAnswer(versions=OWN)}), ["handlers.flights"]) == {}


def test_no_worker_is_a_fault() -> None:
    assert list(failed(Survey(OWN, {}))) == ["Dask workers"]


def test_another_version_is_named_with_how_many_have_it() -> None:
    older = WorkerAnswer(versions=OWN | {"dask": "0"})
    found = failed(Survey(OWN, {"a": older, "b": older, "c": WorkerAnswer(versions=OWN)}))
    assert found == {"versions": "dask 0 instead of 1 (2×)"}


def test_a_scheduler_without_the_engine_is_a_fault() -> None:
    assert list(failed(Survey(None, {"w": WorkerAnswer(versions=OWN)}))) == ["engine on the scheduler"]


def test_a_worker_that_cannot_answer_is_a_fault_and_no_other_check_is_made_of_it() -> None:
    assert list(failed(Survey(OWN, {"w": WorkerAnswer(error="ModuleNotFoundError: engine")}), ["h"])) == ["worker w"]


def test_a_module_that_a_worker_cannot_import_is_named() -> None:
    refusing = WorkerAnswer(versions=OWN, refused={"h": "ModuleNotFoundError: No module named 'h'"})
    assert failed(Survey(OWN, {"w": refusing}), ["h"]) == {
        "handlers on the workers": "w cannot import h: ModuleNotFoundError: No module named 'h'"
    }


def test_a_clock_that_is_wrong_is_named() -> None:
    found = failed(Survey(OWN, {"w": WorkerAnswer(versions=OWN, skew_seconds=2.0), "v": WorkerAnswer(versions=OWN)}))
    assert found == {"clocks": "w by 2.0 s"}


def test_an_engine_that_is_not_ready_says_why() -> None:
    parts = {"kafka": "ok", "topic orders": "stopped: 9 of the last 10 events went to the dead letters"}
    check = serving_check(EngineVital("h:1", False, parts))
    assert (check.ok, check.found) == (False, "topic orders: stopped: 9 of the last 10 events went to the dead letters")
    assert check.remedy


def test_that_nobody_serves_is_no_fault_and_who_is_ready_is_said() -> None:
    silent = serving_check(EngineVital("h:1", None, {}, "connection refused"))
    assert (silent.ok, silent.found) == (True, "nobody serves there: connection refused")
    assert serving_check(EngineVital("h:1", True, {"kafka": "ok"})).found == "ready"


def test_versions_of_this_process_are_known() -> None:
    assert versions()["distributed"] != "not installed"
