"""Measure what semantic extractors cost on a batch of HR crops, and print a table in Markdown.

    python benchmarks/extractors.py --batch 8 --precision bf16
    python benchmarks/extractors.py clip/RN50:layer3 timm/vit_small_patch14_dinov2.lvd142m:blocks.5

They have random weights, which change neither time nor memory. Times are in relation to the first one, measured in
the same run; floating-point operations do not depend on the machine. Memory is that of the weights and of the tensors
that live at one time, at most, while features are computed; what kernels take for themselves is not seen.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.cli import run
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import TensorBytes

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
EXTRACTORS = (
    "clip/RN50:layer3",
    "clip/RN50:layer2",
    "clip/RN50:layer4",
    "clip/RN101:layer3",
    "clip/ViT-B-16:blocks.5",
    "clip/ViT-B-16:blocks.11",
    "timm/resnet50.tv_in1k:layer3",
    "timm/vit_base_patch16_224.augreg_in21k:blocks.11",
    "timm/vit_small_patch14_dinov2.lvd142m:blocks.5",
    "timm/vit_small_patch14_dinov2.lvd142m:blocks.11",
    "timm/convnext_tiny.in12k_ft_in1k:stages.2",
    "timm/vgg19.tv_in1k:8",
    "timm/vgg19.tv_in1k:16",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extractors", nargs="*", default=EXTRACTORS, metavar="MODEL:LAYER", help="(a choice of each)")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (1)")
    parser.add_argument("--crop_px", type=int, default=256, help="side of an image (256)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each (2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    arguments = parser.parse_args()
    device = World().device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    side = arguments.crop_px
    print(f"{name}, {arguments.precision}, batch {arguments.batch} of {side}x{side}\n")
    print("| model | layer | channels | stride | parameters (M) | GFLOP per image | ms | time | memory (MB) |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")

    hr = torch.rand(arguments.batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    unit_s = None
    for spec in arguments.extractors:
        model, _, layer = spec.partition(":")
        extractor = SemanticExtractor(model=model, layer=layer or "16").to(device, memory_format=torch.channels_last)
        seconds, most_bytes = cost(extractor, hr, PRECISIONS[arguments.precision], measured_s=arguments.seconds)
        unit_s = unit_s or seconds
        with FlopCounterMode(display=False) as counter:
            extractor(hr)
        parameters = sum(parameter.numel() for parameter in extractor.parameters())
        cells = (
            model,
            layer,
            extractor.channels,
            extractor.stride,
            f"{parameters / 1e6:.1f}",
            f"{counter.get_total_flops() / 1e9 / arguments.batch:.1f}",
            f"{1000 * seconds:.1f}",
            f"{seconds / unit_s:.2f}",
            f"{most_bytes / 1e6:.0f}",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    return 0


def cost(
    extractor: SemanticExtractor, hr: torch.Tensor, dtype: torch.dtype | None, *, measured_s: float
) -> tuple[float, int]:
    """Median seconds of one call, and bytes of the weights and of the tensors that live at one time, at most.

    Args:
        dtype: of autocast; None: without.
    """
    precision = contextlib.nullcontext() if dtype is None else torch.autocast(hr.device.type, dtype)
    with precision:
        with TensorBytes() as counter:
            extractor(hr)
        timer = Timer("extractor(hr)", globals={"extractor": extractor, "hr": hr}, num_threads=torch.get_num_threads())
        seconds = timer.blocked_autorange(min_run_time=measured_s).median
    weights_bytes = sum(parameter.nbytes for parameter in extractor.parameters())
    return seconds, weights_bytes + counter.peak


if __name__ == "__main__":
    run(main)
