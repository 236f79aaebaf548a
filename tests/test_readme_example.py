"""The README's generator of one's own: what it shows can be applied, trained, scored and taken elsewhere as it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The network and the steps of a test; of two values that --set gives, the last one counts.
SMALL = ("generator.features=8", "generator.blocks=1", "dataset.lr_patch_px=16", "dataloader.num_workers=0",
         "train.total_steps=2", "device=cpu")  # fmt: skip
# Every export that the project knows, in one process: its name, and the largest difference or why there is none.
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


def blocks_of_the_example() -> tuple[str, list[list[str]]]:
    """The diff, and the commands behind it, word by word."""
    text = (ROOT / "README.md").read_text("utf-8").partition("**A generator.**")[2]
    diff, commands = re.search(r"```diff\n(.*?)^```.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL).groups()
    return diff, [shlex.split(line) for line in commands.replace("\\\n", "").splitlines()]


@pytest.fixture
def copy(tmp_path: Path, prepared: Path) -> Path:
    """The project as somebody has it who is about to change it, with photographs where the demo puts them."""
    for room in ("options", "models", "data", "utils"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "test.py"):
        shutil.copy(ROOT / script, tmp_path)
    (tmp_path / "demo").symlink_to(prepared)
    return tmp_path


def run(*words: object, cwd: Path) -> str:
    """Runs a command in the copy, and in nothing but the copy; returns what it printed."""
    words = [sys.executable if word == "python" else str(word) for word in words]
    # git would look for a repository above, and apply nothing where it finds one
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "GIT_CEILING_DIRECTORIES": str(cwd.parent)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_generator_of_the_readme_is_short_and_trains_scores_and_exports(copy):
    diff, (apply, describe, train, test) = blocks_of_the_example()
    assert len(re.findall(r"^\+(?!\+\+)", diff, re.MULTILINE)) < 60
    (copy / "edsr.diff").write_text(diff, encoding="utf-8")
    for command in (apply, describe, [*train, *(f"--set={setting}" for setting in SMALL)]):
        run(*command, cwd=copy)
    assert '"edsr"' in (copy / "options/schema.json").read_text("utf-8")

    told = run(*test, "--output_path", "results", cwd=copy)
    assert 'train_edsr_psnr: {"type": "edsr", "features": 8, "blocks": 1}' in told
    run_folder = copy / "checkpoint/train_edsr_psnr"
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text("utf-8").splitlines())
    (validated,) = [line for line in lines if line["kind"] == "validation/Photos"]
    results = json.loads((copy / "results/results.json").read_text("utf-8"))
    scores = {each["label"]: each["benchmarks"]["Photos"]["mean"] for each in results["weights"]}
    for metric in ("psnr", "ssim"):  # of the network that was trained
        assert scores["train_edsr_psnr"][metric] == pytest.approx(validated[metric], abs=1e-6)
        assert scores["train_edsr_psnr"][metric] != scores["bicubic"][metric]

    exported = json.loads(run("python", "-c", EXPORT_ALL, run_folder / "generator_latest.pth", cwd=copy))
    assert "by its tensors alone" in exported.pop("pth-esrgan")
    assert exported.keys() == {"safetensors", "pth-basicsr", "onnx", "torchscript"}
    assert all(difference < 1e-4 for difference in exported.values()), exported
