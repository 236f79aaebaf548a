"""The option tree: what can be chosen, what is allowed, and how it is read.

A recipe is a YAML file that says only what makes it different from the one it `extends`. `load_options` merges the
chain of files, then the `--set key=value` of the command line, and checks the result against the classes below. Every
default is the paper's recipe for classical x4 SR (SeD, CVPR 2024, section 4.1 and the released configuration).

The classes are frozen: nothing changes an option after it was read.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from sed_sr.options.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------
# The tree


def _whole(value: Any) -> Any:
    """3e5 is a float to YAML and a number of steps to a person."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch_or_auto(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("should be true, false or auto")
    return value


def _compile_switch(value: Any) -> Any:
    if value in ("default", "reduce-overhead", None):  # of an earlier version
        raise ValueError("should be true or false; CUDA graphs have an option of their own, train.cuda_graph")
    return value


def _size_or_auto(value: Any) -> Any:
    value = _whole(value)
    if value not in ("auto", None) and not (type(value) is int and 1 <= value < 2**63):
        raise ValueError("should be a whole number above 0, auto or null")
    return value


def _digits(value: Any) -> Any:
    """A number as text, which is what a layer is called."""
    value = _whole(value)
    return str(value) if type(value) is int else value


def _possible_path(value: str | Path) -> str | Path:
    """The value, if a file could be called so. With other names the calls of the system fail in many ways, late."""
    encoded = os.fsencode(value)
    if b"\0" in encoded or len(encoded) > 2000 or any(len(name) > 255 for name in encoded.split(b"/")):
        raise ValueError("should be a path, of names of at most 255 bytes")
    return value


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("should be the lower end and the upper end of a range")
    return ends


# The bounds stand before the validator, or they would be missing from the JSON schema.
Natural = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, lt=2**63), BeforeValidator(_whole)]
# Unions of the two would answer a mistake with a sentence for each.
SwitchOrAuto = Annotated[
    bool | str,
    BeforeValidator(_switch_or_auto),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "auto"}]}),
]
SizeOrAuto = Annotated[
    int | str | None,
    BeforeValidator(_size_or_auto),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "exclusiveMaximum": 2**63},
                {"const": "auto"},
                {"type": "null"},
            ]
        }
    ),
]
TileSide = Annotated[int, Field(ge=64, multiple_of=8), BeforeValidator(_whole)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_rising)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]
OddSide = Annotated[int, Field(ge=3, le=21), BeforeValidator(_whole)]
Quality = Annotated[float, Field(ge=1, le=100)]
FileName = Annotated[str, AfterValidator(_possible_path)]
# a name, or a whole number
Layer = Annotated[
    str,
    BeforeValidator(_digits),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
Weight = Annotated[float, Field(gt=0, le=100)]
_WEIGHT = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}
_FOLDER_WEIGHTS = {"type": "object", "additionalProperties": _WEIGHT, "minProperties": 1}
# weights of folders; a name alone stands for that folder
Folders = Annotated[
    dict[FileName, Weight],
    BeforeValidator(lambda value: {value: 1.0} if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, _FOLDER_WEIGHTS]}),
]
# strict mode would refuse the string that YAML gives
Location = Annotated[Path, Field(strict=False), AfterValidator(_possible_path)]


class Section(BaseModel):
    """A group of options. Unknown keys are refused, types are not converted, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Paths(Section):
    """Folders. Relative ones are relative to where the command is run."""

    data_root: Location = Field(Path("DF2K"), description="folder of the training set; `dataset` names folders in it")
    data_test_root: Location = Field(Path("Evaluation"), description="folder of the benchmarks: Set5, Set14, ...")
    out_root: Location = Field(Path("checkpoint"), description="runs are written to <out_root>/<name>")
    pretrained_root: Location = Field(Path("pretrained"), description="folder of the pretrained weights")


class RRDBOptions(Section):
    """The generator of ESRGAN (Wang et al. 2018); the defaults are its 16.70 M parameters."""

    type: Literal["rrdb"] = Field(description="residual-in-residual dense blocks, convolutions alone")
    features: Positive = Field(64, description="channels of the trunk")
    blocks: Positive = Field(23, description="number of residual-in-residual dense blocks")
    growth: Positive = Field(32, description="channels that each convolution of a dense block adds")


class SwinIROptions(Section):
    """SwinIR (Liang et al. 2021); the defaults are SwinIR-M for classical SR."""

    type: Literal["swinir"] = Field(description="attention within shifted windows")
    embed_dim: Positive = Field(180, description="channels of the transformer blocks")
    depths: tuple[Positive, ...] = Field((6,) * 6, description="transformer blocks in each residual group")
    heads: tuple[Positive, ...] = Field((6,) * 6, description="attention heads in each residual group")
    window: Positive = Field(8, description="side of an attention window in LR pixels")
    mlp_ratio: PositiveFloat = Field(2.0, le=100, description="hidden channels of the MLP, as a multiple of embed_dim")
    drop_path: Fraction = Field(0.1, description="stochastic depth of the last block in training, rising from 0")
    upsampler: Literal["pixelshuffle", "nearest+conv"] = Field(
        "pixelshuffle",
        description="pixelshuffle: of classical SR; nearest+conv: of the published SwinIR for photographs",
    )


GeneratorOptions = Annotated[Union[RRDBOptions, SwinIROptions], Field(discriminator="type")]  # noqa: UP007


class DiscriminatorOptions(Section):
    """PatchGAN or U-Net; conditioned on semantic features, the paper's SeD."""

    type: Literal["patch", "unet"] = Field(description="patch: PatchGAN; unet: per-pixel U-Net of Real-ESRGAN")
    fusion: Literal["cross-attention", "concatenation", "none"] = Field(
        "cross-attention",
        description="how it sees semantic features; cross-attention: the blocks of SeD; concatenation: beside its own "
        "features, without attention; none: not at all, the plain baseline",
    )
    features: Positive = Field(64, description="channels after the first convolution")


class SemanticExtractorOptions(Section):
    """The frozen vision model whose features condition a semantic discriminator; the default is CLIP RN50's layer3."""

    model: str = Field(
        "clip/RN50",
        description="clip/<tower of OpenAI's CLIP, as open_clip calls it>, or timm/<model of timm>, such as "
        "timm/vit_small_patch14_dinov2.lvd142m",
    )
    layer: Layer = Field(
        "16", description="layer whose output is taken: its name in the model, or its stride (the deepest of that one)"
    )
    weights: FileName | None = Field(
        None,
        description="null: the model's published ones, downloaded to pretrained_root when missing; a path, or `random`",
    )
    batch_statistics: bool = Field(
        False, description="keep its BatchNorm in training mode, as the released code did (for reproduction only)"
    )


class PixelLossOptions(Section):
    """L1 between SR and HR."""

    weight: PositiveFloat = Field(1.0, description="factor of the L1 loss in the generator's objective")


class PerceptualLossOptions(Section):
    """L1 between VGG19 features of SR and HR, taken before the ReLU."""

    weight: PositiveFloat = Field(0.1, description="factor in the generator's objective; 0.1 with patch, 1.0 with unet")
    layers: dict[str, NonNegativeFloat] = Field(
        {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
        description="weight of each layer; an empty mapping is refused",
        min_length=1,
    )
    vgg_weights: FileName = Field(
        "vgg19-dcbb9e9d.pth", description="a known file (downloaded when missing), a path, or `random`"
    )


class GANLossOptions(Section):
    """The adversarial loss of G and D."""

    type: Literal["vanilla", "lsgan", "hinge", "relativistic"] = Field("vanilla", description="formula of the loss")
    weight: PositiveFloat = Field(0.01, description="factor in the generator's objective; D's loss is not scaled")


class LossOptions(Section):
    """The terms of the generator's objective; `null` leaves one out."""

    pixel: PixelLossOptions | None = Field(PixelLossOptions(), description="L1 loss")
    perceptual: PerceptualLossOptions | None = Field(PerceptualLossOptions(), description="VGG19 loss")
    gan: GANLossOptions | None = Field(GANLossOptions(), description="adversarial loss")


class DatasetOptions(Section):
    """The training set: folders in `paths.data_root`, of HR and LR images of the same names, or of HR images alone."""

    hr: Folders = Field(
        {"train_sub": 1.0},
        description="folder of the HR images; or, where LR is null, several with weights, {DF2K_sub: 1, OST_sub: 0.5}: "
        "how often an image is seen compared with one of weight 1",
        min_length=1,
    )
    lr: FileName | None = Field(
        "train_sub_x4", description="folder of the LR images; null: `degradation` makes them from HR"
    )
    lr_patch_px: Positive = Field(64, description="side of the random LR crop; the HR crop is 4 times as large")
    augment: bool = Field(True, description="flips and 90-degree rotations, 8 ways")


class KernelKindOptions(Section):
    """Probabilities of the kinds of blur; they add up to 1."""

    iso: Probability = Field(description="Gaussian")
    aniso: Probability = Field(description="Gaussian, elliptic and turned")
    generalized_iso: Probability = Field(description="generalized Gaussian: its exponent is beta_generalized")
    generalized_aniso: Probability = Field(description="the same, elliptic and turned")
    plateau_iso: Probability = Field(description="flat within, its edge as steep as beta_plateau says")
    plateau_aniso: Probability = Field(description="the same, elliptic and turned")


class ResizeOptions(Section):
    """Probabilities of the three ways to resize; they add up to 1."""

    up: Probability = Field(description="by a factor from 1 to the end of resize_range")
    down: Probability = Field(description="by a factor from the beginning of resize_range to 1")
    keep: Probability = Field(description="not at all")


class DegradationStageOptions(Section):
    """Blur, resize, noise and JPEG, once."""

    blur_probability: Probability = Field(description="of any blur")
    kernel_px: tuple[OddSide, OddSide] = Field(description="smallest and largest side of the kernel, odd")
    kernel_kinds: KernelKindOptions = Field(description="probability of each kind, where it is no sinc")
    sinc_probability: Probability = Field(description="of a sinc kernel, which rings")
    sigma_px: PositiveRange = Field(description="standard deviation of a blur, along each axis")
    beta_generalized: PositiveRange = Field(description="exponent of generalized Gaussians")
    beta_plateau: PositiveRange = Field(description="exponent of plateaus")
    resize: ResizeOptions = Field(description="probability of each way to resize")
    resize_range: PositiveRange = Field(description="factors; in the second stage of the LR size, in the first of HR's")
    gaussian_noise_probability: Probability = Field(description="of Gaussian noise; otherwise it is Poisson noise")
    gaussian_noise_sigma: Range = Field(description="standard deviation, of 255")
    poisson_noise_scale: Range = Field(description="factor of the noise of counting photons")
    grey_noise_probability: Probability = Field(description="of noise that is the same in all colours")
    jpeg_quality: tuple[Quality, Quality] = Field(description="lowest and highest quality, 1 to 100")


class SharpeningOptions(Section):
    """Unsharp masking of HR, before it is degraded."""

    kernel_px: Annotated[int, Field(ge=3, le=255), BeforeValidator(_whole)] = Field(
        description="side of the Gaussian kernel, odd; its sigma is OpenCV's for that side"
    )
    weight: NonNegativeFloat = Field(description="how much of the detail is added")
    threshold: NonNegativeFloat = Field(description="detail below it, of 255, is left alone")


class DegradationOptions(Section):
    """LR made from HR while training, as Real-ESRGAN does it; its numbers stand in train_rrdb_P+SeD_real.yml."""

    hr_px: Positive = Field(description="side of the HR crop that is degraded; training pairs are cut from it")
    sharpening: SharpeningOptions | None = Field(description="of HR before it is degraded; null: none")
    sharpened_targets: tuple[Literal["pixel", "perceptual", "gan"], ...] = Field(
        description="losses that compare with the sharpened HR; the others compare with HR itself"
    )
    first: DegradationStageOptions = Field(description="first blur, resize, noise and JPEG")
    second: DegradationStageOptions = Field(description="second ones; its JPEG comes before or after the final sinc")
    final_sinc_probability: Probability = Field(description="of a sinc kernel at the end")
    pool_pairs: Natural = Field(
        description="pairs of earlier batches that each process mixes with the new ones, because those of a batch are "
        "resized alike; 0: none"
    )


class DataLoaderOptions(Section):
    """How batches are made."""

    batch_size: SizeOrAuto = Field(
        None,
        description="pairs that a process computes at once; null: as train.total_batch_size needs, at most 12; auto: "
        "as many as memory holds",
    )
    num_workers: Natural | Literal["auto"] = Field(
        "auto",
        description="reading processes of each training process; auto: its share of the CPU cores, at most 8; 0: read "
        "in the process itself",
    )


class OptimizerOptions(Section):
    """Adam for both networks, and how far it moves them at which step."""

    learning_rate: PositiveFloat = Field(1e-4, description="of the generator")
    discriminator_learning_rate: PositiveFloat = Field(1e-4, description="of the discriminator")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), description="Adam's decay rates of the two moments")
    schedule: Literal["stepwise", "cosine"] = Field(
        "stepwise", description="stepwise: `decay` at each of `milestones`; cosine: to zero at the last step"
    )
    milestones: tuple[Positive, ...] = Field(
        (100_000, 200_000), description="steps at which the stepwise schedule multiplies both learning rates by `decay`"
    )
    decay: PositiveFloat = Field(0.5, description="factor at each milestone")
    warmup_steps: Natural = Field(0, description="steps in which both learning rates rise from zero, whatever follows")
    clip_grad_norm: PositiveFloat | None = Field(
        None, description="gradients of a longer norm, over all parameters of a network, are scaled to it; null: never"
    )


class TrainOptions(Section):
    """Length, arithmetic and records of a training run."""

    start_from: FileName | None = Field(
        None, description="generator weights that a new run starts from, in any released format; null: random ones"
    )
    total_steps: Positive = Field(300_000, description="optimisation steps of the whole run")
    total_batch_size: Positive | None = Field(
        32,
        description="pairs in a step, of all processes together (the paper: 4 processes of 8); null: what "
        "dataloader.batch_size and train.accumulate_batches of every process make",
    )
    accumulate_batches: Positive | None = Field(
        None,
        description="batches of each process whose gradients make one step; null: as train.total_batch_size needs",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="arithmetic of the networks. auto: tf32 on a GPU that has it, else fp32; tf32: fp32 whose "
        "convolutions round their inputs to 10 bits, which is PyTorch's default on such GPUs",
    )
    cuda_graph: SwitchOrAuto = Field(
        "auto", description="record a step once and replay it, which saves launching kernels one by one; auto: on a GPU"
    )
    compile: Annotated[bool, BeforeValidator(_compile_switch)] = Field(
        False, description="torch.compile the generator's repeated block and the discriminator; useful on a GPU"
    )
    deterministic: bool = Field(
        False, description="use deterministic algorithms on a GPU, so that a resumed run equals an undisturbed one"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the generator's blocks again in the backward pass: less memory, more time"
    )
    ema_decay: Fraction | None = Field(None, description="exponential moving average of G's weights; null: none")
    max_bad_steps: Positive = Field(
        20, description="steps in a row that may be skipped because a loss or a gradient is not finite"
    )
    log_every_steps: Positive = Field(100, description="steps between two lines of the log")
    watch_every_steps: Positive = Field(
        1_000, description="steps between two looks at the loss terms' shares in G's gradient and at D's spectral norms"
    )
    save_every_steps: Positive = Field(5_000, description="steps between two saves of weights and training state")
    keep_states: Positive = Field(3, description="how many training states are kept, the newest; the best is kept too")
    keep_weights: Positive = Field(
        50_000, description="steps between two files of generator weights that are kept, beside the latest and the best"
    )


class ValidationOptions(Section):
    """Scores during training."""

    every_steps: Positive = Field(5_000, description="steps between two validations; the last step is validated too")
    benchmarks: tuple[FileName, ...] = Field(("Set5",), description="benchmarks in paths.data_test_root; [] for none")
    metrics: tuple[str, ...] = Field(
        ("psnr", "ssim"),
        description="which scores, all required, as of test.metrics: psnr, ssim, lpips, lpips-vgg, or the name that "
        "pyiqa gives a metric",
        min_length=1,
    )
    best_by: str | None = Field(
        None,
        description="one of validation.metrics; the weights with the best mean of it over all images of the first "
        "benchmark are kept apart; null: none",
    )


class TestOptions(Section):
    """What `test.py` scores."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    weights: tuple[FileName, ...] = Field(
        (), description="generator weights in any released format, or `bicubic`, side by side; LABEL=FILE names one"
    )
    benchmarks: tuple[FileName, ...] = Field(
        ("Set5", "Set14", "Urban100", "Manga109", "DIV2K"),
        description="names in paths.data_test_root, or folders; a folder without HR is simply upscaled",
        min_length=1,
    )
    metrics: tuple[str, ...] | None = Field(
        None,
        description="which scores, all required: psnr, ssim, lpips, lpips-vgg, or the name that pyiqa gives a metric; "
        "null: psnr and ssim, and lpips if its backbone can be had",
    )
    paper_row: str | None = Field(None, description="row of the paper's Table 1 to print beside, e.g. RRDB+P+SeD")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic of the generator")
    batch_size: Positive = Field(1, description="images upscaled together where neighbours are of one size")
    tile_px: TileSide | None = Field(
        None,
        description="side of the square of LR pixels that the generator gets at most at once; larger images are "
        "upscaled in overlapping tiles of it. null: found from free memory",
    )
    self_ensemble: bool = Field(False, description="average over 8 flips and rotations (EDSR+): 8 times as slow")


class Options(Section):
    """Everything that a run of `train.py` or `test.py` depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]*$", max_length=200)] = Field(
        description="name of the run and of its folder: letters, digits, and . _ + -"
    )
    seed: Natural = Field(1, description="every random choice derives from it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one, else cpu")
    paths: Paths = Paths()
    generator: GeneratorOptions = Field(description="the network that is trained")
    discriminator: DiscriminatorOptions | None = Field(
        description="its adversary; null: PSNR-oriented training without one"
    )
    semantic_extractor: SemanticExtractorOptions = SemanticExtractorOptions()
    losses: LossOptions = LossOptions()
    dataset: DatasetOptions = DatasetOptions()
    degradation: DegradationOptions | None = Field(None, description="how LR is made from HR; null: LR images are read")
    dataloader: DataLoaderOptions = DataLoaderOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    train: TrainOptions = TrainOptions()
    validation: ValidationOptions = ValidationOptions()
    test: TestOptions = TestOptions()

    def as_yaml(self) -> str:
        """The whole tree as YAML; `load_options` reads it back to an equal tree."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def impossible_combinations(options: Options) -> Iterator[tuple[str, str]]:
    """(key path, what is wrong) for each choice that is allowed alone and makes no sense beside another one."""
    losses, adversary = options.losses, options.discriminator
    if adversary is not None and losses.gan is None:
        yield "losses.gan", "is null, but a discriminator is given; set discriminator: null, or give losses.gan"
    if adversary is None and losses.gan is not None:
        yield "losses.gan", "needs a discriminator, but discriminator is null; set losses.gan: null, or give one"
    if losses == LossOptions(pixel=None, perceptual=None, gan=None):
        yield "losses", "has no term; give at least one of pixel, perceptual, gan"
    if adversary is not None:
        # HR crops are 4 times as large; the discriminators halve them up to four times, the extractor does so too
        if options.dataset.lr_patch_px % 4:
            yield "dataset.lr_patch_px", f"is {options.dataset.lr_patch_px}; with a discriminator a multiple of 4"
        if adversary.type == "patch" and options.dataset.lr_patch_px < 8:
            yield "dataset.lr_patch_px", f"is {options.dataset.lr_patch_px}; with a patch discriminator at least 8"
        if adversary.features % 8:
            yield "discriminator.features", f"is {adversary.features}; should be a multiple of 8"
    yield from _impossible_degradation(options)
    if isinstance(options.generator, SwinIROptions):
        net = options.generator
        if len(net.depths) != len(net.heads):
            yield "generator.heads", f"has {len(net.heads)} entries and depths {len(net.depths)}; one for each group"
        odd = [heads for heads in net.heads if net.embed_dim % heads]
        if odd:
            yield "generator.heads", f"has {odd[0]}, which does not divide embed_dim {net.embed_dim}"
    if any(a >= b for a, b in zip(options.optimizer.milestones, options.optimizer.milestones[1:], strict=False)):
        yield "optimizer.milestones", f"should rise: {list(options.optimizer.milestones)}"
    if options.optimizer.warmup_steps >= options.train.total_steps:
        yield "optimizer.warmup_steps", f"leaves nothing of the {options.train.total_steps} steps of the run"
    best_by = options.validation.best_by
    if best_by is not None and best_by not in options.validation.metrics:
        yield "validation.best_by", f"is {best_by}, which is not among validation.metrics"
    if best_by is not None and not options.validation.benchmarks:
        yield "validation.best_by", "needs a benchmark, but validation.benchmarks is empty"


def _impossible_degradation(options: Options) -> Iterator[tuple[str, str]]:
    dataset, degradation = options.dataset, options.degradation
    if degradation is None:
        if dataset.lr is None:
            yield "dataset.lr", "is null, so that LR is made from HR, but degradation is null too; give one of them"
        elif len(dataset.hr) > 1:
            yield "dataset.hr", f"has {len(dataset.hr)} folders; with LR images (dataset.lr) it is one"
        return
    if dataset.lr is not None:
        yield "dataset.lr", f"is {dataset.lr}, but degradation makes LR from HR; set dataset.lr: null"
    if degradation.hr_px % 4 or degradation.hr_px < 4 * dataset.lr_patch_px:
        yield (
            "degradation.hr_px",
            f"is {degradation.hr_px}; should be a multiple of 4, at least 4 times dataset.lr_patch_px "
            f"({dataset.lr_patch_px})",
        )
    if degradation.sharpening is None and degradation.sharpened_targets:
        yield "degradation.sharpened_targets", "needs degradation.sharpening, which is null"
    if degradation.sharpening is not None and degradation.sharpening.kernel_px % 2 == 0:
        yield "degradation.sharpening.kernel_px", f"is {degradation.sharpening.kernel_px}; should be odd"
    for name in ("first", "second"):
        stage, key = getattr(degradation, name), f"degradation.{name}"
        for part in ("kernel_kinds", "resize"):
            total = sum(getattr(stage, part).model_dump().values())
            if abs(total - 1) > 1e-6:
                yield f"{key}.{part}", f"adds up to {total:g}; probabilities should add up to 1"
        smallest, largest = stage.kernel_px
        if smallest % 2 == 0 or largest % 2 == 0 or smallest > largest:
            yield f"{key}.kernel_px", f"is {list(stage.kernel_px)}; should be two odd sides, the smaller one first"
        if stage.jpeg_quality[0] > stage.jpeg_quality[1]:
            yield f"{key}.jpeg_quality", f"is {list(stage.jpeg_quality)}; should be the lower one first"
        for part in ("resize_range", "beta_generalized", "beta_plateau"):  # drawn below 1 and above it
            low, high = getattr(stage, part)
            if not low <= 1 <= high:
                yield f"{key}.{part}", f"is {[low, high]}; should hold 1"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Override:
    """One choice of the command line."""

    key: str  # path in the tree, e.g. train.total_steps
    value: Any
    said: str  # as the user typed it, for messages

    @classmethod
    def parse(cls, text: str) -> "Override":
        """From the argument of `--set`: `key=value`, the value read as YAML. Raises UserError for another form."""
        said = f"--set {_one_line(text)}"
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"{said}: expected key=value, such as --set train.total_steps=1000")
        return cls(key, _Reader(said).document(value), said)


def load_options(recipe: str | Path | dict[str, Any], overrides: Sequence[Override] = ()) -> Options:
    """Read a recipe, the recipes that it extends, and the command line's overrides (the last one wins).

    Args:
        recipe: a file; or a tree of keys and values that stands for one, where there is no file.

    Raises UserError that names file and line (or the argument) of every key that is wrong, what was given and what
    is allowed. Of a key that only a tree gave, no place is named.
    """
    tree, said = (_plain(recipe), {}) if isinstance(recipe, dict) else _read_chain(Path(recipe), ())
    for override in overrides:
        *parents, _ = path = tuple(override.key.split("."))
        for depth in range(1, len(parents) + 1):
            said.setdefault(path[:depth], override.said)
        _merge(tree, _nested(path, override.value), whole=WHOLE - {path[:2]} if len(path) > 2 else WHOLE)
        said[path] = override.said
    try:
        options = Options.model_validate(tree)
    except ValidationError as error:
        # Wrong items do not count, so that a list of nothing else is too short as well.
        problems = [
            _explain(found) for found in error.errors() if not (found["type"] == "too_short" and found["input"])
        ]
    else:
        problems = [(tuple(key.split(".")), text) for key, text in impossible_combinations(options)]
        if not problems:
            return options
    base = "" if isinstance(recipe, dict) else f"{recipe}: "
    raise UserError(
        "\n".join(_one_line(f"{_where(path, said) or base}{'.'.join(path)} {text}") for path, text in problems)
    )


MAX_VALUES = 10_000  # in a file; a few lines of aliases to aliases would otherwise be billions


class _Loader(yaml.SafeLoader):
    """YAML 1.1, in which 1e-4 would be a string; it is a number here, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


class _Reader:
    """Turns one YAML document into plain values and remembers the line of every key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.said: dict[tuple[str, ...], str] = {}
        self.values = 0

    def document(self, text: str) -> Any:
        """The value of a whole document, None for an empty one. Raises UserError that names the source."""
        try:
            node = yaml.compose(text, Loader=_Loader)
            return self._value(node, ()) if node else None
        except yaml.YAMLError as error:
            raise UserError(f"{self.source}: not valid YAML ({_reason(error)})") from None
        except RecursionError:
            raise UserError(f"{self.source}: not valid YAML (too deeply nested, or an anchor inside itself)") from None

    def _value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise UserError(f"{self.source}: more than {MAX_VALUES} values, the aliases among them written out")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._value(item, path) for item in node.value)
        try:
            value = _Loader("").construct_object(node)
            repr(value)  # fails for numbers of thousands of digits, which no message could show
        except Exception:  # of a tag that does not fit (!!bool x) PyYAML says KeyError, IndexError, AttributeError...
            raise UserError(f"{self._line(node)}: cannot read the value {_short(node.value)}") from None
        return value

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        mapping = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{self._line(key_node)}: a key should be a plain word")
            key = key_node.value
            if key in mapping:
                raise UserError(f"{self._line(key_node)}: the key {_one_line('.'.join((*path, key)))} is given twice")
            here = (*path, key)
            self.said[here] = self._line(key_node)
            mapping[key] = self._value(value_node, here)
        return mapping

    def _line(self, node: yaml.Node) -> str:
        return self.source if self.source.startswith("--set") else f"{self.source}:{node.start_mark.line + 1}"


def _read_chain(file: Path, children: tuple[Path, ...]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The merged tree of a file and of what it extends, and where each key was said."""
    shown = _one_line(str(file))
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob("*.yml")], n=1, cutoff=0.5)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        by = f" (which {children[-1]} extends)" if children else ""
        raise UserError(f"option file {shown}{by} does not exist{hint}") from None
    except (OSError, ValueError) as error:  # the latter: not UTF-8, or a name that no file can have
        raise UserError(f"option file {shown} cannot be read ({_reason(error)})") from None
    if file.resolve() in children:
        raise UserError(f"{shown}: extends itself, by way of {' -> '.join(path.name for path in children)}")
    reader = _Reader(shown)
    tree = reader.document(text)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{shown}: expected keys and values, given {_short(tree)}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree, reader.said
    if not isinstance(parent, str):
        raise UserError(f"{reader.said[('extends',)]}: extends should be the name of one option file")
    merged, said = _read_chain(file.parent / parent, (*children, file.resolve()))
    _merge(merged, tree)
    return merged, {**said, **reader.said}


def _plain(value: Any) -> Any:
    """A copy, in which lists are tuples as in what is read from a file."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(_plain(inner) for inner in value) if isinstance(value, list | tuple) else value


# A mapping that is a choice as a whole: other folders take the place of those before, and do not join them.
WHOLE = frozenset({("dataset", "hr")})


def _merge(
    tree: dict[str, Any],
    changes: dict[str, Any],
    *,
    whole: frozenset[tuple[str, ...]] = WHOLE,
    at: tuple[str, ...] = (),
) -> None:
    """Lay `changes` over `tree`: mappings key by key but for those `whole`, everything else replaced."""
    for key, value in changes.items():
        here = (*at, key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and here not in whole:
            _merge(tree[key], value, whole=whole, at=here)
        else:
            tree[key] = value


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Saying what is wrong

_GENERATORS = get_args(get_args(GeneratorOptions)[0])  # the classes of the union
_GENERATOR_TYPES = [get_args(net.model_fields["type"].annotation)[0] for net in _GENERATORS]


def _explain(problem: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """(key path, sentence) for one of pydantic's findings."""
    path = tuple(
        str(part)
        for depth, part in enumerate(problem["loc"])
        if not (depth == 1 and part in _GENERATOR_TYPES)  # pydantic puts the union's tag into the path
    )
    if path[-1:] == ("[key]",):  # of a mapping whose keys are the choice
        path = path[:-2]
    given = _short(problem["input"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        keys = list(_section_of(problem["loc"][:-1]).model_fields)
        return path, f"is not an option{did_you_mean(path[-1], keys)}; allowed here: {', '.join(keys)}"
    if kind in ("missing", "union_tag_not_found"):
        if kind == "union_tag_not_found" and isinstance(problem["input"], dict):
            path = (*path, "type")
        return path, "is required and was not given"
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", problem["ctx"].get("expected") or problem["ctx"]["expected_tags"])
        if kind == "union_tag_invalid":
            path, given = (*path, "type"), repr(problem["input"]["type"])
        return path, f"is {given}{did_you_mean(given.strip(repr(' ')), allowed)}; allowed: {', '.join(allowed)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return path, f"is {given}; expected keys and values"
    if kind == "string_pattern_mismatch":
        return path, f"is {given}; expected {Options.model_fields[path[-1]].description}"
    expected = re.sub(r"^(Input|String|Value error,|Value|Tuple|Dictionary) ", "", problem["msg"])
    for python, plain in (("is not a valid path for <class 'pathlib.Path'>", "should be a path"), ("tuple", "list")):
        expected = expected.replace(python, plain)
    return path, f"is {given}; it {expected.removesuffix(' after validation')}"


def _section_of(location: tuple[str | int, ...]) -> type[Section]:
    """The class of the section at a pydantic location."""
    section: type[Section] = Options
    parts = iter(location)
    for part in parts:
        field = section.model_fields[part]
        classes = [c for c in (field.annotation, *get_args(field.annotation)) if isinstance(c, type)]
        sections = [c for c in classes if issubclass(c, Section)]
        section = sections[_GENERATOR_TYPES.index(next(parts))] if len(sections) > 1 else sections[0]
    return section


def _where(path: tuple[str, ...], said: dict[tuple[str, ...], str]) -> str:
    """Where the user said it, with a colon: the closest key on the way up that some file or argument gave."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in said:
            return f"{said[path[:depth]]}: "
    return ""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A suggestion in brackets, to follow the word, where a known one is close to it; else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as YAML has it: null, true, false
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    """What a user wrote, for a message: what cannot be printed is escaped, and the middle of a long text left out."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= 500 else f"{text[:300]}...{text[-197:]}"


def _reason(error: Exception) -> str:
    """The first line of what a library says, without its trace."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error).splitlines()[0]
    return _one_line(f"{reason}{place}")
