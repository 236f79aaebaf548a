"""Whatever a user gives, they get the right result or a UserError of readable lines; no other exception, no code runs.

Hypothesis makes the inputs, the same ones in every run.
"""

import io
import json
import math
import os
import pickle
import runpy
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sed_sr.data import images
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.formats import generator_weights, load_into

# Pillow warns of what it skips in a damaged TIFF.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "options").glob("*.yml"))
INTERNALS = ("Traceback", "Error(", "Exception", "<class", " object at 0x", "pydantic", "yaml.", "cv2", "PIL.")


def tried(max_examples):
    # All examples of a test share its tmp_path, in which they write over each other's files.
    health = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
    return settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=health)


def check_sentence(error, *names):
    """Every line says what is meant, names one of `names` (a file, an argument), and shows nothing of the inside."""
    for line in str(error).split("\n"):
        assert line.isprintable(), line
        assert any(name in line for name in names), line
        assert len(line) < 600, line
        assert not any(word in line for word in INTERNALS), line


NEW_BYTES = st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f" + b"\xff" * 3])


@st.composite
def damaged(draw, contents):
    """The bytes of a file, a few replaced or a few more among them; often in its head, where the structure is."""
    where = draw(st.integers(0, len(contents) - 1) | st.integers(0, min(3000, len(contents) - 1)))
    new = draw(NEW_BYTES)
    return contents[:where] + new + contents[where + draw(st.sampled_from([0, len(new)])) :]


# ---------------------------------------------------------------------------------------------------------------------
# Option files

TREES = [yaml.safe_load(load_options(recipe).as_yaml()) for recipe in RECIPES]
KEYS = sorted({key for tree in TREES for section in tree.values() if isinstance(section, dict) for key in section})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**30), 2**64, 10**400, 1e-320, 1e300, -0.0, math.inf, -math.inf, math.nan]),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.datetimes(),
    st.binary(max_size=8),
    st.sampled_from(
        ["", "null", "~", "1e5", "0x10", "a\0b", "a\nb", "\ufeff", "é" * 300, "/dev/null", "..", "\x85", "\u2028"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | SCALARS, inner, max_size=3),
    max_leaves=6,
)


def places(tree, path=()):
    """The path of every key in the tree."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def changed_trees(draw):
    """The option tree of a recipe after one to three accidents."""
    tree = yaml.safe_load(yaml.safe_dump(draw(st.sampled_from(TREES))))
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(list(places(tree))))
        section = at(tree, parents)
        match draw(st.sampled_from(["replace", "remove", "misspell", "move", "add"])):
            case "replace":
                section[key] = draw(VALUES)
            case "remove":
                del section[key]
            case "misspell":
                head, tail = str(key)[: draw(st.integers(0, 9))], str(key)[draw(st.integers(0, 9)) :]
                section[head + draw(st.sampled_from(["", "x", ".", " ", "\t", "É"])) + tail] = section.pop(key)
            case "move":
                value = section.pop(key)
                sections = [(), *(path for path in places(tree) if isinstance(at(tree, path), dict))]
                at(tree, draw(st.sampled_from(sections)))[key] = value
            case "add":
                section[draw(SCALARS | st.sampled_from(KEYS))] = draw(VALUES)
        if not tree:
            break
    return tree


def check_options(file, *arguments):
    try:
        options = load_options(file, [Override.parse(argument) for argument in arguments])
    except UserError as error:
        check_sentence(error, str(file.parent), "--set ")
    else:
        again = file.with_name("resolved.yml")
        again.write_text(options.as_yaml(), encoding="utf-8")
        assert load_options(again) == options


@tried(60)
@given(tree=changed_trees())
def test_a_tree_with_other_keys_and_values_is_read_or_refused(tree, tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.dump(tree, allow_unicode=True), encoding="utf-8")
    check_options(file)


# A few lines, and 9^8 values when the aliases are written out.
ALIASES = "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9 if i else 1}]\n" for i in range(9))
SNIPPETS = [
    "\t", "[", "]", "{", "}", ": ", "- ", "? ", "'", '"', "|\n", ">\n", "#", "&a ", "*a ", "<<: *a\n", "&a [*a]\n",
    "&a {b: *a}\n", "!x ", "!<tag:x> ", "!!map [", "!!set {a, b}", "!!binary aGk=\n", "!!timestamp x", "!!int x",
    "!!int ''", "!!float ''", "!!null x", "!!bool x", "!!python/object/apply:os.system ['touch CANARY']\n",
    "!!python/name:os.system ", "%YAML 9.9\n---\n", "%TAG ! tag:x,2002:\n---\n", "---\n", "...\n", "\0", "\x01",
    "\ufeff", "\u2028", "\x85", "\\", "\r", "\n", "  ", "é", "\U0001f600", '"\\ud800"', "_", "=", "y", "NO", ".inf",
    "1:30:00", "0o17", "0b1", "1e999", "2026-13-45", "0001-01-01 00:00:00 +23:59", "9" * 5000, "0x" + "f" * 5000,
    "[" * 500, "{a: " * 500, "- " * 500, ALIASES, "extends: ", "extends: recipe.yml\n", "extends: [a]\n",
    "extends: null\n", "extends: missing.yml\n", "extends: .\n", "extends: recipe.yml/x\n", 'extends: "a\\0b"\n',
    "extends: " + "x" * 5000 + "\n",
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp037"]


@st.composite
def changed_files(draw):
    """The bytes of a recipe after one to three accidents."""
    text = draw(st.sampled_from(RECIPES)).read_text()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 5, 50]))
        line = text.find("\n", start) + 1
        match draw(st.sampled_from(["splice", "splice", "line", "twice"])):
            case "splice":
                text = text[:start] + draw(st.sampled_from(SNIPPETS) | st.text(max_size=5)) + text[end:]
            case "line":
                text = text[:line] + draw(st.sampled_from(SNIPPETS)) + text[line:]
            case "twice":
                text = text[:line] + text[: line + end] + text[line:]
    return text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


@tried(60)
@given(contents=changed_files() | st.binary(max_size=50))
def test_a_file_of_other_text_is_read_or_refused_and_nothing_in_it_runs(contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for recipe in RECIPES:
        (tmp_path / recipe.name).write_bytes(recipe.read_bytes())
    file = tmp_path / "recipe.yml"
    file.write_bytes(contents)
    check_options(file)
    assert not (tmp_path / "CANARY").exists()


KEY_PATHS = sorted({".".join(path) for tree in TREES for path in places(tree)})


@tried(100)
@given(
    arguments=st.lists(
        st.text(max_size=30)
        | st.builds(
            "{}={}".format,
            st.sampled_from(KEY_PATHS) | st.text(max_size=10),
            st.text(max_size=20)
            | st.sampled_from(SNIPPETS)
            | VALUES.map(lambda value: yaml.dump(value, default_flow_style=True).strip()),
        ),
        min_size=1,
        max_size=3,
    ),
    recipe=st.sampled_from(RECIPES),
)
def test_any_argument_of_set_is_taken_or_refused(arguments, recipe, tmp_path):
    copy = tmp_path / "recipe.yml"
    copy.write_text(yaml.safe_dump(TREES[RECIPES.index(recipe)]))
    check_options(copy, *arguments)


@pytest.mark.parametrize("key", ["paths.out_root", "paths.pretrained_root", "dataset.hr", "train.start_from"])
@pytest.mark.parametrize("value", ['"a\\0b"', "x" * 256, "é" * 128, "x/" * 1500])
def test_what_no_file_can_be_called_is_refused(key, value):
    with pytest.raises(UserError, match=rf"--set {key}=.*{key} is .* should be a path") as caught:
        load_options(RECIPES[0], [Override.parse(f"{key}={value}")])
    check_sentence(caught.value, key)


# ---------------------------------------------------------------------------------------------------------------------
# Images


def encoded(image, **how):
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return buffer.getvalue()


LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "GIF": {}, "WEBP": {"lossless": True}, "JPEG2000": {}}
KINDS = {
    **{(name, "RGB"): {"format": name, **how} for name, how in LOSSLESS.items()},
    **{("PNG", mode): {"format": "PNG"} for mode in ("1", "L", "LA", "P", "RGBA")},
    **{("TIFF", mode): {"format": "TIFF"} for mode in ("1", "L", "LA", "P", "RGBA", "CMYK")},
    **{("TIFF", packing): {"format": "TIFF", "compression": packing} for packing in ("tiff_lzw", "tiff_deflate")},
    **{("WEBP", mode): {"format": "WEBP", "lossless": True} for mode in ("L", "RGBA")},
    **{("JPEG", mode): {"format": "JPEG", "quality": 95, "subsampling": 0} for mode in ("L", "RGB", "CMYK")},
    **{("JPEG2000", mode): {"format": "JPEG2000"} for mode in ("L", "RGBA")},
    **{
        (name, "animated"): {"format": name, "save_all": True, **LOSSLESS[name]}
        for name in ("PNG", "GIF", "WEBP", "TIFF")
    },
}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")


@st.composite
def image_files(draw):
    """The bytes of a valid image file and of which kind it is."""
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    rgb = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    kind = draw(st.sampled_from(list(KINDS)))
    image = Image.fromarray(rgb).convert(kind[1] if kind[1] in MODES else "RGB")
    more = {"append_images": [Image.fromarray(255 - rgb)]} if kind[1] == "animated" else {}
    return kind, encoded(image, **KINDS[kind], **more)


SUFFIXES = st.sampled_from([*sorted(images.IMAGE_SUFFIXES), ".txt", ""])


def check_image(path):
    """The pixels, or None where there are none to be had; sizes and pixels agree."""
    pixels = size = None
    for read in (images.image_size, images.read_rgb):
        try:
            result = read(path)
        except UserError as error:
            check_sentence(error, path.name)
            continue
        if read is images.image_size:
            size = result
            assert min(size) > 0
        else:
            pixels = result
            assert pixels.dtype == np.uint8
            assert pixels.shape[2:] == (3,)
    if pixels is not None and size is not None:
        assert pixels.shape[:2] == size
    return pixels


@tried(200)
@given(image=image_files(), suffix=SUFFIXES)
def test_every_kind_of_image_is_read_as_pillow_reads_it_whatever_its_name(image, suffix, tmp_path):
    (kind, contents), path = image, tmp_path / f"image{suffix}"
    path.write_bytes(contents)
    expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB")).astype(int)
    tolerance = 1 if "CMYK" in kind else 0  # Pillow rounds once more
    np.testing.assert_allclose(check_image(path), expected, rtol=0, atol=tolerance)


@tried(200)
@given(image=image_files(), suffix=SUFFIXES, kept=st.floats(0, 1, exclude_max=True))
def test_an_image_cut_off_anywhere_is_refused(image, suffix, kept, tmp_path):
    ((_, mode), contents), path = image, tmp_path / f"image{suffix}"
    path.write_bytes(contents[: int(kept * len(contents))])
    pixels = check_image(path)
    if mode == "animated" and pixels is not None:  # the cut is in a later frame
        path.write_bytes(contents)
        np.testing.assert_array_equal(pixels, check_image(path))
    else:
        assert pixels is None


@tried(400)
@given(image=image_files(), suffix=SUFFIXES, data=st.data())
def test_a_damaged_image_is_read_or_refused(image, suffix, data, tmp_path):
    (_, contents), path = image, tmp_path / f"image{suffix}"
    path.write_bytes(data.draw(damaged(contents)))
    check_image(path)


def png_header(width, height, depth=8):
    """A PNG that promises pixels and has none."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 6, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n",
        png_header(0, 0),
        png_header(1, 0),
        png_header(30_000, 30_000, 16),
        png_header(2**31 - 1, 2**31 - 1, 16),
        png_header(2**32 - 1, 1),
        b"P6 99999 99999 255\n",
        b"P6 0 0 255\n",
        b"P6 -1 5 255\n",
        b"BM" + bytes(60),
        b"GIF89a" + b"\xff" * 20,
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\0\0\0-meta" + bytes(7) + b"!hdlr" + bytes(8) + b"pict" + bytes(13),
        b"II*\0\x08\0\0\0" + b"\xff" * 20,
        b"II*\0\x08\0\0\0\0\0\x08\0\0\0",  # a TIFF whose directory is followed by itself
        encoded(Image.new("F", (3, 3)), format="TIFF"),
        encoded(Image.new("I", (3, 3)), format="TIFF"),
    ],
    ids=lambda contents: repr(contents[:12]),
)
@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.tif"])
def test_what_is_no_8_or_16_bit_image_is_refused(contents, name, tmp_path):
    (tmp_path / name).write_bytes(contents)
    assert check_image(tmp_path / name) is None


def test_an_image_has_a_size_however_large_it_is(tmp_path, recwarn):
    header = bytearray(encoded(Image.new("RGB", (1, 1)), format="BMP"))
    header[18:26] = struct.pack("<ii", 20_000, 30_000)
    (tmp_path / "image.bmp").write_bytes(header)
    assert images.image_size(tmp_path / "image.bmp") == (30_000, 20_000)
    assert not recwarn


def test_a_directory_called_like_an_image_is_refused(tmp_path):
    (tmp_path / "image.png").mkdir()
    assert check_image(tmp_path / "image.png") is None


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def small_rrdb():
    return RRDBNet(features=4, blocks=1, growth=4)


NETWORKS = {
    "as asked for": small_rrdb,
    "wider": lambda: RRDBNet(features=8, blocks=1, growth=4),
    "deeper": lambda: RRDBNet(features=4, blocks=2, growth=4),
    "SwinIR": lambda: SwinIR(window=4, depths=(1,), embed_dim=8, heads=(2,)),
    "another network": lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)),
}
BASICSR = {"RRDB_trunk": "body", "RDB": "rdb", "trunk_conv": "conv_body", "upconv": "conv_up", "HRconv": "conv_hr"}
OLD_ESRGAN = {
    "RRDB_trunk.0.": "model.1.sub.0.", "trunk_conv": "model.1.sub.1", "conv_first": "model.0", "conv_last": "model.10",
    "upconv1": "model.3", "upconv2": "model.6", "HRconv": "model.8", "conv1.": "conv1.0.", "conv2.": "conv2.0.",
    "conv3.": "conv3.0.", "conv4.": "conv4.0.", "conv5.": "conv5.0.",
}  # fmt: skip


def spelled(names):
    def rename(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return rename


SPELLINGS = [spelled({}), spelled(BASICSR), spelled(OLD_ESRGAN), "module.{}".format, "netG.module.{}".format]
WRAPPERS = ["params_ema", "params", "model", "state_dict", "model_state_dict", "weights", None]


# What may lie where a weight was expected, of the same shape where that can be.
STRANGE = {
    "nan": lambda value: value * math.nan,
    "infinite": lambda value: torch.full_like(value, math.inf),
    "float64": lambda value: value.double(),
    "too large for float32": lambda value: torch.full_like(value, 1e300, dtype=torch.float64),
    "half": lambda value: value.half(),
    "bfloat16": lambda value: value.bfloat16(),
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "int64": lambda value: value.long(),
    "bool": lambda value: value.bool(),
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "huge and sparse": lambda _: torch.sparse_coo_tensor(
        [[0], [0]], torch.ones(1), (10**9, 10**9), check_invariants=True
    ),
    "without data": lambda value: value.to("meta"),
    "one number, 10^14 times": lambda _: torch.ones(1).expand(10**7, 10**7),
    "no dimension": lambda _: torch.tensor(1.0),
    "no element": lambda _: torch.empty(0),
    "flat": lambda value: value.flatten(),
    "other strides": lambda value: value.transpose(0, -1).contiguous().transpose(0, -1),
    "parameter": torch.nn.Parameter,
    "number": lambda _: 3.0,
    "text": lambda _: "weights",
    "list": lambda value: [value],
    "dict": lambda value: {"weight": value},
    "none": lambda _: None,
}
STRANGE_KEYS = st.one_of(
    st.text(max_size=8), st.integers(), st.none(), st.tuples(st.integers()), st.just("x" * 10_000), st.just("a\nb"),
    st.sampled_from(["model.99999999999.weight", "model.1.sub.9999.weight", "body.0.rdb1.conv1.weight", "attn_mask",
                     "RRDB_trunk.0.RDB1.conv1.weight", "trunk_conv.weight", "conv_body.weight", "upconv3.weight",
                     "layers.0.residual_group.blocks.0.attn.relative_position_bias_table", "conv_up1.weight",
                     "model.1.sub.0.RDB1.conv1.0.weight", "upsample.0.weight", "conv_before_upsample.0.weight"]),
)  # fmt: skip


@st.composite
def weight_files(draw):
    """What a file of weights may hold, and the state dict, in our names, that it stands for."""
    state = NETWORKS[draw(st.sampled_from(sorted(NETWORKS)))]().state_dict()
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=2, unique=True)):
        strange = STRANGE[draw(st.sampled_from(sorted(STRANGE)))]
        match draw(st.sampled_from(["replace", "remove", "rename", "add"])):
            case "replace":
                state[name] = strange(torch.randn(np.shape(state[name]) or (2, 2)))
            case "remove":
                del state[name]
            case "rename":
                state[draw(STRANGE_KEYS)] = state.pop(name)
            case "add":
                state[draw(STRANGE_KEYS)] = strange(torch.ones(2, 2))
    spell = draw(st.sampled_from(SPELLINGS))
    payload = {spell(name) if isinstance(name, str) else name: value for name, value in state.items()}
    wrapper = draw(st.sampled_from(WRAPPERS))
    return ({wrapper: payload, "step": 3} if wrapper else payload), state


def check_weights(path, state):
    """Whether a generator takes the file. `state`: what it must hold then; None where that is not known."""
    generator = small_rrdb()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    try:
        load_into(generator, generator_weights(checkpoint.load(path), path), path)
    except UserError as error:
        check_sentence(error, path.name)
        taken, expected = False, before
    else:
        taken, expected = True, state
    for name, value in generator.state_dict().items():
        assert value.isfinite().all()
        if expected is not None:
            assert torch.equal(value, expected[name].float()), name
    return taken


def save_weights(payload, path, format):
    if format == "safetensors":
        safetensors.torch.save_file(payload, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=format == "torch")


@pytest.mark.parametrize("strange", STRANGE)
def test_of_strange_tensors_only_other_floats_are_taken(strange, tmp_path):
    state = small_rrdb().state_dict()
    state["conv_first.weight"] = STRANGE[strange](torch.randn(state["conv_first.weight"].shape))
    save_weights(state, tmp_path / "net.pth", "torch")
    taken = check_weights(tmp_path / "net.pth", state)
    assert taken == (strange in ("float64", "half", "bfloat16", "other strides", "parameter"))


@tried(100)
@given(file=weight_files(), format=st.sampled_from(["torch", "torch", "torch, old format"]))
def test_weights_are_taken_as_they_are_or_the_network_stays_as_it_was(file, format, tmp_path):
    payload, state = file
    save_weights(payload, tmp_path / "net.pth", format)
    check_weights(tmp_path / "net.pth", state)


@tried(100)
@given(format=st.sampled_from(["torch", "torch, old format", "safetensors"]), data=st.data())
def test_damaged_weights_are_refused_or_finite(format, data, tmp_path):
    path = tmp_path / "net.pth"
    save_weights(small_rrdb().state_dict(), path, format)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    check_weights(path, None)


def safetensors_header(header, data=bytes(16), length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(4,), begin=0, end=16):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "contents",
    [
        safetensors_header(entry()),
        safetensors_header(entry(), length=2**63),
        safetensors_header(entry(), length=10**6),
        safetensors_header(entry(), length=3),
        safetensors_header(entry(), data=b""),
        safetensors_header(entry(end=2**62)),
        safetensors_header(entry(begin=16, end=0)),
        safetensors_header(entry(shape=[2**40, 2**40])),
        safetensors_header(entry(shape=[-4])),
        safetensors_header(entry(dtype="F4")),
        safetensors_header(entry(dtype="C64", shape=[2])),
        safetensors_header(entry(dtype="nonsense")),
        safetensors_header({"w": 3}),
        safetensors_header({}),
        safetensors_header(b"{" * 5000),
        safetensors_header(b'{"w":' * 5000),
        safetensors_header(b"{\xff\xfe}"),
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x02c\0ollections\nOrderedDict\n)R.",
        b"\x80\x02c" + b"x" * 5000 + b"\nOrderedDict\n)R.",
        b"\x80\x02\x8a\xff" + b"\xff" * 300 + b".",
        b"PK\x05\x06" + bytes(18),
        b"PK\x03\x04" + b"\xff" * 100,
    ],
    ids=lambda contents: repr(contents[:20]),
)
def test_headers_that_lie_are_refused(contents, tmp_path):
    (tmp_path / "net.pth").write_bytes(contents)
    assert not check_weights(tmp_path / "net.pth", None)


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


PAYLOADS = {
    "os.system": lambda canary: Call(os.system, f"touch '{canary}'"),
    "exec": lambda canary: Call(exec, f"open({str(canary)!r}, 'w')"),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Call(open, str(canary), "w"),
    "Path.touch": lambda canary: Call(Path.touch, canary),
    "torch.save": lambda canary: Call(torch.save, {}, str(canary)),
    "numpy.save": lambda canary: Call(np.save, f"{canary}", 0),
}
WRAPS = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner, 1),
    "dict": lambda inner: {"params": inner},
    "beside weights": lambda inner: {"params": small_rrdb().state_dict(), "extra": inner},
    "argument": lambda inner: Call(repr, inner),
}


@tried(100)
@given(
    payload=st.sampled_from(sorted(PAYLOADS)),
    wraps=st.lists(st.sampled_from(sorted(WRAPS)), max_size=3),
    write=st.sampled_from(["torch", "torch, old format", 0, 1, 2, 3, 4, 5]),
)
def test_nothing_in_a_pickle_runs(payload, wraps, write, tmp_path):
    canary, path = tmp_path / "CANARY", tmp_path / "net.pth"
    contents = PAYLOADS[payload](canary)
    for wrap in wraps:
        contents = WRAPS[wrap](contents)
    if isinstance(write, str):
        save_weights(contents, path, write)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=write))
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    check_sentence(caught.value, path.name)
    assert not list(tmp_path.glob("CANARY*"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_would_have_run(payload, tmp_path):
    pickle.loads(pickle.dumps(PAYLOADS[payload](tmp_path / "CANARY")))
    assert list(tmp_path.glob("CANARY*"))


# ---------------------------------------------------------------------------------------------------------------------
# The commands


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script in this process, in a folder with one small benchmark; the exit code and what it said."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "photos/a.png")
    monkeypatch.chdir(tmp_path)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return ending.value.code, capsys.readouterr().err

    return run


def check_refused(ended):
    code, said = ended
    assert code == 2
    assert said.count("error: ") == 1, said
    assert all(len(line) < 800 and line.isprintable() for line in said.split("\n")), said
    assert not any(word in said for word in INTERNALS), said


DEEP = "x/" * 2000
OPTION_FILES = {
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "nul": b"name: a\0b",
    "tab": b"name: a\n\tseed: 1",
    "unclosed": b"name: [a",
    "unknown alias": b"name: *" + b"a" * 5000,
    "tag": b"name: !!python/object/apply:os.system ['touch CANARY']",
    "tag that does not fit": b"seed: !!bool x",
    "anchor in itself": b"name: &a [*a]",
    "deep": b"[" * 5000,
    "aliases": ALIASES.encode(),
    "digits": b"seed: " + b"9" * 5000,
    "extends nothing": b"extends: nothing.yml",
    "extends itself": b"extends: recipe.yml",
    "extends a folder": b"extends: photos",
    "extends no name": b'extends: "a\\0b"',
    "extends no printable name": b'extends: "a\\x01b"',
    "extends a long name": b"extends: " + b"x" * 5000,
}
SETTINGS = [
    "name", "=", "name=a/b", "name='a\nb'", "name=&a [*a]", "seed=-1", "seed=1e999", "seed=99999999999999999999999",
    "seed=0x" + "f" * 5000, "seed=" + "[" * 3000, "generator=[]", "generator.type={}", "generator.blocks=.nan",
    "test.weights=''", "test.weights=.", "test.weights=/dev/null", "test.weights=photos/a.png", "test.weights=" + DEEP,
    'test.weights="a\\0b"', 'paths.data_test_root="a\\0b"', 'test.benchmarks=["a\\0b"]', "test.benchmarks=['']",
    "test.benchmarks=[" + "x" * 300 + "]",
]  # fmt: skip
RECIPE = ROOT / "options/test_rrdb_P+SeD.yml"


@pytest.mark.parametrize("contents", OPTION_FILES.values(), ids=OPTION_FILES)
def test_commands_refuse_a_broken_option_file(contents, run, tmp_path):
    (tmp_path / "recipe.yml").write_bytes(contents)
    ended = run("train.py", "--opt", "recipe.yml")
    check_refused(ended)
    assert "\\n" not in ended[1]  # no text of several lines was pressed into one
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: repr(text[:30]))
def test_commands_refuse_an_impossible_setting(setting, run):
    check_refused(run("test.py", "--opt", RECIPE, "--set", "test.benchmarks=[photos]", "--set", setting))


WEIGHT_FILES = {
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("<html>"),
    "image": lambda path: Image.new("RGB", (99, 99)).save(path, "PNG"),
    "directory": lambda path: path.mkdir(),
    "list": lambda path: torch.save([1], path),
    "nothing": lambda path: torch.save({}, path),
    "another size": lambda path: torch.save(NETWORKS["deeper"]().state_dict(), path),
    "another architecture": lambda path: torch.save({"params": NETWORKS["SwinIR"]().state_dict()}, path),
    "another network": lambda path: torch.save(NETWORKS["another network"]().state_dict(), path),
    "nan": lambda path: torch.save({"w": torch.tensor(math.nan)}, path),
    "meta": lambda path: torch.save({"w": torch.ones(3, device="meta")}, path),
    "code": lambda path: torch.save({"w": PAYLOADS["os.system"](path.with_name("CANARY"))}, path),
}


@pytest.mark.parametrize("write", WEIGHT_FILES.values(), ids=WEIGHT_FILES)
def test_commands_refuse_what_are_no_weights(write, run, tmp_path):
    write(tmp_path / "net.pth")
    size = ["--set", "generator.features=4", "--set", "generator.blocks=1", "--set", "generator.growth=4"]
    check_refused(run("test.py", "--opt", RECIPE, *size, "--benchmarks", "photos", "--weights", "net.pth"))
    assert not (tmp_path / "CANARY").exists()
