"""The command that makes LR images of a folder of HR images."""

import subprocess
import sys

import numpy as np

from sed_sr.data.images import read_rgb, read_unchanged, write_image, write_unchanged
from sed_sr.data.imresize import imresize


def shrink(*arguments):
    command = [sys.executable, "-m", "data.prepare.lr_images", "--n_thread", "2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_command_makes_lr_images_of_a_folder(tmp_path):
    hr = np.random.default_rng(0).integers(0, 256, (43, 38, 3), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (16, 16), dtype=np.uint16)
    (tmp_path / "hr").mkdir()
    write_image(tmp_path / "hr/0001.png", hr)
    write_unchanged(tmp_path / "hr/0002.png", deep)
    (tmp_path / "hr/0003.png").write_bytes(b"no image")

    done = shrink("--input", tmp_path / "hr", "--output", tmp_path / "lr")
    assert done.returncode == 1
    assert "0003.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "lr").iterdir()) == ["0001x4.png", "0002x4.png"]
    np.testing.assert_array_equal(read_rgb(tmp_path / "lr/0001x4.png"), imresize(hr[:40, :36], scale=0.25))
    np.testing.assert_array_equal(read_unchanged(tmp_path / "lr/0002x4.png"), imresize(deep, scale=0.25))

    again = shrink("--input", tmp_path / "hr", "--output", tmp_path / "lr")
    assert again.returncode == 2
    assert again.stderr.startswith("lr_images.py: error: ")
    assert again.stderr.count("\n") == 1
