import numpy as np
from PIL import Image

from sed_sr.data import images, png


def test_sizes_equal_those_of_each_image_and_are_0_for_other_files(tmp_path):
    for number, mode in enumerate(("1", "L", "LA", "P", "RGB", "RGBA", "I;16")):
        Image.new(mode, (30 + number, 20)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "7.png", "JPEG")
    (tmp_path / "8.png").write_bytes((tmp_path / "0.png").read_bytes()[:23])
    (tmp_path / "9.png").mkdir()
    sizes = png.sizes(tmp_path, [b"%d.png" % number for number in range(11)])
    assert sizes.tolist() == [[20, 30 + number] for number in range(7)] + [[0, 0]] * 4


def test_a_png_is_intact_unless_it_is_truncated_or_overwritten_with_zeros(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    small = rgb[:8, :10]
    images.write_image(tmp_path / "strips.png", small)
    images.write_unchanged(tmp_path / "opencv.png", small)
    Image.fromarray(small).save(tmp_path / "pillow.png", dpi=(72, 72))
    damaged = tmp_path / "damaged.png"
    for path in list(tmp_path.iterdir()):
        assert png.is_intact(path), path
        content = path.read_bytes()
        contents = {content[:end] for end in range(len(content))} | {content + b"\0"}
        for start in range(len(content)):
            for end in (start + 1, min(start + 64, len(content))):
                contents.add(content[:start] + bytes(end - start) + content[end:])
        for other in contents - {content}:
            damaged.write_bytes(other)
            assert not png.is_intact(damaged)
    Image.fromarray(rgb).save(damaged, "JPEG")
    assert not png.is_intact(damaged)
    assert not png.is_intact(tmp_path / "missing.png")
