"""Write a generator's weights in the format of another tool: `python -m utils.export generator_latest.pth --to onnx`.

An export gets its name only after it was opened again, by the library that its readers use, and gave the images that
the network gives.
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
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.architecture import architecture
from sed_sr.utils.weights.formats import in_basicsr_names
from sed_sr.utils.weights.generator_file import GeneratorFile, load_generator, open_generator_file

OPSET = 18  # of ONNX, from 2022: what PyTorch's exporter writes without a conversion
ONNX_NEEDS = "pip install onnx onnxruntime onnxscript"
# LR images that an export is compared on: a multiple of SwinIR's window and none, one image and several.
COMPARED = ((1, 3, 16, 16), (2, 3, 21, 37))
LARGEST_DIFFERENCE = 1e-4  # of SR in [0, 1]

Network = Callable[[Tensor], Tensor]  # LR (B, 3, H, W) float in [0, 1] -> SR (B, 3, 4H, 4W)


@dataclass(frozen=True)
class Format:
    """A kind of file: how its bytes are made, and how it is opened."""

    suffix: str  # of the output's name, where the user gives none
    about: str
    write: Callable[[GeneratorFile, nn.Module], bytes]
    open: Callable[[Path], Network]


def _entry(file: GeneratorFile) -> str:
    """The name that BasicSR's tools know the weights by."""
    return "params_ema" if file.weights.entry == "params_ema" else "params"


def _write_safetensors(file: GeneratorFile, generator: nn.Module) -> bytes:
    return checkpoint.as_safetensors(generator.state_dict(), entry=_entry(file), record=file.record)


def _write_basicsr(file: GeneratorFile, generator: nn.Module) -> bytes:
    return checkpoint.as_torch({_entry(file): in_basicsr_names(generator.state_dict()), **file.record})


def _write_esrgan(file: GeneratorFile, generator: nn.Module) -> bytes:
    if architecture(file.weights.state) is None:
        raise UserError(
            f"pth-esrgan files tell their network by its tensors alone, and those of {file.path} tell none; take "
            "another format, such as safetensors"
        )
    # Of ESRGAN's two namings the later one, which is this project's: its test.py and KAIR load it strictly, while the
    # first one (model.0, ...) is read by programs that convert it, and they know both.
    return checkpoint.as_torch(dict(generator.state_dict()))


def _open_weights(path: Path) -> Network:
    return load_generator(open_generator_file(path)).eval()


def _write_onnx(file: GeneratorFile, generator: nn.Module) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401, PyTorch's exporter needs it
    except ImportError as error:
        raise UserError(f"an export to ONNX needs {error.name}, which is not installed: {ONNX_NEEDS}") from None
    sizes = {dim: torch.export.Dim(name, min=1) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    try:
        program = torch.onnx.export(
            generator,
            (torch.zeros(COMPARED[-1]),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=(sizes,),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:  # as of SwinIR in PyTorch 2.6, whose sizes are beyond it
        raise UserError(
            f"PyTorch {torch.__version__} cannot export {file.path} to ONNX for images of any size; a newer one can"
        ) from error
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # source lines and paths of this machine
    onnx.helper.set_model_props(model, {checkpoint.RECORD: json.dumps(file.record)})
    return model.SerializeToString()


def _open_onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"an export to ONNX is tried with onnxruntime, which is not installed: {ONNX_NEEDS}") from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])


def _write_torchscript(file: GeneratorFile, generator: nn.Module) -> bytes:
    # check_trace would compare on the traced size alone; what is compared below is more
    program = torch.jit.trace(generator, torch.zeros(COMPARED[-1]), check_trace=False)
    written = io.BytesIO()
    torch.jit.save(program, written, _extra_files={checkpoint.RECORD: json.dumps(file.record)})
    return written.getvalue()


def _open_torchscript(path: Path) -> Network:
    return torch.jit.load(path, map_location="cpu")


FORMATS = {
    "safetensors": Format(
        ".safetensors", "the weights, and all that is known of them", _write_safetensors, _open_weights
    ),
    "pth-basicsr": Format("_basicsr.pth", "for BasicSR and Real-ESRGAN, in their names", _write_basicsr, _open_weights),
    "pth-esrgan": Format("_esrgan.pth", "for ESRGAN and KAIR, bare, in RRDB.pth's names", _write_esrgan, _open_weights),
    "onnx": Format(".onnx", f"a program for any size of image, opset {OPSET}", _write_onnx, _open_onnx),
    "torchscript": Format(".pt", "a program for any size of image", _write_torchscript, _open_torchscript),
}


def export(file: GeneratorFile, target: Format, output: Path) -> float:
    """Write a generator's weights to `output`, in place of what may be there.

    Returns:
        The largest difference between the network's images and those of the export.

    Raises:
        UserError: no network of this project is in the file, a library is missing, `output` cannot be written, or the
            export gives other images; `output` is as it was.
    """
    generator = load_generator(file).eval().requires_grad_(False)
    with atomic_writer(output) as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations within PyTorch, and of sizes that tracing might fix
        written.write(target.write(file, generator))
        written.flush()
        difference = _difference(target.open(Path(written.name)), generator)
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{output} was not written: it would give other images than {file.path}, by as much as {difference:.2g}"
            )
    return difference


@torch.inference_mode()
def _difference(program: Network, generator: nn.Module) -> float:
    """The largest one between SR of the two, relative to SR's largest value where that is above 1."""
    differences = []
    for shape in COMPARED:
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        expected, sr = generator(lr), program(lr)
        if sr.shape != expected.shape:
            return float("inf")
        differences.append((sr - expected).abs().max() / expected.abs().max().clamp(min=1))
    return torch.stack(differences).max().item()  # NaN if one is, which Python's max is not


def parse_arguments() -> argparse.Namespace:
    formats = "; ".join(f"{name}: {target.about}" for name, target in FORMATS.items())
    parser = argparse.ArgumentParser(prog="python -m utils.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="generator weights in any format in use")
    parser.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help=formats)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the file, with its name")
    parser.add_argument(
        "--weights",
        choices=("params", "params_ema"),
        help="which of the file's; default: the running average (params_ema) where there is one",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    target = FORMATS[arguments.to]
    file = open_generator_file(arguments.file, entry=arguments.weights)
    output = arguments.output or arguments.file.with_name(arguments.file.stem + target.suffix)
    if os.path.exists(output) and output.samefile(arguments.file):  # which a name too long does not
        raise UserError(f"{output} is the file to export; give another --output")
    print(f"{file.path}: {file.about}")
    difference = export(file, target, output)
    print(
        f"{output}: {arguments.to}, {output.stat().st_size / 1e6:.3g} MB; opened again, its images differ from the "
        f"network's by at most {difference:.2g}"
    )
    return 0


if __name__ == "__main__":
    run(main)
