"""Rows of Table 1 are trained, scored and listed beside the paper's; stopped or killed, the same command goes on."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import benchmarks.forecast
from examples import reproduce_table1
from examples.reproduce_table1 import RECIPES, divide, is_scored
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.evaluation.paper_scores import PAPER
from tests.conftest import ROOT, figures, newest_step, not_outlived, wait_until

SCRIPT = ROOT / "examples/reproduce_table1.sh"
TINY = ("generator={type: rrdb, features: 8, blocks: 1, growth: 4}", "discriminator.features=8", "device=cpu")
SHORT = (
    "train={total_steps: 4, total_batch_size: 2, save_every_steps: 2, log_every_steps: 1}",
    "dataset.hr_patch_px=64",
    "dataloader.num_workers=0",
    "validation={benchmarks: [Set5], metrics: [psnr], every_steps: 4}",
    "test={benchmarks: [Set5, Photos], metrics: [psnr, ssim]}",
    "losses.perceptual={weights: random}",
    "semantic_extractor.weights=random",
)


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def arguments(*rows: str, more: tuple[str, ...] = ()) -> list[str]:
    return ["--rows", *rows, "--data_test_root", "Tests", *settings(*TINY, *SHORT, *more)]


@pytest.fixture
def place(workshop: Path, prepared: Path) -> Path:
    """A workshop with published weights for tiny networks, and two benchmarks, one of which is in the paper."""
    (workshop / "pretrained").mkdir()
    torch.save({"params": RRDBNet(features=8, blocks=1, growth=4).state_dict()}, workshop / "pretrained/RRDB.pth")
    (workshop / "Tests").mkdir()
    for name in ("Set5", "Photos"):
        (workshop / "Tests" / name).symlink_to(prepared / "Evaluation/Photos")
    return workshop


@pytest.fixture
def script(place: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Runs the script in this process, with quickly forked commands; returns these."""
    called = []

    def call(*words: str) -> int:
        called.append(list(words))
        done = command(*words, cwd=place)
        sys.stderr.write(done.stderr)
        return done.returncode

    def run(*words: str) -> list[list[str]]:
        called.clear()
        monkeypatch.setattr(sys, "argv", ["reproduce_table1.py", *words])
        assert reproduce_table1.main() == 0
        return list(called)

    monkeypatch.setattr(reproduce_table1, "command", call)
    monkeypatch.chdir(place)
    return run


def test_every_row_of_table_1_has_its_recipe():
    assert list(RECIPES) == list(PAPER)[list(PAPER).index("ESRGAN") :]
    for row, recipe in RECIPES.items():
        assert load_options(ROOT / f"options/{recipe}.yml").test.paper_row == row


@pytest.mark.parametrize(
    ("total", "size", "gpus", "expected"),
    [
        (32, None, 4, (4, 8, 1)),  # the paper's
        (32, None, 1, (1, 8, 4)),
        (32, None, 6, (4, 8, 1)),  # six cannot share 32
        (16, 16, 4, (1, 16, 1)),  # a loss that depends on the batch of a process
        (64, 16, 8, (4, 16, 1)),
        (32, "auto", 8, (8, 4, 1)),
    ],
)
def test_total_batch_size_of_a_recipe_holds_on_any_number_of_gpus(total, size, gpus, expected):
    given = {"train.total_batch_size": total, "dataloader.batch_size": size}
    options = load_options(
        ROOT / "options/train_rrdb_P.yml", [Override(key, value, key) for key, value in given.items()]
    )
    processes, batches = divide(options, gpus)
    assert (processes, batches.size, batches.per_step) == expected
    assert processes * batches.size * batches.per_step == total


def test_rows_are_trained_scored_listed_beside_the_papers_and_then_left_alone(place, script, capsys):
    rows = ("RRDB+P", "RRDB+U+SeD")
    script(*arguments(*rows), "--dry-run")
    forecasts = re.findall(r"4 steps of .* h; (\S+) GB", capsys.readouterr().out)
    assert not (place / "checkpoint").exists()

    trained, _, scored = script(*arguments(*rows), "--output_path", "table")
    assert trained[:3] == [str(ROOT / "train.py"), "--opt", str(ROOT / "options/train_rrdb_P.yml")]
    assert scored[0] == str(ROOT / "test.py")
    for row, forecast in zip(rows, forecasts, strict=True):
        log = (place / f"checkpoint/{RECIPES[row]}/train.log").read_text()
        assert "starts from pretrained/RRDB.pth" in log
        assert f"about {forecast} GB needed" in log  # what the run itself finds, with its data and weights
    found = json.loads((place / "table/results.json").read_text())["weights"]
    means = {each["label"]: {name: scores["mean"] for name, scores in each["benchmarks"].items()} for each in found}
    with (place / "table/table1.csv").open() as file:
        lines = {(line["row"], line["benchmark"], line["metric"]): line for line in csv.DictReader(file)}
    assert len(lines) == 2 * 2 * 3
    for (row, benchmark, metric), line in lines.items():
        assert line["ours"] == str(means[row][benchmark].get(metric, ""))
        paper = PAPER[row].get(benchmark)
        assert line["paper"] == (str(getattr(paper, metric)) if paper else "")
    u = means["RRDB+U+SeD"]["Set5"]
    table = (place / "table/table1.md").read_text()
    assert "| row |  | Set5 | Photos |" in table
    assert f"| **RRDB+U+SeD** | ours | - / {u['psnr']:.2f} / {u['ssim']:.3f} | - / {u['psnr']:.2f}" in table
    assert "|  | paper | 0.069 / 31.73 / 0.880 | - / - / - |" in table

    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert script(*arguments(*rows), "--output_path", "table") == []
    assert "0.069 / 31.73 / 0.880" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_table_holds_for_its_command_and_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce_table1.py", "--rows", "RRDB+P"])
    row = reproduce_table1.find_row("RRDB+P", reproduce_table1.parse_arguments())
    row.weights.parent.mkdir(parents=True)
    for path in (row.weights, tmp_path / "table1.md"):
        path.write_text("| a table |\n\npython test.py --weights 'a b'\n")
    os.utime(row.weights, (1, 1))
    words = ["test.py", "--weights", "a b"]
    assert is_scored(tmp_path / "table1.md", [row], words)
    assert not is_scored(tmp_path / "table1.md", [row], [*words, "--metrics", "psnr"])
    assert not is_scored(tmp_path / "missing.md", [row], words)
    os.utime(tmp_path / "table1.md", (0, 0))
    assert not is_scored(tmp_path / "table1.md", [row], words)


def test_killed_row_and_ctrl_c_end_the_script_and_the_same_command_goes_on(place, launch, script, monkeypatch):
    run = place / "checkpoint/train_rrdb_P"
    more = ("train.total_steps=100000", "validation.benchmarks=[]", "losses.perceptual=null")
    endless = [*arguments("RRDB+P", "RRDB+U", more=more), "--output_path", "table"]

    def killed_command(*words: str) -> int:
        process = launch(*words, cwd=place)
        with not_outlived(process):
            wait_until(lambda: newest_step(run) >= 2, process)
            process.kill()
            return process.wait()

    with monkeypatch.context() as patch:
        patch.setattr(reproduce_table1, "command", killed_command)
        with pytest.raises(UserError) as raised:
            script(*endless)
    words = shlex.join(["--opt", str(ROOT / "options/train_rrdb_P.yml"), "--set", "train.start_from=RRDB.pth"])
    assert str(raised.value).startswith(f"RRDB+P failed with exit code -9: python {ROOT / 'train.py'} {words}")
    assert "the same call of examples/reproduce_table1.sh continues" in str(raised.value)
    killed = newest_step(run)

    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", SCRIPT, *endless], cwd=place, env=env, start_new_session=True, text=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )  # fmt: skip
    with not_outlived(process):
        wait_until(lambda: newest_step(run) > killed, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "reproduce_table1.py: interrupted"
    with pytest.raises(ProcessLookupError):  # nothing of it runs any longer
        os.killpg(process.pid, 0)
    assert not (place / "checkpoint/train_rrdb_U").exists()
    stopped = newest_step(run)
    assert figures(run)[-1]["step"] == stopped > killed  # its last step was saved

    script(*endless, *settings(f"train.total_steps={stopped + 2}"))
    steps = [line["step"] for line in figures(run) if line["kind"] == "train"]
    assert steps == list(range(1, stopped + 3))  # none twice
    assert f"a training state at step {killed}" in (run / "train.log").read_text().replace(",", "")
    assert (place / "table/table1.md").exists()


def test_dry_run_shows_all_rows_and_writes_nothing(tmp_path, command):
    quick = settings(*TINY, "dataset.hr_patch_px=128", "discriminator.fusion=none", "losses.perceptual=null")
    done = command("examples/reproduce_table1.py", "--dry-run", "--out_root", "runs", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    rows = re.findall(
        r"^(\S+): ([\d,]+) steps of (\S+) s, (\S+) h; \S+ GB\n(\d+) pairs per step .*\n\$ (.*)$",
        done.stdout,
        re.MULTILINE,
    )
    assert [row for row, *_ in rows] == list(RECIPES)
    for row, steps, step_s, hours, pairs, words in rows:
        options = load_options(ROOT / f"options/{RECIPES[row]}.yml")
        assert int(steps.replace(",", "")) == options.train.total_steps
        assert int(pairs) == options.train.total_batch_size
        assert float(hours.replace(",", "")) == pytest.approx(
            options.train.total_steps * float(step_s) / 3600, rel=0.02
        )
        assert f"train.start_from={'SwinIR' if row.startswith('SwinIR') else 'RRDB'}.pth" in shlex.split(words)
    total = re.search(r"^total: (\S+) h", done.stdout, re.MULTILINE)
    assert total is not None
    assert float(total[1].replace(",", "")) == pytest.approx(
        sum(float(hours.replace(",", "")) for _, _, _, hours, _, _ in rows), rel=0.01
    )
    assert "without images of Set5, Set14, Urban100, Manga109, DIV2K, which Evaluation lacks" in done.stdout


def test_forecast_on_a_cpu_is_a_step_of_one_pair_times_the_pairs_of_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = []

    def durations_s(once, steps, device):
        taken.append(once())
        return [0.5]

    monkeypatch.setattr(benchmarks.forecast, "durations_s", durations_s)
    overrides = [Override.parse(text) for text in (*TINY, "losses.perceptual=null", "dataset.hr_patch_px=64")]
    recipe = ROOT / "options/train_rrdb_P.yml"
    _, batches = divide(load_options(recipe, overrides), 1)
    (tmp_path / "checkpoint/train_rrdb_P/states").mkdir(parents=True)
    (tmp_path / "checkpoint/train_rrdb_P/states/state_000290000.pth").touch()
    found = benchmarks.forecast.forecast(recipe, overrides, batches, device=torch.device("cpu"))
    assert (found.steps, found.step_s) == (10_000, 16.0)
    assert found.hours == pytest.approx(16 * 10_000 / 3600)
    assert len(taken) == 1


def test_rows_are_trained_by_a_process_for_each_gpu_that_can_share_a_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sys, "argv", ["reproduce_table1.py", "--set", "train.precision=bf16", "--out_root", "runs"])
    rows = {name: reproduce_table1.find_row(name, reproduce_table1.parse_arguments()) for name in ("RRDB+P", "ESRGAN")}
    assert rows["RRDB+P"].training[:3] == ("-m", "torch.distributed.run", "--standalone")
    assert rows["RRDB+P"].training[3:6] == ("--nproc_per_node=4", str(ROOT / "train.py"), "--opt")
    assert rows["ESRGAN"].training[:2] == (str(ROOT / "train.py"), "--opt")  # one batch, which is not shared
    for row in rows.values():
        assert row.training[-6:] == ("--set", "train.precision=bf16", "--out_root", "runs", "--resume", "auto")
        assert row.weights.parent == Path("runs") / RECIPES[row.name]


def test_rows_that_would_share_a_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce_table1.py", "--rows", "RRDB+P", "RRDB+U", "--set", "name=mine"])
    with pytest.raises(UserError, match=r"a name of its own; they are checkpoint.mine, checkpoint.mine"):
        reproduce_table1.main()
