"""Documentation: links lead somewhere, commands are accepted, files and options exist, and the EDSR example works."""

import argparse
import ast
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

from sed_sr.options.arguments import options_from
from sed_sr.options.describe import commented_options
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "benchmarks/RESULTS.md",
        ROOT / "pretrained/README.md",
    )
)
EXTENDING = "docs/extending.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "bibtex", "diff", "mermaid", "python", "text", "yaml"}
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = "benchmarks|data|docs|examples|models|options|sed_sr|tests|utils"
# Commands of other programs that these pages may show; their arguments are not checked.
OTHER_PROGRAMS = {"git", "source", "wandb"}
WITHOUT_ARGUMENTS = {"options/describe.py"}  # has no parser, and writes a file when it is run
NO_RECIPE = {
    "name": "test",
    "generator": {"type": "rrdb"},
    "discriminator": None,
    "losses": {"gan": None},
}  # of test.py
CREATED_BY_THE_EXAMPLE = "edsr"  # files and options that exist only after its diff was applied


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """Fenced blocks of a language: line number in the page, and text."""
    text = text_of(page)
    for found in FENCE.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start()) + 2, found[2]


def commands(page: str) -> Iterator[tuple[int, list[str]]]:
    """Commands of the bash blocks: line number in the page, and words."""
    for first_line, block in blocks(page, "bash"):
        number, joined = first_line, ""
        for line in block.splitlines():
            joined += line.removesuffix("\\")
            if not line.endswith("\\"):
                for command in joined.split("&&"):
                    words = shlex.split(command, comments=True)
                    if words:
                        yield number, words
                joined = ""
            number += 1
        assert not joined, f"{page}:{number}: the last command of the block is not complete"


def prose(page: str) -> str:
    return FENCE.sub("", text_of(page))


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_is_checked(page):
    found = FENCE.findall(text_of(page))
    assert {language for language, _ in found} <= LANGUAGES
    assert len(re.findall(r"^ *```", text_of(page), re.MULTILINE)) == 2 * len(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_something(page):
    assert not broken_links(prose(page), folder=(ROOT / page).parent, page=ROOT / page)


def test_broken_links_are_noticed():
    links = ("missing.md", "docs/data.md#missing", "#missing", "docs/data.md", "#install", "https://example.org")
    text = " ".join(f"[text]({link})" for link in links)
    assert broken_links(text, folder=ROOT, page=ROOT / "README.md") == list(links[:3])


def broken_links(text: str, *, folder: Path, page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which names what was renamed
def test_files_modules_and_options_that_are_named_exist(page):
    assert not missing_names(prose(page))


def test_missing_names_are_noticed():
    wrong = ("models/missing.py", "options/missing_*.yml", "utils.missing", "train.total_step=1", "python missing.py",
             "python -m data.missing", "make missing")  # fmt: skip
    right = (
        "models/losses/gan.py",
        "options/*.yml",
        "utils.weights",
        "train.total_steps=1",
        "train.py",
        "python train.py",
    )
    assert missing_names(" ".join(f"`{name}`" for name in (*wrong, *right))) == list(wrong)


def missing_names(text: str) -> list[str]:
    """Files, modules, options and commands in inline code that do not exist."""
    missing = []
    for code in INLINE_CODE.findall(text):
        word = code.split("=")[0].split(": ")[0]
        if code.startswith(("python ", "torchrun ", "make ")):
            exists = target_exists(shlex.split(code))
        elif re.fullmatch(rf"({FOLDERS})/\S*", code):
            exists = any(ROOT.glob(code.rstrip("/")))
        elif re.fullmatch(rf"({FOLDERS})(\.[a-zA-Z_]\w*)+", code) and not code.endswith(".yml"):
            module, _, name = code.rpartition(".")
            file = module_file(module)
            exists = bool(module_file(code) or (file and re.search(rf"\b{name}\b", file.read_text("utf-8"))))
        elif word.partition(".")[0] in Options.model_fields and re.fullmatch(r"\w+(\.\w+)+", word):
            exists = word.endswith((".py", ".log")) or is_option(word)
        else:
            exists = True
        if not exists:
            missing.append(code)
    return missing


def is_option(key: str) -> bool:
    try:
        commented_options(key)
    except UserError:
        return False
    return True


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next(
        (file for file in (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py") if file.exists()), None
    )


def target_exists(words: list[str]) -> bool:
    """Whether the script, module or make target that a command in a sentence names is there."""
    if words[0] == "make":
        return {word for word in words[1:] if "=" not in word} <= set(make_targets())
    if "-m" in words:
        return module_file(words[words.index("-m") + 1]) is not None
    return all((ROOT / word).exists() for word in words if word.endswith(".py"))


def make_targets() -> list[str]:
    return re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page):
    for line, block in blocks(page, "python"):
        exec(compile(ast.parse(block), f"{page}:{line}", "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_yaml_blocks_are_recipes(page, tmp_path):
    for _, block in blocks(page, "yaml"):
        recipe = tmp_path / "recipe.yml"
        recipe.write_text(block.replace("extends: ", f"extends: {ROOT}/options/"), encoding="utf-8")
        options_from(argparse.Namespace(opt=recipe, set=[]))


@pytest.mark.parametrize(
    ("page", "words"),
    [pytest.param(page, words, id=f"{page}:{line}") for page in PAGES for line, words in commands(page)],
)
def test_command_is_accepted(page, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    accept(words)


def accept(words: list[str]) -> None:
    """Parse a command of a page without running it. Fails where it would be refused."""
    program, *arguments = words
    arguments = [match for word in arguments for match in expanded(word)]
    if program in ("python", "python3", "torchrun"):
        accept_python(arguments if program != "torchrun" else ["-m", "torch.distributed.run", *arguments])
    elif program == "sbatch":
        script, recipe, *more = arguments
        assert Path(script).exists()
        accept_python(["train.py", "--opt", recipe, *more])
    elif program == "make":
        assert set(arguments) <= set(make_targets())
    elif program == "bash":
        script, *more = arguments
        assert Path(script).exists()
        if Path(script).with_suffix(".py").exists():  # which it starts
            accept_python([str(Path(script).with_suffix(".py")), *more])
    elif program == "pip":
        files = [value for flag, value in itertools.pairwise(arguments) if flag in ("-c", "-r", "-e")]
        assert arguments[0] == "install"
        assert all(Path(file).exists() for file in files)
    else:
        assert program in OTHER_PROGRAMS, f"no rule how to check {program}"


def expanded(word: str) -> list[str]:
    """What a shell makes of a word with a wildcard."""
    if "*" not in word:
        return [word]
    found = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(word))
    assert found, f"{word} matches no file"
    return found


def accept_python(arguments: list[str]) -> None:
    if arguments[0] == "-m" and arguments[1].startswith("torch.distributed."):
        launched = torchrun_parser().parse_args(arguments[2:])
        return accept_python([launched.training_script, *launched.training_script_args])
    if arguments[:2] == ["-m", "venv"]:
        return None
    if arguments[:2] == ["-m", "pytest"]:
        assert all(Path(path).exists() for path in arguments[2:])
        return None
    if arguments[0] == "-m":
        file, arguments = module_file(arguments[1]), arguments[2:]
    else:
        file, arguments = ROOT / arguments[0], arguments[1:]
    assert file is not None
    assert file.exists()
    if str(file.relative_to(ROOT)) in WITHOUT_ARGUMENTS:
        assert not arguments
        return None
    parsed = parse(file, arguments)
    if not any(CREATED_BY_THE_EXAMPLE in word for word in arguments):
        accept_options(parsed)
    return None


class Parsed(BaseException):
    """Ends a command after it has parsed its arguments. Not an Exception, which commands catch."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        self.namespace = namespace


def parse(file: Path, arguments: list[str]) -> argparse.Namespace:
    """What a script's own parser makes of the arguments; the script ends there."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        raise Parsed(parse_args(parser, *given))

    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(sys, "argv", [str(file), *arguments]),
        patch.object(sys, "path", [*sys.path]),
        patch.object(threading, "excepthook", threading.excepthook),
        patch.dict(os.environ),
    ):
        try:
            runpy.run_path(str(file), run_name="__main__")
        except Parsed as parsed:
            return parsed.namespace
        except SystemExit as exit:
            if exit.code in (0, None) and any(word.startswith("--help") for word in arguments):
                return argparse.Namespace()
            raise AssertionError(f"{file.name} refuses {shlex.join(arguments)}") from exit
    raise AssertionError(f"{file.name} has parsed no arguments")


def accept_options(parsed: argparse.Namespace) -> None:
    """Load the recipes that parsed arguments name, with their --set."""
    given = vars(parsed)
    recipes = given.get("recipes") or ([given["opt"]] if "opt" in given else [])
    for recipe in recipes:
        arguments = argparse.Namespace(**{**given, "opt": recipe, "set": given.get("set") or []})
        options_from(arguments, default=NO_RECIPE)


@pytest.mark.parametrize(
    "command",
    [
        "python missing.py",
        "python -m data.prepare.missing --input a",
        "python train.py --opt options/missing.yml",
        "python train.py --opt options/train_rrdb_P.yml --set train.total_step=1",
        "python train.py --opt options/train_rrdb_P.yml --resum auto",
        "python test.py --weights a.pth --benchmarks Set5 --input b",
        "python -m utils.weights fetch",
        "torchrun --nproc_per_node=4 train.py",
        "torchrun --nproc=4 --bad train.py --opt options/train_rrdb_P.yml",
        "python benchmarks/ablation.py options/ablation/*missing*.yml --output a",
        "sbatch examples/missing.sh options/train_rrdb_P.yml",
        "bash examples/reproduce_table1.sh --row RRDB+P --dry",
        "bash examples/reproduce_table1.sh --rows RRDB",
        "make everything",
        "pip install -r missing.txt",
        "unknown --flag",
    ],
)
def test_wrong_command_is_noticed(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, UserError, SystemExit)):
        accept(shlex.split(command))


# The network and the steps of a test; of two values that --set gives, the last one counts.
SMALL = ("generator.features=8", "generator.blocks=1", "dataset.hr_patch_px=64", "dataloader.num_workers=0",
         "train.total_steps=2", "device=cpu")  # fmt: skip
# Exports to all formats in one process: for each format the largest difference, or the error message.
EXPORT_ALL = """
import json, pathlib, sys
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.export import FORMATS, export
from sed_sr.utils.weights.generator_file import open_generator_file
found = {}
for name, target in FORMATS.items():
    try:
        found[name] = export(open_generator_file(sys.argv[1]), target, pathlib.Path("exported" + target.suffix))
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
GENERATOR_OF = """
import train
from sed_sr.options.arguments import options_from
print(options_from(train.parse_arguments()).generator.type)
"""


@pytest.fixture
def copy(tmp_path: Path, prepared: Path) -> Path:
    """A copy of the project, with the photographs where the demo puts them."""
    for folder in ("options", "models", "data", "utils", "sed_sr"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    for script in ("train.py", "test.py"):
        shutil.copy(ROOT / script, tmp_path)
    (tmp_path / "demo").symlink_to(prepared)
    return tmp_path


def run(*words: object, cwd: Path) -> str:
    """Run a command in the copy, without this repository on any path; return its stdout."""
    words = [sys.executable if word == "python" else str(word) for word in words]
    # git apply would look for a repository in the folders above, and then apply nothing
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "GIT_CEILING_DIRECTORIES": str(cwd.parent)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_generator_example_is_short_and_trains_scores_and_exports(copy):
    ((_, diff),) = blocks(EXTENDING, "diff")
    apply, describe, train, test, train_sed = [
        words
        for _, words in commands(EXTENDING)
        if CREATED_BY_THE_EXAMPLE in " ".join(words) or "options.describe" in words
    ]
    assert len(re.findall(r"^\+(?!\+\+)", diff, re.MULTILINE)) < 60
    (copy / "edsr.diff").write_text(diff, encoding="utf-8")
    for command in (apply, describe, [*train, *(f"--set={setting}" for setting in SMALL)]):
        run(*command, cwd=copy)
    assert '"edsr"' in (copy / "options/schema.json").read_text("utf-8")

    output = run(*test, "--output_path", "results", cwd=copy)
    assert 'train_edsr_psnr: {"type": "edsr", "features": 8, "blocks": 1}' in output
    run_folder = copy / "checkpoint/train_edsr_psnr"
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text("utf-8").splitlines())
    (validated,) = [line for line in lines if line["kind"] == "validation/Photos"]
    results = json.loads((copy / "results/results.json").read_text("utf-8"))
    scores = {each["label"]: each["benchmarks"]["Photos"]["mean"] for each in results["weights"]}
    for metric in ("psnr", "ssim"):  # of the network that was trained
        assert scores["train_edsr_psnr"][metric] == pytest.approx(validated[metric], abs=1e-6)
        assert scores["train_edsr_psnr"][metric] != scores["bicubic"][metric]
    assert run("python", "-c", GENERATOR_OF, *train_sed[2:], cwd=copy).strip() == "edsr"

    exported = json.loads(run("python", "-c", EXPORT_ALL, run_folder / "generator_latest.pth", cwd=copy))
    assert "from its tensors alone" in exported.pop("pth-esrgan")
    assert exported.keys() == {"safetensors", "pth-basicsr", "onnx", "torchscript"}
    assert all(difference < 1e-4 for difference in exported.values()), exported
