"""Installed, everything is the package sed_sr, and no name of it stands in another project's way."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("options", "data", "models", "utils")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools writes beside the sources."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (*FOLDERS, "sed_sr"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", root, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = root.glob("*.whl")
    return built


def test_wheel_has_every_file_that_the_code_reads(wheel):
    expected = {
        f"sed_sr/{file.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == {*expected, "sed_sr/__init__.py"}


def test_another_project_keeps_its_own_utils_data_and_models(wheel, tmp_path):
    for name in FOLDERS:
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    program = (
        f"import sys; sys.path.append({str(wheel)!r})\n"
        "import sed_sr.utils.evaluation.tiles\n"
        "from sed_sr.models.rrdb import RRDBNet\n"
        "import options, data, models, utils\n"
        "assert all(module.MINE for module in (options, data, models, utils))\n"
        "print(RRDBNet.__module__, sed_sr.utils.evaluation.tiles.__file__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sed_sr.models.rrdb", f"{wheel}/sed_sr/utils/evaluation/tiles.py"]
