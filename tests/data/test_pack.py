import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from sed_sr.data.datasets import HRImages, HRPatches, PairedImages
from sed_sr.data.image_folders import check_images, check_readable, find_images, read_image
from sed_sr.data.images import list_images, read_rgb, write_unchanged
from sed_sr.data.loader import SampleStream, make_loader
from sed_sr.data.pair_content import check_content
from sed_sr.data.pairs import find_pairs
from sed_sr.data.prepare.grid import Grid, single_jobs
from sed_sr.data.prepare.subimages import extract as extract_jobs
from sed_sr.options.errors import UserError

SCRIPT = Path(__file__).parents[2] / "extract_subimages.py"


def extract(root, *arguments):
    words = [sys.executable, SCRIPT, "--n_thread", 2, *arguments]
    return subprocess.run(list(map(str, words)), cwd=root, capture_output=True, text=True, timeout=120)


CUT_PAIRS = ("--input", "hr", "--input_lr", "lr_x4", "--crop_size", 160, "--step", 80)
CUT_SIZES = ("--input", "hr", "--crop_size", 64, "--step", 48, "--scales", "1", "1/2")


@pytest.fixture(scope="module")
def cut_twice(tmp_path_factory):
    """Photographs of odd sides, of 8 and 16 bits, grey and with alpha: cut into folders (sub...) and into packs."""
    root = tmp_path_factory.mktemp("cut_twice")
    photo = skimage.data.astronaut()
    rng = np.random.default_rng(0)
    stored = {
        "a": photo[:322, 100:423, ::-1],
        "a_scale1of2": photo[:160, :160, 0],
        "b": np.dstack((photo[200:401, :242], rng.integers(0, 256, (201, 242), dtype=np.uint8))),
        "c": photo[100:420, :330].astype(np.uint16) * 257 + rng.integers(0, 257, (320, 330, 3), dtype=np.uint16),
    }
    for stem, image in stored.items():
        write_unchanged(root / "hr" / f"{stem}.png", image)
        lr = Image.fromarray(read_rgb(root / "hr" / f"{stem}.png"))
        (root / "lr_x4").mkdir(exist_ok=True)
        lr.resize((lr.width // 4, lr.height // 4), Image.Resampling.BOX).save(root / "lr_x4" / f"{stem}x4.png")
    for words in (
        (*CUT_PAIRS, "--output", "sub", "--output_lr", "sub_x4"),
        (*CUT_PAIRS, "--output", "pack", "--output_lr", "pack_x4", "--pack"),
        (*CUT_SIZES, "--output", "sub_sizes"),
        (*CUT_SIZES, "--output", "pack_sizes", "--pack"),
    ):
        done = extract(root, *words)
        assert done.returncode == 0, done.stderr
    return root


def assert_equal_samples(one, other):
    assert len(one) == len(other)
    for key in itertools.product(range(3), range(len(one))):
        a, b = one[key], other[key]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_pairs_from_packs_are_bit_for_bit_those_from_folders(cut_twice):
    folders, *packs = (
        PairedImages(cut_twice / hr, cut_twice / lr, scale=4, lr_patch_px=24)
        for hr, lr in (("sub", "sub_x4"), ("pack", "pack_x4"), ("pack", "sub_x4"), ("sub", "pack_x4"))
    )
    for pack in packs:
        assert_equal_samples(folders, pack)
        assert check_content(pack.pairs, scale=4, samples=9, seed=0) == 9


def test_hr_crops_from_several_weighted_packs_are_bit_for_bit_those_from_folders(cut_twice):
    folders, packs = (
        HRImages({cut_twice / f"{kind}_sizes": 0.7, cut_twice / kind: 1.5}, hr_px=100) for kind in ("sub", "pack")
    )
    assert_equal_samples(folders, packs)


def test_hr_crops_with_margins_from_packs_are_bit_for_bit_those_from_folders(cut_twice):
    assert_equal_samples(*(HRPatches({cut_twice / kind: 1}, scale=4, lr_patch_px=37) for kind in ("sub", "pack")))


def test_a_pack_lists_and_reads_every_sub_image_of_the_folder_at_every_size(cut_twice):
    for kind in ("", "_sizes"):
        pack = find_images(cut_twice / f"pack{kind}")
        paths = list_images(cut_twice / f"sub{kind}")
        assert [tile.name for tile in pack] == [path.name for path in paths]
        for tile, path in zip(pack, paths, strict=True):
            np.testing.assert_array_equal(read_image(tile), read_rgb(path))
    assert any("_scale1of2" in tile.name for tile in pack)


def test_workers_read_from_a_pack_what_one_process_reads(cut_twice):
    dataset = PairedImages(cut_twice / "pack", cut_twice / "pack_x4", scale=4, lr_patch_px=24)
    stream = SampleStream(len(dataset), batch_size=3, batches=4)
    one, two = (list(make_loader(dataset, stream, num_workers=number, device_type="cpu")) for number in (0, 2))
    assert all(torch.equal(a["hr"], b["hr"]) and a["name"] == b["name"] for a, b in zip(one, two, strict=True))


def test_a_pair_without_its_partner_or_too_small_is_named_from_packs_too(cut_twice):
    with pytest.raises(UserError, match=r"a_s001\.png is 40x40, smaller than the LR patch of 41"):
        PairedImages(cut_twice / "pack", cut_twice / "pack_x4", scale=4, lr_patch_px=41)
    with pytest.raises(UserError, match="do not pair by name"):
        find_pairs(cut_twice / "pack", cut_twice / "pack_sizes")


@pytest.fixture
def packed(tmp_path):
    """A pack of two images, and the command that made it."""
    for stem in "ab":
        write_unchanged(tmp_path / "in" / f"{stem}.png", np.full((80, 96, 3), ord(stem), np.uint8))
    words = ("--input", "in", "--output", "out", "--crop_size", 64, "--step", 32, "--pack")
    assert extract(tmp_path, *words).returncode == 0
    return tmp_path / "out", words


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_existing_pack_is_rejected_resumed_or_replaced(packed):
    out, words = packed
    whole = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*_scale1of1.npy")}
    again = extract(out.parent, *words, "--resume")
    assert again.returncode == 0
    assert "wrote 0 images" in again.stdout
    assert contents(out) == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times

    (out / "b_scale1of1.npy").unlink()
    assert "wrote 1 images" in extract(out.parent, *words, "--resume").stdout
    assert contents(out) == whole

    for other in (words[:-1], (*words, "--step", 16)):
        done = extract(out.parent, *other, "--resume")
        assert done.returncode == 2
        assert re.search(r"was cut with crop_size 64, step 32, .* packed, not", done.stderr)
    assert extract(out.parent, *words[:-1], "--overwrite").returncode == 0
    assert {name[-4:] for name in contents(out)} == {".png", "grid"}


def test_resume_replaces_damaged_pixels_only(packed):
    """An empty file, a truncated one, one without its checksum, a hole of zeros, one without a header, all zeros."""
    out, words = packed
    for stem in "cdefg":
        shutil.copy(out.parent / "in/a.png", out.parent / f"in/{stem}.png")
    assert "were damaged" not in extract(out.parent, *words, "--resume").stdout
    whole = contents(out)
    before = (out / "g_scale1of1.npy").stat()
    damage = {
        "a": lambda content: b"",
        "b": lambda content: content[:9000],
        "c": lambda content: content[:-4],
        "d": lambda content: content[:8000] + bytes(4096) + content[12096:],
        "e": lambda content: bytes(4096) + content[4096:],
        "f": lambda content: bytes(len(content)),
    }
    for stem, change in damage.items():
        name = f"{stem}_scale1of1.npy"
        (out / name).write_bytes(change(whole[name]))

    done = extract(out.parent, *words, "--resume")
    assert done.returncode == 0
    assert "wrote 6 images" in done.stdout
    assert "; 6 files of an earlier run were damaged and made again" in done.stdout
    assert contents(out) == whole
    after = (out / "g_scale1of1.npy").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_pixels_are_flushed_before_the_table_lists_them(packed, monkeypatch):
    out, _ = packed
    flushed = []

    def note(folders):
        flushed.append((folders, len(np.load(out / "tiles.npy")), len(list(out.glob("*_scale1of1.npy")))))

    monkeypatch.setattr("sed_sr.data.prepare.jobs.flush_file_systems", note)
    jobs, how = single_jobs(out.parent / "in", out, scale=4), {"overwrite": True, "resume": False}
    assert extract_jobs(jobs, Grid(64, 32, 0), compression_level=1, workers=1, packed=True, **how) == 0
    assert flushed == [([out], 0, 2)]
    assert len(find_images(out)) == 2 * 4


def test_unreadable_image_is_left_out_of_the_pack_and_named(packed):
    out, words = packed
    (out.parent / "in/b.png").write_bytes(b"no image")
    done = extract(out.parent, *words, "--overwrite")
    assert done.returncode == 1
    assert "b.png" in done.stderr
    assert {tile.name for tile in find_images(out)} == {f"a_s00{n}.png" for n in (1, 2, 3, 4)}


def test_a_pair_whose_lr_cannot_be_read_is_left_out_of_both_packs_and_named(packed):
    out, _ = packed
    for stem, level in (("a", 10), ("b", 20)):
        write_unchanged(out.parent / "in_x4" / f"{stem}x4.png", np.full((20, 24, 3), level, np.uint8))
    (out.parent / "in_x4/bx4.png").write_bytes(b"no image")
    words = ("--input", "in", "--output", "hr", "--input_lr", "in_x4", "--output_lr", "lr", "--crop_size", 64)
    done = extract(out.parent, *words, "--step", 32, "--pack")
    assert done.returncode == 1
    assert "bx4.png" in done.stderr
    for folder in ("hr", "lr"):
        assert {tile.name[0] for tile in find_images(out.parent / folder)} == {"a"}


def test_killed_packing_leaves_an_unfinished_pack_that_can_be_resumed(packed, tmp_path):
    out, words = packed
    whole = contents(out)
    for number in range(400):
        (tmp_path / f"in/c{number}.png").hardlink_to(tmp_path / "in/a.png")
    command = [sys.executable, str(SCRIPT), "--n_thread", "1", *map(str, words), "--overwrite"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (out / "c1_scale1of1.npy").exists():
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(UserError, match=f"the pack {out} is unfinished; .* --resume"):
        find_images(out)
    for path in (tmp_path / "in").glob("c*.png"):
        path.unlink()
    assert extract(tmp_path, *words, "--resume").returncode == 0
    assert find_images(out).tiles.tobytes() == np.load(out / "tiles.npy").tobytes()
    assert contents(out).items() >= whole.items()


def of_other_size(content):
    """The same image with fewer columns than its table says, whole."""
    return content.replace(b"(80, 96, 3)", b"(80, 63, 3)")[: 3 * 80 * (63 - 96)]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("a_scale1of1.npy", lambda content: content[:-1], "is damaged"),
        ("a_scale1of1.npy", lambda content: b"", "is damaged"),
        ("a_scale1of1.npy", lambda content: content.replace(b"|u1", b"|i1"), "does not hold an 8-bit RGB image"),
        ("a_scale1of1.npy", lambda content: content.replace(b"(80, 96, 3)", b"(80, 63, 3)"), "is damaged"),
        ("a_scale1of1.npy", lambda content: of_other_size(content), "is smaller than"),
        ("a_scale1of1.npy", lambda content: content[:70] + bytes(8) + content[78:], "is damaged"),
        ("tiles.npy", lambda content: content[:-1], "is damaged"),
        ("tiles.npy", lambda content: content.replace(b"side_px", b"side_mm"), "not a table of sub-images"),
    ],
)
def test_damaged_pack_is_a_user_error_whose_advice_repairs_it(packed, name, change, sentence):
    out, words = packed
    whole = contents(out)
    content = (out / name).read_bytes()
    assert change(content) != content
    (out / name).write_bytes(change(content))
    with pytest.raises(UserError, match=sentence) as error:
        find_images(out)
    assert str(out / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; remove it and make the pack again with --resume")
    (out / name).unlink()
    assert extract(out.parent, *words, "--resume").returncode == 0
    assert contents(out) == whole


@pytest.mark.parametrize("place", [200, 10_000, -5, -1])  # the first pixels, some others, the last, the checksum
def test_a_flipped_bit_is_found_by_reading_everything(packed, place):
    out, _ = packed
    content = bytearray((out / "b_scale1of1.npy").read_bytes())
    content[place] ^= 4
    (out / "b_scale1of1.npy").write_bytes(content)
    pack = find_images(out)
    check_images([pack])
    with pytest.raises(UserError, match=f"1 of 2 images in {out} cannot be read: .*b_scale1of1.npy: it is damaged"):
        check_readable([pack])


def test_a_pack_that_will_not_fit_on_the_disk_is_refused_before_anything_is_written_or_removed(packed, monkeypatch):
    out, _ = packed
    made, one = contents(out), 80 * 96 * 3
    (out / "b_scale1of1.npy").unlink()
    before = contents(out)
    written = sum(len(content) for name, content in before.items() if name.endswith(".npy"))
    jobs, grid = single_jobs(out.parent / "in", out, scale=4), Grid(64, 32, 0)
    for how, needed in (
        ({"overwrite": True, "resume": False}, 2 * one - written),
        ({"overwrite": False, "resume": True}, one),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=needed - 1: SimpleNamespace(free=free))
        with pytest.raises(UserError, match=f"{out} would grow by .* GB, but .* GB are free"):
            extract_jobs(jobs, grid, compression_level=1, workers=1, packed=True, **how)
        assert contents(out) == before
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=needed: SimpleNamespace(free=free))
        assert extract_jobs(jobs, grid, compression_level=1, workers=1, packed=True, **how) == 0
        assert contents(out) == made
        (out / "b_scale1of1.npy").unlink()


def test_file_lost_during_training_is_a_user_error(packed):
    out, _ = packed
    pack = find_images(out)
    check_images([pack])
    check_readable([pack])
    (out / "a_scale1of1.npy").unlink()
    with pytest.raises(UserError, match=f"1 of 2 images in {out} cannot be read: cannot read .*a_scale1of1"):
        check_readable([pack])
