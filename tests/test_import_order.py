"""The folders have an order: a file imports from its own folder and from folders below it, never from above."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each folder with the folders that it may import from, beside itself.
BELOW = {
    "options": (),
    "data": ("options", "data/degradation"),  # data/batches.py degrades what was loaded
    "data/degradation": ("options", "data"),
    "data/prepare": ("options", "data", "data/degradation"),
    "models": ("options", "data", "data/degradation", "models/losses"),
    "models/losses": ("options", "models"),
    "utils/runtime": ("options", "data", "models"),
    "utils/weights": ("options", "data", "models", "utils/runtime"),
    "utils/evaluation": ("options", "data", "models", "models/losses", "utils/runtime", "utils/weights"),
    "utils/visualization": (
        "options",
        "data",
        "data/degradation",
        "data/prepare",
        "models",
        "utils/runtime",
        "utils/weights",
    ),
}
BELOW["utils/report"] = (*BELOW["utils/evaluation"], "utils/evaluation", "utils/visualization")
BELOW["utils/training"] = (*BELOW["data/degradation"], *BELOW["utils/report"])
BELOW["utils"] = (*BELOW["utils/training"], "utils/report", "utils/training")
BELOW["."] = (*BELOW["utils"], "data/prepare", "utils")
BELOW["benchmarks"] = BELOW["examples"] = BELOW["."]
READS_THE_OPTION_TREE = {
    "options",
    "data/build.py",
    "data/prepare/degrade.py",  # a command
    "examples/reproduce_table1.py",  # likewise
    "models/build.py",
    "utils/training",
    "utils",
    "utils/visualization/discriminator_file.py",  # builds the discriminator that a training state's options describe
}
FILES = sorted(file for folder in BELOW for file in (ROOT / folder).glob("*.py"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def folder(file: Path) -> str:
    return file.parent.relative_to(ROOT).as_posix()


def imported_files(file: Path) -> set[Path]:
    """The files of this project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        paths = [ROOT / Path(*dotted.split(".")[1:]).with_suffix(".py") for dotted in names if dotted[:7] == "sed_sr."]
        found.update(path for path in paths if path.is_file())
    return found


def test_every_folder_has_its_place():
    ignored = ("tests", "sed_sr")
    folders = {folder(file) for file in ROOT.rglob("*.py") if file.relative_to(ROOT).parts[0] not in ignored}
    assert {path for path in folders if not path.startswith(".") or path == "."} - {"docs"} == set(BELOW)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_file_imports_from_its_own_folder_and_those_below(file):
    allowed = {folder(file), *BELOW[folder(file)]}
    above = {name(target) for target in imported_files(file) if folder(target) not in allowed}
    assert not above, f"{name(file)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_import_by_another_name_than_the_package(file):
    """`import models.rrdb` would load a second copy beside `sed_sr.models.rrdb`."""
    tops = {path.split("/")[0] for path in BELOW} - {"."}
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for dotted in names:
            assert dotted.split(".")[0] not in tops - {"benchmarks", "examples"}, f"{name(file)} imports {dotted}"


def test_only_the_builders_and_the_runs_read_the_option_tree():
    schema = ROOT / "options" / "schema.py"
    readers = {file for file in FILES if schema in imported_files(file) and folder(file) != "benchmarks"}
    assert not {name(file) for file in readers if not {name(file), folder(file)} & READS_THE_OPTION_TREE}


def test_no_import_cycle():
    graph = {file: imported_files(file) for file in FILES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("file", [file for file in FILES if folder(file) != "benchmarks"], ids=name)
def test_an_import_in_a_function_says_why(file):
    lines = file.read_text().splitlines()
    for function in ast.walk(ast.parse(file.read_text())):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(node, ast.Import | ast.ImportFrom):
                around = lines[node.lineno - 3 : node.lineno]
                assert any("#" in line for line in around), f"{name(file)}:{node.lineno}: {around[-1].strip()}"
