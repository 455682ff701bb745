"""engine.loader: handlers by name, file or folder, and what is said of one that does not load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.command_errors import HandlerError
from engine.errors import DeclarationError
from engine.loader import Place, load, places

FLOW = "from engine import flow, on\n\n\n@flow(on('orders'))\ndef {name}() -> None: ...\n"


@pytest.fixture(autouse=True)
def imports_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Forget what a test imported, and where it was found."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below the test's folder."""

    def write_text(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write_text


Write = Callable[[str, str], Path]


def test_a_file_is_a_module_of_its_folder(write: Write, tmp_path: Path) -> None:
    file = write("unit_a.py", FLOW.format(name="one"))
    assert places([str(file)]) == [Place("unit_a", str(tmp_path))]
    assert load([str(file)])["one"].module == "unit_a"


def test_a_folder_is_all_its_modules(write: Write, tmp_path: Path) -> None:
    write("flows/unit_a.py", FLOW.format(name="one"))
    write("flows/unit_b.py", FLOW.format(name="two"))
    write("flows/notes.txt", "")
    assert sorted(load([str(tmp_path / "flows")])) == ["one", "two"]


def test_a_file_of_a_package_goes_by_its_full_name(write: Write, tmp_path: Path) -> None:
    write("unit_outer/__init__.py", "")
    write("unit_outer/inner/__init__.py", "")
    write("unit_outer/inner/shared.py", "NAME = 'relative'\n")
    write("unit_outer/inner/unit_a.py", "from .shared import NAME\n" + FLOW.format(name="one"))
    assert places(["unit_outer/inner/unit_a.py"]) == [Place("unit_outer.inner.unit_a", str(tmp_path))]
    assert load(["unit_outer/inner"])["one"].module == "unit_outer.inner.unit_a"


def test_a_module_is_found_by_its_name_from_where_one_stands(write: Write) -> None:
    write("unit_pkg/__init__.py", "")
    write("unit_pkg/unit_a.py", FLOW.format(name="one"))
    assert list(load(["unit_pkg.unit_a"])) == ["one"]


def test_naming_a_module_twice_loads_it_once(write: Write, tmp_path: Path) -> None:
    file = write("unit_a.py", FLOW.format(name="one"))
    assert places([str(file), "unit_a.py"]) == [Place("unit_a", str(tmp_path))]
    assert list(load([str(file), "unit_a"])) == ["one"]


def test_a_flow_that_is_only_imported_belongs_to_its_own_module(write: Write) -> None:
    write("unit_a.py", FLOW.format(name="one"))
    write("unit_b.py", "from unit_a import one\n" + FLOW.format(name="two"))
    assert {name: flow.module for name, flow in load(["unit_a.py", "unit_b.py"]).items()} == {"one": "unit_a", "two": "unit_b"}


@pytest.mark.parametrize(
    ("handler", "cause"),
    [
        ("missing.py", "there is no such file"),
        ("no_such_module_here", "there is no such module"),
        ("no_such_package_here.flows", "there is no such module"),
        ("empty", "the folder has no Python modules"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, handler: str, cause: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HandlerError, match=cause) as caught:
        load([handler])
    assert caught.value.handler == handler
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "cause", "line"),
    [
        ("x = 1\ndef broken(:\n", "SyntaxError", 2),
        ("x = 1\n1 / 0\n", "ZeroDivisionError", 2),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
        ("from engine import no_such_name\n", "ImportError", 1),
        ("\n\nraise RuntimeError('mine')\n", "RuntimeError: mine", 3),
    ],
)
def test_a_module_that_does_not_import_is_named_with_file_line_and_cause(
    write: Write, text: str, cause: str, line: int
) -> None:
    file = write("unit_broken.py", text)
    with pytest.raises(HandlerError, match=cause) as caught:
        load([str(file)])
    assert f"{file}:{line}" in str(caught.value)


def test_a_missing_dependency_is_told_from_a_missing_handler(write: Write) -> None:
    write("unit_a.py", "import no_such_library\n")
    with pytest.raises(HandlerError, match="it needs no_such_library, which is not installed") as caught:
        load(["unit_a.py"])
    assert caught.value.handler == "unit_a"


def test_a_declaration_error_comes_as_it_is(write: Write) -> None:
    file = write("unit_a.py", "from engine import flow, on\n@flow(on('a'))\ndef one(order): ...\n")
    with pytest.raises(DeclarationError, match="has no type") as caught:
        load([str(file)])
    assert (caught.value.file, caught.value.line) == (str(file), 2)


def test_two_flows_of_one_name_are_refused_with_both_places(write: Write) -> None:
    first, second = write("unit_a.py", FLOW.format(name="one")), write("unit_b.py", FLOW.format(name="one"))
    with pytest.raises(DeclarationError, match="there is a flow one already") as caught:
        load([str(first), str(second)])
    assert caught.value.file == str(second)
    assert f"{first}:4" in str(caught.value)


@pytest.mark.parametrize("name", ["calendar.py", "unit_taken.py"])
def test_a_file_whose_name_another_module_has_is_not_silently_that_module(write: Write, tmp_path: Path, name: str) -> None:
    import calendar  # noqa: F401  # the library's module of that name is imported already

    load([str(write("other/unit_taken.py", FLOW.format(name="two")))])
    file = write(name, FLOW.format(name="one"))
    with pytest.raises(HandlerError, match=r"another module of that name.*Rename"):
        load([str(file)])
