"""test.py from the command line: comparing weights, upscaling folders and photographs, and mistakes."""

import csv
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from sed_sr.data.images import read_rgb
from sed_sr.models.build import build_discriminator, build_extractor
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.recipe import load_options
from sed_sr.utils.weights.checkpoint import save_generator, save_state
from tests.conftest import ROOT

TEST = "test.py --benchmarks"
TINY = {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4}


def finished(done, *expected: str) -> str:
    assert done.returncode == 0, done.stderr + done.stdout
    for text in expected:
        assert text in done.stdout
    return done.stdout


def network_of(seed: int, *, scale: int = 4) -> RRDBNet:
    """Random weights whose output has contrast."""
    torch.manual_seed(seed)
    network = RRDBNet(scale=scale, features=8, blocks=1, growth=4)
    network.conv_last.weight.data *= 30
    network.conv_last.bias.data += 0.5
    return network.eval()


def weights_in(folder, name: str, *, seed: int = 0, step: int = 7, run: str = "tiny_P+SeD") -> str:
    """Save a checkpoint of random weights in the format of train.py."""
    network = network_of(seed)
    options = {"name": run, "generator": TINY, "test": {"paper_row": "RRDB+P+SeD"}}
    about = {"options": options, "step": step, "scale": 4, "scores": {}, "scored_step": None}
    save_generator(folder / name, params=network.state_dict(), params_ema=None, **about)
    return name


def results_of(folder) -> dict:
    """results.json, with the weights by label."""
    results = json.loads((folder / "results.json").read_text())
    return {**results, "weights": {weights["label"]: weights for weights in results["weights"]}}


def test_options_are_checked_before_pytorch_is_imported(command, tmp_path):
    code = (
        "import runpy, sys; sys.argv[:] = ['test.py', '--set', 'test.tiles=3']\n"
        f"try: runpy.run_path({str(ROOT / 'test.py')!r}, run_name='__main__')\n"
        "finally: print({'torch', 'cv2', 'scipy', 'numpy'} & sys.modules.keys())"
    )
    done = command("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert "test.tiles is not an option" in done.stderr


def test_weights_side_by_side(workshop, command):
    """Images, results.json, .csv, .md and the printed tables agree with each other."""
    weights_in(workshop, "a.pth", seed=1)
    weights_in(workshop, "b.pth", seed=2)
    words = f"{TEST} Photos --weights bicubic A=a.pth B=b.pth --metrics psnr ssim --output_path out"
    table = finished(command(*words.split(), cwd=workshop), "PSNR-Y", "A: RRDB (1 block", "95 %")
    out = workshop / "out"
    results = results_of(out)
    assert list(results["weights"]) == ["bicubic", "A", "B"]
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 9
    for label, weights in results["weights"].items():
        scores = weights["benchmarks"]["Photos"]
        mine = {row["image"]: float(row["psnr"]) for row in rows if row["weights"] == label}
        assert mine == pytest.approx({image: row["psnr"] for image, row in scores["images"].items()})
        assert scores["mean"]["psnr"] == pytest.approx(sum(mine.values()) / 3)
        assert f"{scores['mean']['psnr']:.2f}" in table
        assert f"{scores['mean']['psnr']:.2f}" in (out / "results.md").read_text()
        assert {path.name for path in (out / label / "Photos").iterdir()} == {"cat.png", "cup.png", "spoon.png"}
    difference = next(found for found in results["comparisons"] if (found["weights"], found["metric"]) == ("B", "psnr"))
    first, second = (results["weights"][label]["benchmarks"]["Photos"]["mean"]["psnr"] for label in ("bicubic", "B"))
    assert difference["mean_difference"] == pytest.approx(second - first)
    assert difference["interval_95"] is None  # needs five images
    page = (out / "report.html").read_text()
    assert "https://" not in page
    assert "http://www.w3.org" in page or "http://" not in page


def test_each_of_several_scales_has_its_benchmarks_table_and_bicubic(workshop, command):
    torch.save(network_of(0, scale=2).state_dict(), workshop / "x2.pth")
    weights_in(workshop, "x4.pth")
    shutil.copytree(workshop / "Evaluation/Photos", workshop / "Own/Photos")
    make = "-m data.prepare.lr_images --input Own/Photos/GTmod12 --output Own/Photos/LRbicx2 --scale 2"
    finished(command(*make.split(), cwd=workshop))
    words = f"{TEST} Photos --data_test_root Own --weights x4.pth bicubic x2.pth --metrics psnr --output_path out"
    table = finished(command(*words.split(), cwd=workshop), "scores, x2", "scores, x4")
    weights = results_of(workshop / "out")["weights"]
    found = {label: (each["scale"], *each["benchmarks"]) for label, each in weights.items()}
    assert found == {
        "tiny_P+SeD": (4, "Photos_x4"),
        "bicubic_x2": (2, "Photos_x2"),
        "bicubic_x4": (4, "Photos_x4"),
        "x2": (2, "Photos_x2"),
    }
    means = {
        label: weights[label]["benchmarks"][f"Photos{label[-3:]}"]["mean"]["psnr"]
        for label in ("bicubic_x2", "bicubic_x4")
    }
    assert means["bicubic_x2"] > means["bicubic_x4"] + 2
    assert all(f"{mean:.2f}" in table for mean in means.values())
    lr = read_rgb(workshop / "Own/Photos/LRbicx2/catx2.png")
    assert read_rgb(workshop / "out/x2/Photos_x2/cat.png").shape == (2 * lr.shape[0], 2 * lr.shape[1], 3)


def test_label_of_bicubic_at_one_of_several_scales_is_not_given_twice(workshop, command):
    torch.save(network_of(0, scale=2).state_dict(), workshop / "bicubic_x2.pth")
    torch.save(network_of(1, scale=2).state_dict(), workshop / "b.pth")
    weights_in(workshop, "x4.pth")
    words = "test.py --input Evaluation/Photos/LRbicx4 --output_path out --weights bicubic x4.pth"
    finished(command(*words.split(), "bicubic_x2.pth", cwd=workshop))
    assert list(results_of(workshop / "out")["weights"]) == ["bicubic_x2", "bicubic_x4", "tiny_P+SeD", "bicubic_x2.pth"]
    done = command(*words.split(), "bicubic_x2=b.pth", cwd=workshop)
    assert done.returncode == 2
    assert "bicubic and b.pth have the same label bicubic_x2" in done.stderr


@pytest.mark.parametrize("scale", [2, 3])
def test_weights_of_another_scale_than_the_recipe_are_refused(scale, workshop, command):
    torch.save(network_of(0, scale=scale).state_dict(), workshop / "other.pth")
    sizes = " ".join(f"--set generator.{size}" for size in ("features=8", "blocks=1", "growth=4"))
    recipe = f"--opt {ROOT}/options/train_rrdb_psnr.yml {sizes}"
    words = f"{TEST} Photos {recipe} --weights other.pth --metrics psnr"
    done = command(*words.split(), cwd=workshop)
    assert (done.returncode, done.stdout) == (2, "")
    found = "2 or 3" if scale == 3 else "2"
    assert re.search(rf"other.pth holds RRDB .*, x{found}, .* but the options ask for x4$", done.stderr.strip())


def test_checkpoint_needs_no_option_file(workshop, command, prepared):
    """The architecture is read from the checkpoint, and the image is the output of this network."""
    weights_in(workshop, "mine.pth")
    lr = read_rgb(prepared / "Evaluation/Photos/LRbicx4/catx4.png")
    Image.fromarray(lr).save(workshop / "photo.jpg", quality=95)
    done = command("test.py", "--weights", "mine.pth", "--input", "photo.jpg", cwd=workshop)
    finished(done, "RRDB (1 block", "tiny_P+SeD")
    sr = read_rgb(workshop / "results/tiny_P+SeD/tiny_P+SeD/input/photo.png")
    shown = torch.from_numpy(read_rgb(workshop / "photo.jpg")).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = (network_of(0)(shown).clamp(0, 1) * 255).round()[0].permute(1, 2, 0)
    assert expected.std() > 10
    assert (torch.from_numpy(sr).float() - expected).abs().max() <= 1


def test_weights_of_one_run_are_labelled_by_their_steps(workshop, command):
    weights_in(workshop, "generator_1.pth", step=1)
    weights_in(workshop, "generator_2.pth", step=2)
    words = f"{TEST} Photos --metrics psnr --output_path out --weights generator_1.pth generator_2.pth"
    finished(command(*words.split(), cwd=workshop))
    assert list(results_of(workshop / "out")["weights"]) == ["tiny_P+SeD_000000001", "tiny_P+SeD_000000002"]


def test_weights_of_one_name_are_labelled_by_their_files(workshop, command):
    """Exported in two formats; the label of the third one was given and is kept."""
    weights_in(workshop, "generator.pth", step=1)
    weights = torch.load(workshop / "generator.pth", weights_only=True)["params"]
    torch.save(weights, workshop / "x.pth")
    torch.save(weights, workshop / "x.pt")
    words = f"{TEST} Photos --metrics psnr --output_path out --weights x.pth x.pt x=generator.pth"
    finished(command(*words.split(), cwd=workshop))
    assert list(results_of(workshop / "out")["weights"]) == ["x.pth", "x.pt", "x"]


def test_bicubic_and_folders_without_ground_truth(workshop, command):
    """`bicubic` needs no weights; a folder of LR images is upscaled and not scored."""
    words = f"{TEST} Photos Evaluation/Photos/LRbicx4 --weights bicubic --metrics psnr ssim --output_path out"
    finished(command(*words.split(), cwd=workshop))
    results = results_of(workshop / "out")["weights"]["bicubic"]["benchmarks"]
    assert results["Photos"]["mean"]["psnr"] > 20
    assert results["LRbicx4"]["images"] == {f"{name}x4": {} for name in ("cat", "cup", "spoon")}
    scored, alone = (read_rgb(workshop / f"out/bicubic/{name}.png") for name in ("Photos/cat", "LRbicx4/catx4"))
    assert (scored == alone).all()


def test_tiles_and_precision_are_options(workshop, command):
    """Tiles change at most one level, bf16 little, and the self-ensemble something."""
    weights_in(workshop, "a.pth")
    (workshop / "photo.png").write_bytes((workshop / "Evaluation/Photos/GTmod12/cat.png").read_bytes())
    made = {}
    for name, flags in {
        "whole": "",
        "tiles": "--tile_px 64",
        "bf16": "--precision bf16",
        "ensemble": "--self_ensemble",
    }.items():
        words = f"test.py --weights a.pth --input photo.png --output_path {name} {flags}"
        finished(command(*words.split(), cwd=workshop))
        made[name] = read_rgb(workshop / name / "tiny_P+SeD/input/photo.png").astype(int)
    difference = {name: abs(image - made["whole"]) for name, image in made.items()}
    assert difference["tiles"].max() <= 1
    assert difference["bf16"].mean() < 1
    assert difference["ensemble"].any()


def test_tile_px_is_the_size_of_the_tiles(workshop, command):
    """Pixels with a large receptive field differ if the size of the tiles does."""
    weights_in(workshop, "a.pth")
    payload = torch.load(workshop / "a.pth", weights_only=True)
    for name, value in payload["params"].items():
        value *= 30 if "RDB" in name and name.endswith("weight") else 1
    torch.save(payload, workshop / "far.pth")
    (workshop / "photo.png").write_bytes((workshop / "Evaluation/Photos/GTmod12/cat.png").read_bytes())
    made = []
    for tile_px in (64, 128):  # several, and the whole image
        words = f"test.py --weights far=far.pth --input photo.png --output_path {tile_px} --tile_px {tile_px}"
        finished(command(*words.split(), cwd=workshop))
        made.append(read_rgb(workshop / f"{tile_px}/far/input/photo.png"))
    assert (made[0] != made[1]).any()


def test_damaged_or_small_image_is_reported_and_the_others_are_scored(workshop, command, prepared):
    """A folder with a broken image and a link to itself, and a benchmark with an image that is too small for SSIM."""
    for folder in ("LRbicx4", "GTmod12"):
        for path, root in ((workshop / "photos", "LRbicx4"), (workshop / "Some" / folder, folder)):
            path.mkdir(parents=True, exist_ok=True)
            for image in (prepared / "Evaluation/Photos" / root).iterdir():
                (path / image.name).write_bytes(image.read_bytes())
    (workshop / "photos/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (workshop / "photos/loop.png").symlink_to("loop.png")
    Image.new("RGB", (3, 3)).save(workshop / "Some/LRbicx4/small.png")
    Image.new("RGB", (12, 12)).save(workshop / "Some/GTmod12/small.png")
    words = f"{TEST} Some photos --weights bicubic --metrics ssim --output_path out"
    done = command(*words.split(), cwd=workshop)
    assert done.returncode == 1
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert "small.png has no ssim: an image of 12x12 px is too small" in failures[0]
    assert "broken.png" in failures[1]
    assert "7 images upscaled, 3 failures; see out/report.html" in done.stdout
    assert "loop.png: Too many levels of symbolic links" in failures[2]
    assert len(list((workshop / "out/bicubic/photos").iterdir())) == 3
    scores = results_of(workshop / "out")["weights"]["bicubic"]["benchmarks"]["Some"]
    rows = [row["ssim"] for row in scores["images"].values() if row]
    assert scores["mean"]["ssim"] == pytest.approx(sum(rows) / 3)
    assert (scores["images_scored"], scores["images_total"]) == ({"ssim": 3}, 4)
    for text in (done.stdout, (workshop / "out/results.md").read_text(), (workshop / "out/report.html").read_text()):
        assert "(3/4)" in text


def test_results_are_not_overwritten_by_other_results(workshop, command):
    """Of other weights or on other benchmarks. The same evaluation can be repeated."""
    words = f"{TEST} Photos --metrics psnr --output_path out --weights"
    finished(command(*words.split(), "bicubic", cwd=workshop))
    before = (workshop / "out/results.json").read_bytes()
    weights_in(workshop, "a.pth")
    refused = command(*words.split(), "a.pth", cwd=workshop)
    assert refused.returncode == 2
    assert "results of bicubic" in refused.stderr
    folder = ("--input", "Evaluation/Photos/LRbicx4", "--output_path", "out")
    refused = command("test.py", "--weights", "bicubic", *folder, cwd=workshop)
    assert refused.returncode == 2
    assert "scores on Photos" in refused.stderr
    assert (workshop / "out/results.json").read_bytes() == before
    finished(command(*words.split(), "bicubic", cwd=workshop))


def test_two_spellings_of_a_path_are_one_file(workshop, command):
    weights_in(workshop, "a.pth")
    words = f"{TEST} Photos --metrics psnr --output_path out --weights"
    for spelling in ("a.pth", workshop / "a.pth"):
        finished(command(*words.split(), spelling, cwd=workshop))


@pytest.mark.parametrize("theirs", ["results.csv", "report.html", "bicubic/Photos/cat.png", "results.json"])
def test_foreign_files_are_not_overwritten(workshop, command, theirs):
    path = workshop / "out" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    refused = command(*f"{TEST} Photos --metrics psnr --output_path out --weights bicubic".split(), cwd=workshop)
    assert refused.returncode == 2
    named = re.split(" is | exists ", refused.stderr.split("error: ")[1])[0]
    assert str(path.relative_to(workshop)).startswith(named)
    assert path.read_text() == "mine"


def test_two_processes_score_as_one_does(workshop, command):
    weights_in(workshop, "a.pth")
    words = f"{TEST} Photos --weights bicubic a.pth --metrics psnr --output_path"
    finished(command(*words.split(), "one", cwd=workshop))
    finished(command(*words.split(), "two", cwd=workshop, processes=2))
    assert results_of(workshop / "one") == results_of(workshop / "two")


def test_ctrl_c_ends_it_at_once_and_leaves_only_whole_images(workshop, launch, command):
    photos = workshop / "photos"
    photos.mkdir()
    for number in range(200):
        (photos / f"{number}.png").write_bytes((workshop / "Evaluation/Photos/GTmod12/cat.png").read_bytes())
    weights_in(workshop, "a.pth")
    made = workshop / "out/tiny_P+SeD/photos"
    words = "test.py --weights a.pth --input photos --output_path out"
    with launch(*words.split(), cwd=workshop) as process:
        deadline = time.monotonic() + 120
        while not (made.is_dir() and len(list(made.glob("*.png"))) > 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip().splitlines() == ["test.py: interrupted"]
    left = list(made.iterdir())
    assert len(left) < 200
    assert all(read_rgb(path).shape == (384, 480, 3) for path in left)
    for path in list(photos.iterdir())[2:]:
        path.unlink()
    finished(command(*words.split(), cwd=workshop))  # the same folder can be used again


MISTAKES = {  # arguments, and a part of the message
    f"{TEST} Photos": "no weights were given",
    f"{TEST} Photo --weights bicubic": "did you mean Photos?",
    f"{TEST} Photos --weights rrdb_psnr.yml": "text file",
    f"{TEST} Photos --weights nothing.pth": "nothing.pth",
    f"{TEST} Photos --weights bicubic bicubic": "have the same label bicubic",
    f"{TEST} Photos --weights a/b=bicubic": "label",
    f"{TEST} Photos --weights bicubic --metrics psnrr": "did you mean psnr",
    f"{TEST} Photos --weights bicubic --set test.paper_row=RRDB+P+SED": "did you mean RRDB+P+SeD?",
    f"{TEST} Photos --weights bicubic --tile_px 5": "test.tile_px",
    f"{TEST} Photos --weights bicubic --batch_size 0": "test.batch_size",
    "test.py --weights bicubic --input photo.jpg": "photo.jpg",
    "test.py --weights bicubic --input Evaluation/Photos/LRbicx4 --metrics psnr": "ground truth",
    "test.py --weights bicubic --input Evaluation/Photos/LRbicx4 --set test.metrics=[ssim]": "ground truth",
    f"{TEST} Photos --weights bicubic --ext jpg": "--ext is for the images of --input, which is not given",
    f"{TEST} Photos --weights bicubic --suffix _x4": "--suffix is for the images of --input, which is not given",
    "test.py --weights bicubic --input Evaluation/Photos/LRbicx4 --suffix a/b": "cannot contain /",
    "test.py --weights bicubic --input Evaluation/Photos/GTmod12 Evaluation/Photos/GTmod12/cat.png "
    "Evaluation/Photos/GTmod12/../GTmod12/cat.png": "would both be written as cat.png",
    f"{TEST} Photos --weights bicubic --output_path rrdb_P.yml": "is a file",
    "test.py --weights bicubic --input rrdb_psnr.yml": "rrdb_psnr.yml",
    # a file instead of the folder of weights, so that nothing can be downloaded
    f"{TEST} Photos --weights bicubic --metrics lpips --set paths.pretrained_root=rrdb_P.yml": "alexnet",
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gives_one_sentence_and_writes_nothing(workshop, command, words, sentence):
    before = sorted(workshop.iterdir())
    done = command(*words.split(), cwd=workshop)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(workshop.iterdir()) == before


def test_inputs_are_not_overwritten(workshop, command):
    """SR images are upscaled again, into their own folder."""
    words = ("test.py", "--weights", "bicubic", "--output_path", "out", "--input")
    (workshop / "photos").mkdir()
    (workshop / "photos/cat.png").write_bytes((workshop / "Evaluation/Photos/LRbicx4/catx4.png").read_bytes())
    finished(command(*words, "photos", cwd=workshop))
    made = workshop / "out/bicubic/photos/cat.png"
    before = made.read_bytes()
    for above in (made.parent, "out"):  # sub-folders are searched
        refused = command(*words, above, cwd=workshop)
        assert refused.returncode == 2
        assert f"contains the input images of {Path(above).name}" in refused.stderr
    assert made.read_bytes() == before


def test_other_architecture_than_the_option_files_is_refused(workshop, command):
    weights_in(workshop, "a.pth")
    refused = command(*f"{TEST} Photos --opt swinir_psnr.yml --weights a.pth --output_path out".split(), cwd=workshop)
    assert refused.returncode == 2
    assert "RRDB" in refused.stderr
    assert "SwinIR" in refused.stderr


def test_weights_d_adds_pictures_of_the_discriminator_to_the_report(workshop, command):
    """They need ground truth, which is checked before anything is written."""
    said = {"name": "run", "discriminator": {"type": "patch", "features": 8}}
    said["semantic_extractor"] = {"weights": "random"}
    options = load_options({**said, "generator": TINY})
    discriminator = build_discriminator(options, build_extractor(options, None)).state_dict()
    state = {"step": 7, "params": {}, "options": said, "train_step": {"discriminator": discriminator}}
    save_state(workshop / "state.pth", state)
    words = ("--weights", "bicubic", "--weights_d", "state.pth", "--output_path", "out")
    finished(command("test.py", "--benchmarks", "Photos", "--metrics", "psnr", *words, cwd=workshop))
    page = (workshop / "out/report.html").read_text()
    block = page.partition('id="report">')[2].partition("</script>")[0]
    report = json.loads(block)
    further = ["semantics", "attention", "real/fake: HR", "real/fake: bicubic"]
    assert report["versions"] == ["LR", "bicubic", "HR", *further]
    assert "patch discriminator of run at step 7" in report["note"]
    assert all(None not in image["pictures"]["numbers"] for image in report["benchmarks"][0]["images"])
    refused = command("test.py", "--input", "Evaluation/Photos/LRbicx4", *words[:-1], "photos", cwd=workshop)
    assert refused.returncode == 2
    assert "--weights_d" in refused.stderr
    assert "ground truth" in refused.stderr
    assert not (workshop / "photos").exists()
