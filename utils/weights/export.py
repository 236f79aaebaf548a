"""Convert generator weights to another format: `python -m utils.weights.export generator_latest.pth --to onnx`.

The exported file is opened with the library that its users use, and its images are compared with the network's, before
it gets its name.
"""

import argparse
import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sed_sr.data.files import atomic_writer
from sed_sr.models.spandrel_generator import SpandrelGenerator, in_one_line
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint, hub
from sed_sr.utils.weights.architecture import detect_architecture
from sed_sr.utils.weights.formats import in_basicsr_names
from sed_sr.utils.weights.generator_file import GeneratorFile, load_generator, open_generator_file
from sed_sr.utils.weights.pretrained import locate

OPSET = 18  # of ONNX, from 2022; PyTorch's exporter writes it without a conversion
ONNX_NEEDS = "pip install onnx onnxruntime onnxscript"
# Shapes of the LR images compared: a multiple of SwinIR's window and not, one image and several.
COMPARED_SHAPES = ((1, 3, 16, 16), (2, 3, 21, 37))
MAX_DIFFERENCE = 1e-4  # of SR in [0, 1]

Network = Callable[[Tensor], Tensor]  # LR (B, 3, H, W) float in [0, 1] -> SR (B, 3, scale * H, scale * W)


@dataclass(frozen=True)
class Format:
    """A file format: how its bytes are made, and how it is opened."""

    suffix: str  # of the output's name, if the user gives none
    about: str
    write: Callable[[GeneratorFile, nn.Module], bytes | memoryview]
    open: Callable[[Path], Network]


def _entry(file: GeneratorFile) -> str:
    """The entry in which BasicSR's tools expect the weights."""
    return "params_ema" if file.weights.entry == "params_ema" else "params"


def _write_safetensors(file: GeneratorFile, generator: nn.Module) -> bytes:
    return checkpoint.as_safetensors(generator.state_dict(), entry=_entry(file), record=file.record)


def _write_basicsr(file: GeneratorFile, generator: nn.Module) -> memoryview:
    return checkpoint.as_torch({_entry(file): in_basicsr_names(generator.state_dict()), **file.record})


def _write_esrgan(file: GeneratorFile, generator: nn.Module) -> memoryview:
    if file.other is not None or detect_architecture(file.weights.state) is None:
        raise UserError(
            f"the network of {file.path} cannot be detected from its tensors alone as RRDB or SwinIR, as the "
            "pth-esrgan format requires; use another format, such as safetensors"
        )
    # The newer of ESRGAN's two namings, which is also this project's: ESRGAN's test.py and KAIR load it strictly.
    # Programs that read the older one (model.0, ...) convert it, and read both.
    return checkpoint.as_torch(dict(generator.state_dict()))


def _open_weights(path: Path) -> Network:
    return load_generator(open_generator_file(path)).eval()


def _write_onnx(file: GeneratorFile, generator: nn.Module) -> bytes:
    try:
        import onnx  # here, because it is optional
        import onnxscript  # noqa: F401, required by PyTorch's exporter
    except ImportError as error:
        raise UserError(f"an export to ONNX needs {error.name}, which is not installed: {ONNX_NEEDS}") from None
    if isinstance(generator, SpandrelGenerator) and generator.replaced_parameters():  # the exporter would crash
        raise UserError(f"{file.path} cannot be exported to ONNX: {generator.about}, replaces parameters when it runs")
    sizes = {dim: torch.export.Dim(name, min=1) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    try:
        program = torch.onnx.export(
            generator,
            (torch.zeros(COMPARED_SHAPES[-1]),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=(sizes,),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:  # PyTorch 2.6 cannot export SwinIR for dynamic sizes
        raise UserError(
            f"PyTorch {torch.__version__} cannot export {file.path} to ONNX for images of any size: a newer version may"
        ) from error
    assert program is not None  # it is without dynamo=True
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # contains source lines and paths of this machine
    onnx.helper.set_model_props(model, {checkpoint.RECORD: json.dumps(file.record)})
    return model.SerializeToString()


def _open_onnx(path: Path) -> Network:
    try:
        import onnxruntime  # here, because it is optional
    except ImportError:
        raise UserError(
            f"an export to ONNX is checked with onnxruntime, which is not installed: {ONNX_NEEDS}"
        ) from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])


def _write_torchscript(file: GeneratorFile, generator: nn.Module) -> bytes:
    # check_trace compares on the traced size only; `export` compares on other sizes too
    program = torch.jit.trace(generator, torch.zeros(COMPARED_SHAPES[-1]), check_trace=False)
    written = io.BytesIO()
    torch.jit.save(program, written, _extra_files={checkpoint.RECORD: json.dumps(file.record)})
    return written.getvalue()


def _open_torchscript(path: Path) -> Network:
    return torch.jit.load(path, map_location="cpu")


FORMATS = {
    "safetensors": Format(
        ".safetensors", "the weights, and what the file says of their run", _write_safetensors, _open_weights
    ),
    "pth-basicsr": Format(
        "_basicsr.pth", "for BasicSR and Real-ESRGAN, with their names", _write_basicsr, _open_weights
    ),
    "pth-esrgan": Format("_esrgan.pth", "for ESRGAN and KAIR, a bare state dict", _write_esrgan, _open_weights),
    "onnx": Format(".onnx", f"a program for images of any size, opset {OPSET}", _write_onnx, _open_onnx),
    "torchscript": Format(".pt", "a program for images of any size", _write_torchscript, _open_torchscript),
}


def export(file: GeneratorFile, target: Format, output: Path) -> float:
    """Write a generator's weights to `output`; an existing file is replaced.

    Returns:
        The largest difference between the network's images and those of the export.

    Raises:
        UserError: the file holds no network of this project, a library is missing, `output` cannot be written, or the
            images differ; `output` is unchanged.
    """
    generator = load_generator(file).eval().requires_grad_(False)
    with atomic_writer(output) as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecations within PyTorch, and sizes that tracing might fix
        try:
            written.write(target.write(file, generator))
            written.flush()
            difference = _difference(target.open(Path(written.name)), generator)
        except Exception as error:  # of any kind from networks that PyTorch's exporters were not tried on
            if isinstance(error, UserError) or not isinstance(generator, SpandrelGenerator):
                raise
            raise UserError(f"{file.path} cannot be exported: {in_one_line(error)}") from error
        if not difference <= MAX_DIFFERENCE:
            raise UserError(
                f"{output} was not written: its images would differ from those of {file.path} by up to {difference:.2g}"
            )
    return difference


@torch.inference_mode()
def _difference(program: Network, generator: nn.Module) -> float:
    """The largest difference between SR of the two, relative to SR's largest value if that is above 1."""
    differences = []
    for shape in COMPARED_SHAPES:
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        expected, sr = generator(lr), program(lr)
        if sr.shape != expected.shape:
            return float("inf")
        differences.append((sr - expected).abs().max() / expected.abs().max().clamp(min=1))
    return torch.stack(differences).max().item()  # NaN if one of them is, unlike Python's max


def parse_arguments() -> argparse.Namespace:
    formats = "; ".join(f"{name}: {target.about}" for name, target in FORMATS.items())
    parser = argparse.ArgumentParser(prog="python -m utils.weights.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", help="generator weights, in any supported format; a path, or hf://user/repository/file")
    parser.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help=formats)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: the name of FILE with another ending, in the same folder; of a file on the hub, here",
    )
    parser.add_argument(
        "--weights",
        choices=("params", "params_ema"),
        help="which weights of the file; default: the running average (params_ema) if there is one",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    target = FORMATS[arguments.to]
    path = locate(arguments.file, pretrained_root=Path("pretrained"))
    file = open_generator_file(path, entry=arguments.weights)
    folder = Path() if hub.is_address(arguments.file) else path.parent
    output = arguments.output or folder / (path.stem + target.suffix)
    if os.path.exists(output) and output.samefile(path):
        raise UserError(f"{output} is the file to export; choose another --output")
    print(f"{file.path}: {file.about}")
    difference = export(file, target, output)
    print(
        f"{output}: {arguments.to}, {output.stat().st_size / 1e6:.3g} MB; its images differ from the network's by at "
        f"most {difference:.2g}"
    )
    return 0


if __name__ == "__main__":
    run(main)
