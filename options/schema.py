"""The option classes: every key of a recipe, its type, default and description.

The defaults are the paper's recipe for classical x4 SR (SeD, CVPR 2024, section 4.1, and the released configuration).
The classes are frozen: options do not change after they were read.
"""

from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field

from sed_sr.options.value_types import (
    Augmentations,
    BatchSize,
    FileName,
    Folders,
    Fraction,
    JPEGQuality,
    KernelSide,
    Layer,
    Location,
    Natural,
    NaturalOrAuto,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveRange,
    Probability,
    Range,
    Scale,
    SharpeningSide,
    SwitchOrAuto,
    TileSide,
    expect,
)
from sed_sr.options.yaml_text import to_yaml


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Paths(Section):
    """Folders. Relative paths start at the working directory."""

    data_root: Location = Field(default=Path("DF2K"), description="parent of the training folders named in `dataset`")
    data_test_root: Location = Field(
        default=Path("Evaluation"), description="parent of the benchmarks Set5, Set14, ..."
    )
    out_root: Location = Field(default=Path("checkpoint"), description="runs are written to <out_root>/<name>")
    pretrained_root: Location = Field(default=Path("pretrained"), description="folder of the pretrained weights")


class RRDBOptions(Section):
    """The generator of ESRGAN (Wang et al. 2018). The defaults are the published network of 16.70 M parameters."""

    type: Literal["rrdb"] = Field(description="convolutions in residual-in-residual dense blocks")
    features: Positive = Field(default=64, description="channels between the blocks")
    blocks: Positive = Field(default=23, description="number of residual-in-residual dense blocks")
    growth: Positive = Field(default=32, description="channels added by each convolution of a dense block")


class SwinIROptions(Section):
    """SwinIR (Liang et al. 2021). The defaults are SwinIR-M for classical SR."""

    type: Literal["swinir"] = Field(description="Swin transformer blocks: attention in shifted windows")
    embed_dim: Positive = Field(default=180, description="channels of the transformer blocks")
    depths: tuple[Positive, ...] = Field(default=(6,) * 6, description="transformer blocks in each residual group")
    heads: tuple[Positive, ...] = Field(default=(6,) * 6, description="attention heads in each residual group")
    window: Positive = Field(default=8, description="side of an attention window in LR pixels")
    mlp_ratio: PositiveFloat = Field(
        default=2.0, le=100, description="hidden channels of the MLP, as a multiple of embed_dim"
    )
    drop_path: Fraction = Field(
        default=0.1, description="stochastic depth rate of the last block in training; it increases linearly from 0"
    )
    upsampler: Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "none"] = Field(
        default="pixelshuffle",
        description="as published for classical SR (pixelshuffle), lightweight SR (pixelshuffledirect), Real SR "
        "(nearest+conv) and, with scale 1, for denoising (none)",
    )
    resi_connection: Literal["1conv", "3conv"] = Field(
        default="1conv", description="convolutions that end each residual group; 3conv: those of SwinIR-L"
    )


class SpandrelOptions(Section):
    """The network of a weight file of another project, to be fine-tuned: every architecture that spandrel reads."""

    type: Literal["spandrel"] = Field(description="the network of a weight file, such as HAT, DAT, SPAN or Compact")
    weights: FileName = Field(
        description="the weight file: it determines the network, and a new run starts from its weights; a path, also "
        "one in pretrained_root"
    )


GeneratorOptions = Annotated[Union[RRDBOptions, SwinIROptions, SpandrelOptions], Field(discriminator="type")]  # noqa: UP007


class DiscriminatorOptions(Section):
    """PatchGAN or U-Net, with or without semantic features, or the VGG-style network of ESRGAN."""

    type: Literal["patch", "unet", "vgg"] = Field(
        description="patch: PatchGAN; unet: the per-pixel U-Net of Real-ESRGAN; vgg: that of ESRGAN, with one logit "
        "for each image, for fusion none and dataset.hr_patch_px 128 or 256"
    )
    fusion: Literal["cross-attention", "concatenation", "none"] = Field(
        default="cross-attention",
        description="how semantic features enter; cross-attention: the fusion blocks of SeD; concatenation: stacked "
        "with its own features, without attention; none: no semantics, the plain baseline",
    )
    features: Positive = Field(default=64, description="channels after the first convolution")


class SemanticExtractorOptions(Section):
    """The frozen vision model whose features condition the discriminator. The default is layer3 of CLIP RN50."""

    model: str = Field(
        default="clip/RN50",
        description="clip/<vision tower of OpenAI's CLIP, as named by open_clip>, or timm/<model of timm>, such as "
        "timm/vit_small_patch14_dinov2.lvd142m",
    )
    layer: Layer = Field(
        default="16",
        description="layer whose output is used: its name, or its stride (the deepest layer of that stride)",
    )
    weights: FileName | None = Field(
        default=None,
        description="null: the published weights, downloaded to pretrained_root if missing; or a path, or `random`",
    )
    batch_statistics: bool = Field(
        default=False,
        description="run BatchNorm in training mode as the released code did (only to reproduce its results)",
    )


class PixelLossOptions(Section):
    """L1 between SR and HR."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")


class PerceptualLossOptions(Section):
    """L1 between features of SR and HR in a pretrained network."""

    weight: PositiveFloat = Field(
        default=0.1, description="factor in the generator's objective; 0.1 with patch, 1.0 with unet"
    )
    model: str = Field(
        default="vgg19",
        description="vgg19, whose features are taken before the ReLU; or one of semantic_extractor.model, such as "
        "timm/tf_efficientnet_lite0.in1k",
    )
    layers: dict[str, NonNegativeFloat] = Field(
        default={"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
        description="weight of each layer, at least one; must be given for another model than vgg19",
        min_length=1,
    )
    weights: FileName | None = Field(
        default=None,
        description="null: the published weights, downloaded to pretrained_root if missing; or a path, or `random`",
    )


class GANLossOptions(Section):
    """The adversarial loss of generator and discriminator."""

    type: Literal["vanilla", "lsgan", "hinge", "relativistic"] = Field(
        default="vanilla", description="formula of the loss"
    )
    weight: PositiveFloat = Field(
        default=0.01, description="factor in the generator's objective; the loss of the discriminator is not scaled"
    )


class ArtifactLossOptions(Section):
    """LDL (Liang et al. 2022): a distance to HR where SR has artifacts that SR of the averaged weights has not."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")


class MSSSIMLossOptions(Section):
    """1 - multi-scale SSIM (Wang et al. 2003) of the RGB channels."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")


class DISTSLossOptions(Section):
    """DISTS (Ding et al. 2020) on training patches as they are."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")
    weights: Literal["random"] | None = Field(
        default=None,
        description="null: the published ones, downloaded to pretrained_root if missing; random: for tests",
    )


class LPIPSLossOptions(Section):
    """LPIPS (Zhang et al. 2018), version 0.1."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")
    net: Literal["vgg", "alex"] = Field(
        default="vgg",
        description="vgg, as is usual for training; alex is what papers report, and should not be trained for too",
    )
    weights: Literal["random"] | None = Field(
        default=None,
        description="null: the published ones, downloaded to pretrained_root if missing; random: for tests",
    )


class FocalFrequencyLossOptions(Section):
    """Focal frequency loss (Jiang et al. 2021)."""

    weight: PositiveFloat = Field(default=1.0, description="factor in the generator's objective")
    alpha: NonNegativeFloat = Field(
        default=1.0, description="focus on the frequencies with the largest errors; 0: equal weights"
    )


class FeatureMatchingLossOptions(Section):
    """L1 between the discriminator's features of SR and HR (Wang et al. 2018, pix2pixHD), averaged over its layers."""

    weight: PositiveFloat = Field(default=0.1, description="factor in the generator's objective")


class R1Options(Section):
    """Gradient penalty of the discriminator on HR (Mescheder et al. 2018), of the sum of an image's logits."""

    weight: PositiveFloat = Field(
        default=0.001, description="factor in the discriminator's objective; lower for more logits, as with unet"
    )


class LossOptions(Section):
    """The terms of the generator's objective, and `r1` of the discriminator's; `null` omits one."""

    pixel: PixelLossOptions | None = Field(default=PixelLossOptions(), description="L1 loss")
    perceptual: PerceptualLossOptions | None = Field(
        default=PerceptualLossOptions(), description="loss on deep features"
    )
    ms_ssim: MSSSIMLossOptions | None = Field(
        default=None, description="multi-scale SSIM; patches below 176 px have fewer than its five scales"
    )
    dists: DISTSLossOptions | None = Field(default=None, description="DISTS: texture and structure of VGG16 features")
    lpips: LPIPSLossOptions | None = Field(default=None, description="LPIPS: calibrated distance of deep features")
    focal_frequency: FocalFrequencyLossOptions | None = Field(default=None, description="focal frequency loss")
    feature_matching: FeatureMatchingLossOptions | None = Field(
        default=None, description="L1 between features of the discriminator, whose target is that of gan"
    )
    gan: GANLossOptions | None = Field(default=GANLossOptions(), description="adversarial loss")
    artifact: ArtifactLossOptions | None = Field(
        default=None, description="the artifact loss of LDL, with any discriminator; needs train.ema_decay"
    )
    r1: R1Options | None = Field(default=None, description="gradient penalty of the discriminator")


class DatasetOptions(Section):
    """The training set: folders in `paths.data_root` with HR and LR images of equal names, or with HR images only."""

    hr: Folders = Field(
        default={"train_sub": 1.0},
        description="folder of the HR images; if LR is null, also several with weights, {DF2K_sub: 1, OST_sub: 0.5}: "
        "an image of weight 0.5 is drawn half as often as one of weight 1",
        min_length=1,
    )
    lr: FileName | None = Field(
        default="train_sub_x{scale}",
        description="folder of the LR images, where {scale} stands for the scale; null: LR is made from HR, by "
        "`degradation` or else bicubically",
    )
    hr_patch_px: Positive = Field(
        default=256, description="side of the random HR crop, a multiple of the scale; the LR crop is as much smaller"
    )
    augment: Augmentations = Field(
        default=("flip", "rotate"),
        description="random changes: flip, horizontally; rotate, by multiples of 90 degrees; both together: 8 variants",
    )


class KernelKindOptions(Section):
    """Probabilities of the blur kernels; they add up to 1."""

    iso: Probability = Field(description="isotropic Gaussian")
    aniso: Probability = Field(description="anisotropic Gaussian, randomly rotated")
    generalized_iso: Probability = Field(description="isotropic generalized Gaussian with exponent beta_generalized")
    generalized_aniso: Probability = Field(description="anisotropic generalized Gaussian, randomly rotated")
    plateau_iso: Probability = Field(description="isotropic plateau: flat, with an edge of steepness beta_plateau")
    plateau_aniso: Probability = Field(description="anisotropic plateau, randomly rotated")


class ResizeOptions(Section):
    """Probabilities of the resize modes; they add up to 1."""

    up: Probability = Field(description="by a factor between 1 and the upper end of resize_range")
    down: Probability = Field(description="by a factor between the lower end of resize_range and 1")
    keep: Probability = Field(description="no change of size")


class DegradationStageOptions(Section):
    """One pass of blur, resize, noise and JPEG compression."""

    blur_probability: Probability = Field(description="probability of any blur")
    kernel_px: tuple[KernelSide, KernelSide] = Field(description="smallest and largest kernel side, both odd")
    kernel_kinds: KernelKindOptions = Field(description="probability of each kernel, if it is not a sinc kernel")
    sinc_probability: Probability = Field(description="probability of a sinc kernel, which causes ringing")
    sigma_px: PositiveRange = Field(description="standard deviation of the blur along each axis")
    beta_generalized: PositiveRange = Field(description="exponent of generalized Gaussian kernels")
    beta_plateau: PositiveRange = Field(description="exponent of plateau kernels")
    resize: ResizeOptions = Field(description="probability of each resize mode")
    resize_range: PositiveRange = Field(
        description="resize factor, relative to the HR size in the first stage and to the LR size in the second"
    )
    gaussian_noise_probability: Probability = Field(description="probability of Gaussian noise; otherwise Poisson")
    gaussian_noise_sigma: Range = Field(description="standard deviation of Gaussian noise, for pixels in [0, 255]")
    poisson_noise_scale: Range = Field(description="factor applied to Poisson noise")
    grey_noise_probability: Probability = Field(description="probability of noise that is equal in all channels")
    jpeg_quality: tuple[JPEGQuality, JPEGQuality] = Field(description="lowest and highest JPEG quality, 1 to 100")


class SharpeningOptions(Section):
    """Unsharp masking of HR before the degradation."""

    kernel_px: SharpeningSide = Field(
        description="side of the Gaussian kernel, odd; sigma follows from it as in OpenCV"
    )
    weight: NonNegativeFloat = Field(description="strength: factor of the added detail")
    threshold: NonNegativeFloat = Field(description="smaller detail is not sharpened, for pixels in [0, 255]")


class DegradationOptions(Section):
    """LR made from HR during training, as in Real-ESRGAN; train_rrdb_P+SeD_real.yml has the published values."""

    hr_px: Positive = Field(description="side of the HR crop that is degraded; training pairs are cropped from it")
    sharpening: SharpeningOptions | None = Field(description="unsharp masking of HR before the degradation; null: none")
    sharpened_targets: tuple[
        Literal["pixel", "perceptual", "ms_ssim", "dists", "lpips", "focal_frequency", "artifact", "gan"], ...
    ] = Field(
        description="losses whose target is the sharpened HR; the others use HR as it is; gan: all of the discriminator"
    )
    first: DegradationStageOptions = Field(description="first stage")
    second: DegradationStageOptions = Field(
        description="second stage; its JPEG compression comes before or after the final sinc filter, at random"
    )
    final_sinc_probability: Probability = Field(description="probability of the final sinc filter")
    pool_pairs: Natural = Field(
        description="pairs kept by each process to mix new batches with earlier ones, since all pairs of a batch are "
        "resized alike; 0: no mixing"
    )


class DataLoaderOptions(Section):
    """How batches are loaded."""

    batch_size: BatchSize = Field(
        default=None,
        description="pairs per forward pass of a process; null: follows from train.total_batch_size, at most 12; "
        "auto: as many as fit into memory",
    )
    num_workers: NaturalOrAuto = Field(
        default="auto",
        description="loader workers of each training process; auto: the machine's CPU cores divided by its training "
        "processes, at most 8; 0: load in the training process",
    )


class OptimizerOptions(Section):
    """Adam and the learning rate schedule, for both networks."""

    learning_rate: PositiveFloat = Field(default=1e-4, description="of the generator")
    discriminator_learning_rate: PositiveFloat = Field(default=1e-4, description="of the discriminator")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.99), description="Adam's decay rates of the two moments")
    schedule: Literal["stepwise", "cosine"] = Field(
        default="stepwise",
        description="stepwise: multiply by `decay` at each of `milestones`; cosine: to 0 at the last step",
    )
    milestones: tuple[Positive, ...] = Field(
        default=(100_000, 200_000),
        description="steps at which the stepwise schedule multiplies both learning rates by `decay`",
    )
    decay: PositiveFloat = Field(default=0.5, description="factor at each milestone")
    warmup_steps: Natural = Field(default=0, description="steps of linear warm-up of both learning rates; 0: none")
    clip_grad_norm: PositiveFloat | None = Field(
        default=None, description="maximum gradient norm, over all parameters of a network; null: no clipping"
    )


class TrainOptions(Section):
    """Length, precision, logging and saving of a training run."""

    start_from: FileName | None = Field(
        default=None,
        description="generator weights from which a new run starts, in any released format; null: random ones",
    )
    start_discriminator_from: FileName | None = Field(
        default=None,
        description="discriminator weights from which a new run starts: discriminator_latest.pth, a training state, "
        "Real-ESRGAN's netD; null: random ones",
    )
    total_steps: Positive = Field(default=300_000, description="optimisation steps of the whole run")
    total_batch_size: Positive | None = Field(
        default=32,
        description="pairs per optimisation step over all processes (the paper: 4 processes of 8); null: follows from "
        "dataloader.batch_size, train.accumulate_batches and the number of processes",
    )
    accumulate_batches: Positive | None = Field(
        default=None,
        description="batches of each process accumulated into one step; null: follows from train.total_batch_size",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto",
        description="arithmetic of the networks; auto: tf32 on a GPU that has it, else fp32; tf32: fp32 with "
        "convolution inputs rounded to 10 bits, PyTorch's default on such GPUs",
    )
    cuda_graph: SwitchOrAuto = Field(
        default="auto",
        description="capture the training step as a CUDA graph, which saves kernel launches; auto: on a GPU",
    )
    compile: Annotated[bool, expect("true or false; CUDA graphs have their own option, train.cuda_graph")] = Field(
        default=False, description="torch.compile the generator's repeated block and the discriminator; useful on a GPU"
    )
    deterministic: bool = Field(
        default=False, description="use deterministic algorithms on a GPU: a resumed run equals an uninterrupted one"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute the generator's blocks in the backward pass: less memory, more time"
    )
    ema_decay: Fraction | None = Field(
        default=None, description="decay of the exponential moving average of the generator's weights; null: no average"
    )
    max_bad_steps: Positive = Field(
        default=20, description="stop after this many steps in a row without a finite loss and gradient"
    )
    log_every_steps: Positive = Field(default=100, description="steps between two lines of the log")
    watch_every_steps: Positive = Field(
        default=1_000,
        description="steps between two measurements of each loss term's share in the generator's gradient and of the "
        "discriminator's spectral norms",
    )
    save_every_steps: Positive = Field(
        default=5_000, description="steps between two saves of weights and training state"
    )
    keep_states: Positive = Field(default=3, description="newest training states to keep, in addition to the best")
    keep_weights: Positive = Field(
        default=50_000,
        description="steps between generator weights that are kept, in addition to the latest and the best",
    )


class ValidationOptions(Section):
    """Scores during training."""

    every_steps: Positive = Field(
        default=5_000, description="steps between validations; the last step is validated too"
    )
    benchmarks: tuple[FileName, ...] = Field(
        default=("Set5",), description="benchmarks in paths.data_test_root; []: none"
    )
    metrics: tuple[str, ...] = Field(
        default=("psnr", "ssim"),
        description="psnr, ssim, lpips, lpips-vgg, a model's name such as timm/tf_efficientnet_lite0.in1k for the "
        "distance in its features, or a metric of pyiqa by its name there; all must be available",
        min_length=1,
    )
    best_by: str | None = Field(
        default=None,
        description="one of validation.metrics; the weights with the best mean over the images of the first benchmark "
        "are kept separately; null: none",
    )


class TestOptions(Section):
    """What `test.py` scores."""

    __test__ = False  # pytest would collect a class of this name

    weights: tuple[FileName, ...] = Field(
        default=(),
        description="generator weights in any released format, or `bicubic`, to compare; LABEL=FILE sets a label",
    )
    benchmarks: tuple[FileName, ...] = Field(
        default=("Set5", "Set14", "Urban100", "Manga109", "DIV2K"),
        description="names in paths.data_test_root, or folders; a folder without HR images is only upscaled",
        min_length=1,
    )
    metrics: tuple[str, ...] | None = Field(
        default=None,
        description="psnr, ssim, lpips, lpips-vgg, a model's name such as timm/tf_efficientnet_lite0.in1k for the "
        "distance in its features, or a metric of pyiqa by its name there; all must be available; "
        "null: psnr, ssim, and lpips if its backbone is available",
    )
    paper_row: str | None = Field(
        default=None, description="row of the paper's Table 1 to compare with, e.g. RRDB+P+SeD"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="arithmetic of the generator")
    batch_size: Positive = Field(
        default=1, description="images per forward pass, where consecutive images are of equal size"
    )
    tile_px: TileSide | None = Field(
        default=None,
        description="largest side of the generator's input in LR pixels; larger images are upscaled in overlapping "
        "tiles; null: chosen by free memory",
    )
    self_ensemble: bool = Field(
        default=False, description="average over 8 flips and rotations (EDSR+); 8 times as slow"
    )


class Options(Section):
    """All options of `train.py` and `test.py`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]*$", max_length=200)] = Field(
        description="name of the run and of its folder: letters, digits, and . _ + -"
    )
    scale: Scale = Field(default=4, description="HR side / LR side")
    seed: Natural = Field(default=1, description="seed of all random numbers")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if available, else cpu")
    logging: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=("tensorboard",),
        description="experiment loggers that show curves and pictures of a training run: tensorboard, wandb; []: none",
    )
    paths: Paths = Paths()
    generator: GeneratorOptions = Field(description="the network to train")
    discriminator: DiscriminatorOptions | None = Field(
        description="the network of the adversarial loss; null: PSNR-oriented training without it"
    )
    semantic_extractor: SemanticExtractorOptions = SemanticExtractorOptions()
    losses: LossOptions = LossOptions()
    dataset: DatasetOptions = DatasetOptions()
    degradation: DegradationOptions | None = Field(
        default=None,
        description="how LR is made from HR; null: LR is read from dataset.lr; if that is null too, LR is bicubic",
    )
    dataloader: DataLoaderOptions = DataLoaderOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    train: TrainOptions = TrainOptions()
    validation: ValidationOptions = ValidationOptions()
    test: TestOptions = TestOptions()

    def as_yaml(self) -> str:
        """All options as YAML; `load_options` reads it back to an equal tree."""
        return to_yaml(self.model_dump(mode="json"))
