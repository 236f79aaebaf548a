"""Many processes, one truth: the main process finds, decides and reads, and the others have what it has."""

import json
import shutil
from pathlib import Path

import torch
import yaml

from sed_sr.models.losses.perceptual import PerceptualLoss
from sed_sr.utils.training.run_folder import RunFolder
from tests.conftest import TRAIN, assert_equal_runs, finished, newest_step, not_outlived

ROOT = Path(__file__).parents[1]


def test_a_process_that_sees_no_state_goes_on_from_that_of_the_main_process(workshop, undisturbed, launch_ranks):
    """Of the second process, the run's folder is empty, on a disk of its own; it reads images and nothing else."""
    shutil.copytree(undisturbed / "two", workshop / "checkpoint/two")
    run, alone = workshop / "checkpoint/two", workshop / "alone"
    for step in (5, 6):
        RunFolder(run).state(step).unlink()
    assert newest_step(run) == 4
    alone.mkdir()
    images = ("--data_root", workshop / "DF2K", "--data_test_root", workshop / "Evaluation", "--set", "name=two")
    options = workshop / TRAIN[2]
    words = [str(options) if word == TRAIN[2] else word for word in TRAIN]
    processes = launch_ranks(*words, *images, folders=[workshop, alone])
    with not_outlived(*processes):
        said = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "a training state at step 4" in said[0][0]
    assert_equal_runs(run, undisturbed / "two")
    assert not (alone / "checkpoint/two/states").exists()


def test_start_up_opens_and_reads_nothing_a_second_time_for_a_second_process(workshop, command):
    """Of images, a state and weights: the main process reads as much as one that is alone, the other one nothing."""
    features = PerceptualLoss(layer_weights={"conv2_2": 1.0}, state=None).backbone.features
    (workshop / "pretrained").mkdir()
    # other than the random ones, which all processes would have of their own accord
    weights = {f"features.{name}": 2 * value for name, value in features.state_dict().items()}
    torch.save(weights, workshop / "vgg.pth")
    options = yaml.safe_load((workshop / "rrdb_P+SeD.yml").read_text())
    options["losses"]["perceptual"]["weights"] = str(workshop / "vgg.pth")
    options["train"] |= {"total_batch_size": 2, "ema_decay": 0.9}
    options["dataloader"] = {"num_workers": 0}
    (workshop / "options.yml").write_text(yaml.safe_dump(options))
    finished(command("train.py", "--opt", "options.yml", cwd=workshop))

    def counted(*, processes):
        done = command(ROOT / "tests/scripts/start_up.py", "counts.json", "options.yml",
                       "train.total_steps=6", cwd=workshop, processes=processes)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads((workshop / "counts.json").read_text())

    (alone,), (main, other) = counted(processes=1), counted(processes=2)
    assert alone["opened"] > 40
    assert main["opened"] == alone["opened"]
    assert other["opened"] == 0
    assert other["bytes"] < 0.1 * main["bytes"]


def test_images_that_came_or_left_are_told(workshop, prepared, command):
    for folder in ("train_sub", "train_sub_x4"):
        shutil.copytree(prepared / "DF2K" / folder, workshop / "mine" / folder)
    words = ("train.py", "--opt", "rrdb_psnr.yml", "--data_root", "mine", "--resume", "auto")
    finished(command(*words, "--set", "train.total_steps=2", cwd=workshop))
    names = sorted(path.name for path in (workshop / "mine/train_sub").glob("*.png"))
    for folder in ("train_sub", "train_sub_x4"):
        (workshop / "mine" / folder / names[0]).unlink()
        for name in ("new_1.png", "new_2.png"):
            shutil.copy(workshop / "mine" / folder / names[1], workshop / "mine" / folder / name)
    told = finished(command(*words, "--set", "train.total_steps=3", cwd=workshop))
    assert (
        f"the training set had {len(names)} HR images, has {len(names) + 1}: 2 added (train_sub/new_1.png, "
        f"train_sub/new_2.png), 1 removed (train_sub/{names[0]})"
    ) in told
    assert "the training set had" not in finished(command(*words, cwd=workshop))


def test_batch_of_a_step_is_shared_by_the_processes_that_there_are(workshop, command):
    one = finished(command("train.py", "--opt", "rrdb_psnr.yml", "--set", "train.total_batch_size=6", "--set",
                           "name=one", cwd=workshop))  # fmt: skip
    assert "6 pairs per step (1 process x batch size 2 x 3 accumulated)" in one
    for total, words in {5: "which 2 processes cannot share evenly: set it to a multiple of 2, such as 6",
                         6: "with dataloader.batch_size 2 and train.accumulate_batches 1 make 4"}.items():  # fmt: skip
        refused = command("train.py", "--opt", "rrdb_psnr.yml", "--set", f"train.total_batch_size={total}",
                          cwd=workshop, processes=2)  # fmt: skip
        assert refused.returncode != 0
        assert words in refused.stderr
