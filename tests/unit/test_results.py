"""engine.results: what is saved comes back, from where run, task and index say, and never half of it."""

from __future__ import annotations

import enum
import os
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest

from engine.errors import ResultMissing, ResultStoreError, ResultStuck, ResultTooLarge, SettingsError
from engine.results import ResultStore

RUN = "0123456789abcdef" * 2
OTHER_RUN = "f" * 32


class Priced(msgspec.Struct):
    sku: str
    cents: int


class Colour(enum.StrEnum):
    RED = "red"


class Odd:
    """Pickles, is no JSON, and cannot be compared."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that deletes and renames like a disk, and one that puts whole objects like a cloud."""
    if request.param == "file":
        yield f"file://{tmp_path}/results"
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    files, root = fsspec.url_to_fs(url)
    if files.exists(root):
        files.rm(root, recursive=True)


@pytest.fixture
def store(url: str) -> ResultStore:
    return ResultStore(url, "shop", 1_000)


def files_of(url: str) -> set[str]:
    """Paths of all files of the store, below its root."""
    files, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in files.find(root)}


@pytest.mark.parametrize(
    ("index", "value", "format"),
    [
        ("3", {"a": [1, 2.5, None, True, "ö"]}, "json"),
        ("3.17", [], "json"),
        ("00ffee0123456789", None, "json"),
        ("4", 1 + 2j, "pickle"),
        ("5", range(3), "pickle"),
    ],
)
def test_a_result_comes_back_from_where_run_task_and_index_say(
    store: ResultStore, url: str, index: str, value: Any, format: str
) -> None:
    ref = store.save(RUN, "price", index, value)
    assert ref == f"{url}/shop/{RUN}/price-{index}.{format}"
    assert files_of(url) == {f"shop/{RUN}/price-{index}.{format}"}
    assert store.load(RUN, "price", index) == value
    found = store.find(RUN, "price", index)
    assert found is not None
    assert (found.ref, found.format) == (ref, format)
    with fsspec.open(ref, "rb") as file:
        assert found.size == len(file.read())


def test_another_process_with_the_same_settings_finds_it(store: ResultStore, url: str) -> None:
    store.save(RUN, "price", "3", 7)
    assert ResultStore(url + "/", "shop", 1_000).load(RUN, "price", "3") == 7
    assert ResultStore(url, "other", 1_000).find(RUN, "price", "3") is None


def test_json_comes_back_as_the_type_that_is_asked_for(store: ResultStore) -> None:
    store.save(RUN, "price", "3", [Priced("a", 1)])
    assert store.load(RUN, "price", "3") == [{"sku": "a", "cents": 1}]
    assert store.load(RUN, "price", "3", list[Priced]) == [Priced("a", 1)]
    with pytest.raises(ResultStoreError, match=r"price-3\.json.*Expected `int`"):
        store.load(RUN, "price", "3", int)


@pytest.mark.parametrize(
    ("value", "type", "format"),
    [
        (Priced("a", 1), Priced, "json"),
        (Priced("a", 1), Any, "pickle"),
        ((1, 2), tuple[int, int], "json"),
        ((1, 2), Any, "pickle"),
        ({1: "a"}, dict[int, str], "json"),
        ({1: "a"}, Any, "pickle"),
        (Colour.RED, Colour, "json"),
        (Colour.RED, Any, "pickle"),
        (b"\xff", Any, "pickle"),
        (float("inf"), Any, "pickle"),
        (1, str, "pickle"),
        ([1, {"a": "b"}], Any, "json"),
    ],
)
def test_what_stands_in_for_a_tasks_own_value_is_equal_to_it(store: ResultStore, value: Any, type: Any, format: str) -> None:
    assert store.save(RUN, "price", "3", value, type=type).endswith(f".{format}")
    back = store.load(RUN, "price", "3", type)
    assert back == value
    assert back.__class__ is value.__class__


def test_what_cannot_be_compared_is_stored_all_the_same(store: ResultStore) -> None:
    store.save(RUN, "price", "3", Odd(5), type=Any)
    assert store.load(RUN, "price", "3").value == 5


def test_a_later_attempt_replaces_an_earlier_one_whatever_its_format(store: ResultStore, url: str) -> None:
    for value in (1, 2, 3j, 4):
        store.save(RUN, "price", "3", value)
        assert store.load(RUN, "price", "3") == value
        assert len(files_of(url)) == 1


def test_the_step_that_puts_a_result_together_has_a_name_here(store: ResultStore, url: str) -> None:
    assert store.save(RUN, "", "7", 1) == f"{url}/shop/{RUN}/result-7.json"
    assert store.load(RUN, "", "7") == 1


def test_a_result_that_is_not_there_is_missing(store: ResultStore) -> None:
    store.save(RUN, "price", "3", 1)
    for run_id, task, index in ((OTHER_RUN, "price", "3"), (RUN, "invoice", "3"), (RUN, "price", "30")):
        assert store.find(run_id, task, index) is None
        with pytest.raises(ResultMissing, match=rf"{run_id}/{task}-{index}"):
            store.load(run_id, task, index)


HOSTILE = [
    ("../" + "a" * 29, "price", "3"),
    (RUN.upper(), "price", "3"),
    (RUN + "\n", "price", "3"),
    ("", "price", "3"),
    (RUN, "../price", "3"),
    (RUN, "a/b", "3"),
    (RUN, "a-b", "3"),
    (RUN, "a\0", "3"),
    (RUN, "price", "../3"),
    (RUN, "price", ".."),
    (RUN, "price", "3/4"),
    (RUN, "price", "3.json-x.part"),
    (RUN, "price", ""),
    (RUN, "memory://x/price", "3"),
]


@pytest.mark.parametrize(("run_id", "task", "index"), HOSTILE)
def test_no_name_leads_out_of_the_folder(store: ResultStore, url: str, run_id: str, task: str, index: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.save(run_id, task, index, 1),
        lambda: store.find(run_id, task, index),
        lambda: store.load(run_id, task, index),
    ]
    for use in uses:
        with pytest.raises(ResultStoreError, match="cannot be part of the name"):
            use()
    assert not files_of(url)


class TestLimit:
    def test_a_result_as_large_as_the_limit_is_taken(self, store: ResultStore) -> None:
        store.save(RUN, "price", "3", "x" * 998)
        assert store.load(RUN, "price", "3") == "x" * 998

    @pytest.mark.parametrize(("value", "size"), [("x" * 999, "1,001"), (Odd("x" * 2_000), r"2,\d\d\d")])
    def test_beyond_it_nothing_is_written_and_the_error_says_what_to_do(
        self, store: ResultStore, url: str, value: Any, size: str
    ) -> None:
        with pytest.raises(ResultTooLarge, match=rf"task price .*{size} bytes.*1,000.*max_result_bytes"):
            store.save(RUN, "price", "3", value)
        assert not files_of(url)

    def test_pickling_stops_there(self, store: ResultStore) -> None:
        pickled: list[int] = []

        class Part:
            def __init__(self, n: int) -> None:
                self.n = n

            def __reduce__(self) -> Any:
                pickled.append(self.n)
                return bytes, (os.urandom(70_000),)  # more than pickle keeps to itself before it writes

        with pytest.raises(ResultTooLarge):
            store.save(RUN, "price", "3", [Part(n) for n in range(100)])
        assert len(pickled) < 5


def test_what_does_not_pickle_says_so_by_name_of_task_and_type(store: ResultStore, url: str) -> None:
    with pytest.raises(ResultStuck, match=r"task price, a lock, cannot be pickled"):
        store.save(RUN, "price", "3", threading.Lock())
    assert not files_of(url)


class TestOnDisk:
    def test_a_file_is_whole_before_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The move is the last step; a worker killed before it leaves nothing that is found."""
        store = ResultStore(f"file://{tmp_path}", "shop", 1_000)
        store.save(RUN, "price", "3", "before")

        def killed(source: str, target: str) -> None:
            assert Path(source).parent == Path(target).parent, "only within a folder is a move one step"
            assert msgspec.json.decode(Path(source).read_bytes()) == "after"
            raise KeyboardInterrupt

        monkeypatch.setattr("shutil.move", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(RUN, "price", "3", "after")
        assert store.load(RUN, "price", "3") == "before"
        assert [path.name for path in (tmp_path / "shop" / RUN).iterdir()] == ["price-3.json"]

    def test_half_a_file_of_a_killed_worker_is_not_found(self, tmp_path: Path) -> None:
        store = ResultStore(f"file://{tmp_path}", "shop", 1_000)
        folder = tmp_path / "shop" / RUN
        folder.mkdir(parents=True)
        (folder / f"price-3.json-{uuid.uuid4().hex}.part").write_text('{"half":')
        assert store.find(RUN, "price", "3") is None

    def test_a_place_that_cannot_be_written_is_named_with_the_cause(self, tmp_path: Path) -> None:
        (tmp_path / "results").write_text("a file where a folder should be")
        store = ResultStore(f"file://{tmp_path}/results", "shop", 1_000)
        with pytest.raises(ResultStoreError, match=r"price-3\.json: cannot be written: \w+Error.*setting `results`"):
            store.save(RUN, "price", "3", 1)

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        store = ResultStore(f"file://{tmp_path}", "shop", 1_000)
        store.save(RUN, "price", "3", 1j)
        (tmp_path / "shop" / RUN / "price-3.pickle").write_bytes(pickle.dumps(1j)[:-2])
        with pytest.raises(ResultStoreError, match=r"price-3\.pickle"):
            store.load(RUN, "price", "3")

    def test_saving_in_many_threads_leaves_one_whole_file(self, tmp_path: Path) -> None:
        store = ResultStore(f"file://{tmp_path}", "shop", 100_000)
        values = [str(n) * 20_000 for n in range(4)]
        threads = [threading.Thread(target=store.save, args=(RUN, "price", "3", value)) for value in values * 5]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.load(RUN, "price", "3") in values
        assert files_of(f"file://{tmp_path}") == {f"shop/{RUN}/price-3.json"}


class TestUrl:
    @pytest.mark.parametrize("url", ["", "no-such-protocol://place/x"])
    def test_what_is_no_store_here_is_refused_at_once(self, url: str) -> None:
        with pytest.raises(SettingsError) as caught:
            ResultStore(url, "shop", 1_000)
        assert caught.value.key == "results"

    def test_credentials_are_refused_here_too(self) -> None:
        with pytest.raises(SettingsError) as caught:
            ResultStore("s3://key:hunter2@bucket/x", "shop", 1_000)
        assert "hunter2" not in f"{caught.value} {caught.value!r}"

    @pytest.mark.parametrize("app", ["..", ".", "", "a/b"])
    def test_an_app_cannot_lead_out_of_the_store(self, tmp_path: Path, app: str) -> None:
        with pytest.raises(SettingsError, match="app"):
            ResultStore(f"file://{tmp_path}", app, 1_000)
