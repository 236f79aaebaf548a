import re
import threading

import numpy as np
import pytest

import sed_sr.data.image_folders
from sed_sr.data.image_folders import check_images, check_readable, find_images
from sed_sr.data.images import write_image
from sed_sr.options.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Two folders, of three and of four images of noise, 40x33 pixels."""
    rng = np.random.default_rng(0)
    for root, images in (("a", 3), ("b", 4)):
        for number in range(images):
            write_image(tmp_path / root / f"{number}.png", rng.integers(0, 256, (33, 40, 3), dtype=np.uint8))
    return [find_images(tmp_path / root) for root in ("a", "b")]


def test_a_folder_is_its_images_sorted_by_name_whatever_they_are_called(tmp_path):
    names = ["b.png", "a b.JPG", "ü.webp", "a-very-long-name-beside-short-ones.png", "10.png", "9.png"]
    for name in [*names, "notes.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    folder = find_images(tmp_path)
    assert len(folder) == len(names)
    assert list(folder) == [tmp_path / name for name in sorted(names)]


def test_names_of_a_large_folder_take_a_few_bytes_each(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number:06d}_s001.png").touch()
    assert find_images(tmp_path).names.nbytes == 1000 * len("000000_s001.png")


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "missing")):
        find_images(tmp_path / "missing")
    with pytest.raises(UserError, match=f"no image in {tmp_path}"):
        find_images(tmp_path)


def test_sub_folder_that_has_the_images_is_named(tmp_path):
    for name in ("photos/.cache/a.png", "photos/notes/a.txt", "photos/summer/2024/a.JPG", "photos/winter/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    sentence = (
        f"no image in {tmp_path}/photos; .* sub-folders are not searched, and there are images in (.*): give that"
    )
    with pytest.raises(UserError, match=sentence) as error:
        find_images(tmp_path / "photos")
    assert re.search(sentence, str(error.value))[1] == str(tmp_path / "photos/summer/2024")
    with pytest.raises(UserError, match=r"no image in [^;]*; [^;]*$"):
        find_images(tmp_path / "photos/notes")


def test_images_too_small_or_unreadable_are_counted_over_all_folders_and_named(folders):
    check_images(folders)
    small, broken = folders[0][1], folders[1][3]
    write_image(small, np.zeros((31, 100, 3), np.uint8))
    write_image(folders[1][0], np.zeros((32, 32, 3), np.uint8))
    broken.write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        check_images(folders)
    first, second = (folder.root for folder in folders)
    assert str(error.value) == (
        f"2 of 7 images in {first} and {second} cannot be used: "
        f"{small} is 100x31, smaller than 32x32; "
        f"cannot read the size of {broken}: it is damaged or not an image"
    )


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_marked_items_are_found_with_any_number_of_processes(monkeypatch, at_once):
    monkeypatch.setattr(sed_sr.data.image_folders, "IMAGES_PER_TASK", at_once)
    odd = np.random.default_rng(0).random(50) < 0.3
    found = sed_sr.data.image_folders.find_marked(lambda indices: odd[indices.start : indices.stop], 50)
    assert found == np.flatnonzero(odd).tolist()


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_every_image_is_checked_once_for_any_number_of_tasks(folders, monkeypatch, tasks):
    monkeypatch.setattr(sed_sr.data.image_folders, "MAX_TASKS", tasks)
    looked_at = []
    sed_sr.data.image_folders.check_each(folders, looked_at.append, what="images", fault="cannot be used")
    assert sorted(looked_at) == [path for folder in folders for path in folder]


def test_images_that_only_decoding_shows_to_be_damaged_are_counted_and_named(folders):
    check_readable(folders)
    damaged = [folders[0][2], folders[1][1]]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-2000])
    check_images(folders)
    with pytest.raises(UserError, match=r"2 of 7 images in \S+ and \S+ cannot be read: ") as error:
        check_readable(folders)
    assert all(str(path) in str(error.value) for path in damaged)


def test_progress_counts_every_image_damaged_or_not(folders):
    done = threading.Semaphore(0)
    check_readable(folders, on_image=done.release)
    folders[0][0].write_bytes(b"")
    with pytest.raises(UserError):
        check_readable(folders, on_image=done.release)
    for _ in range(2 * 7):
        assert done.acquire(blocking=False)
    assert not done.acquire(blocking=False)
