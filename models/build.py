"""Build networks, losses and the training step from options.

To add a generator or a discriminator, add its class to `GENERATORS` or `DISCRIMINATORS` and its options to
`options/schema.py`. Pretrained weights come in as state dicts: nothing here opens a file.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.generator import Generator
from sed_sr.models.losses.artifact import artifact_loss
from sed_sr.models.losses.dists import DISTSLoss
from sed_sr.models.losses.focal_frequency import focal_frequency_loss
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.losses.lpips import LPIPSDistance
from sed_sr.models.losses.ms_ssim import ms_ssim_loss
from sed_sr.models.losses.perceptual import PerceptualLoss
from sed_sr.models.losses.pixel import l1_loss
from sed_sr.models.precision import keep_in_autocast_type, resolved, use_deterministic_algorithms
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.schedules import cosine, stepwise, warmup
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.models.spandrel_generator import SpandrelGenerator
from sed_sr.models.swinir import SwinIR
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.models.vgg_discriminator import VGGDiscriminator
from sed_sr.options.errors import UserError
from sed_sr.options.schema import GeneratorOptions, Options, SpandrelOptions

GENERATORS = {"rrdb": RRDBNet, "swinir": SwinIR}
DISCRIMINATORS = {"patch": PatchDiscriminator, "unet": UNetDiscriminator}


def build_generator(options: Options, state: dict[str, Tensor] | None = None) -> Generator:
    """Build the generator, with random weights drawn from `options.seed`.

    Args:
        state: for the type spandrel only: the weights that tell which network it is, and which it has then.

    Raises:
        UserError: the network cannot be built or trained, or does not have the scale of the options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if isinstance(options.generator, SpandrelOptions):
            assert state is not None
            return _network_of_spandrel(state, options.generator.weights, scale=options.scale)
        return _generator(options.generator, scale=options.scale)


def _network_of_spandrel(state: dict[str, Tensor], name: str, *, scale: int) -> SpandrelGenerator:
    """Build the network with these weights, and check that it can be trained. `name`: of the file, for messages."""
    try:
        generator = SpandrelGenerator(state)
        if generator.scale != scale:
            raise UserError(f"{generator.about}, but scale is {scale}")
        generator.prepare_for_training()
    except UserError as error:
        raise UserError(f"generator.weights is {name}: {error}") from error
    return generator


def generator_from_dict(options: dict[str, Any], *, scale: int) -> Generator:
    """Build a generator from a `generator:` section as plain data, such as the one stored in a weight file.

    Raises UserError for an unknown type, an unknown option or an invalid value, or if it does not have this scale.
    """
    try:
        # Validated as JSON, where a list is accepted for a tuple.
        return _generator(TypeAdapter(GeneratorOptions).validate_json(json.dumps(options)), scale=scale)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise UserError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _generator(options: GeneratorOptions, *, scale: int) -> Generator:
    return GENERATORS[options.type](scale=scale, **options.model_dump(exclude={"type"}))


def build_discriminator(options: Options, extractor: SemanticExtractor | None) -> nn.Module | None:
    """Build the discriminator, with random weights drawn from `options.seed`; None for PSNR-oriented training.

    Its fusion blocks take the channels and the stride of the extractor's feature maps. Without an extractor it is a
    plain discriminator.
    """
    chosen = options.discriminator
    if chosen is None:
        return None
    semantics = {"semantic_channels": None}
    if extractor is not None:
        semantics = {
            "semantic_channels": extractor.channels,
            "semantic_stride": extractor.stride,
            "fusion": chosen.fusion,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if chosen.type == "vgg":  # depends on the patch size in place of semantics
            return VGGDiscriminator(image_px=options.dataset.hr_patch_px, features=chosen.features)
        return DISCRIMINATORS[chosen.type](**semantics, features=chosen.features)


def needs_extractor(options: Options) -> bool:
    """Whether the discriminator is conditioned on semantic features."""
    return options.discriminator is not None and options.discriminator.fusion != "none"


def build_extractor(options: Options, state: dict[str, Tensor] | None) -> SemanticExtractor | None:
    """Build the frozen semantic extractor; None if the discriminator needs none.

    Args:
        state: weights of the model (`utils.weights.extractor_file`); None gives random weights.

    Raises:
        UserError: the model or the layer does not exist, or `state` does not fit it.
    """
    if not needs_extractor(options):
        return None
    chosen = options.semantic_extractor
    return SemanticExtractor(
        model=chosen.model, layer=chosen.layer, state=state, batch_statistics=chosen.batch_statistics
    )


def build_image_losses(
    options: Options, states: Mapping[str, dict[str, Tensor]]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The terms of the generator's objective that compare SR with HR, by name.

    Args:
        states: weights of the pretrained networks among them, by name; a network without gets random ones.

    Raises:
        UserError: a state dict does not fit its network.
    """
    chosen, losses = options.losses, {}
    if chosen.pixel is not None:
        losses["pixel"] = l1_loss
    if chosen.perceptual is not None:
        term = chosen.perceptual
        losses["perceptual"] = PerceptualLoss(
            model=term.model, layer_weights=term.layers, state=states.get("perceptual")
        )
    if chosen.ms_ssim is not None:
        losses["ms_ssim"] = ms_ssim_loss
    if chosen.dists is not None:
        losses["dists"] = DISTSLoss(states.get("dists"))
    if chosen.lpips is not None:
        losses["lpips"] = LPIPSDistance(chosen.lpips.net, states.get("lpips"))
    if chosen.focal_frequency is not None:
        losses["focal_frequency"] = partial(focal_frequency_loss, alpha=chosen.focal_frequency.alpha)
    return losses


def build_schedule(options: Options) -> Callable[[int], float]:
    """Steps done -> factor of both learning rates."""
    chosen, warmup_steps = options.optimizer, options.optimizer.warmup_steps
    if chosen.schedule == "cosine":
        decay = partial(cosine, total_steps=options.train.total_steps)
    else:
        decay = partial(stepwise, milestones=chosen.milestones, decay=chosen.decay)
    return lambda steps_done: decay(steps_done) * warmup(steps_done, warmup_steps=warmup_steps)


def build_train_step(
    options: Options,
    *,
    generator: Generator,
    device: torch.device,
    extractor_state: dict[str, Tensor] | None,
    loss_states: Mapping[str, dict[str, Tensor]],
) -> TrainStep:
    """Build the training step and everything in it on `device`, for a generator whose weights are loaded.

    Args:
        extractor_state: weights of the semantic extractor; None gives random weights, for tests and for processes that
            receive the weights from another one.
        loss_states: weights of the pretrained networks of the losses, by term; likewise.

    Raises:
        UserError: a state dict does not fit, or the device or the generator does not support what the options ask for.
    """
    train = options.train
    precision = resolved(train.precision, device)
    _check_support(options, generator, device, precision)
    if train.deterministic and device.type != "cpu":
        use_deterministic_algorithms()
    if train.gradient_checkpointing:
        generator.checkpointing = True  # pyright: ignore[reportArgumentType]: nn.Module is typed for tensors only
    extractor, image_losses = build_extractor(options, extractor_state), build_image_losses(options, loss_states)
    discriminator = build_discriminator(options, extractor)
    frozen = [network for network in (extractor, *image_losses.values()) if isinstance(network, nn.Module)]
    for network in filter(None, (generator, discriminator, *frozen)):
        # Convolutions are fastest in channels_last, by far in bfloat16.
        network.to(device=device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    for network in frozen:
        keep_in_autocast_type(network, precision)
    adversary = None
    if discriminator is not None:
        assert options.losses.gan is not None  # options with a discriminator only are refused
        adversary = Adversary(
            discriminator=discriminator,
            optimizer=_adam(options, discriminator, options.optimizer.discriminator_learning_rate),
            loss=GANLoss(options.losses.gan.type),
            extractor=extractor,
            r1_weight=options.losses.r1.weight if options.losses.r1 is not None else None,
        )
    train_step = TrainStep(
        generator=generator,
        generator_optimizer=_adam(options, generator, options.optimizer.learning_rate),
        adversary=adversary,
        image_losses=image_losses,
        ema_losses={"artifact": artifact_loss} if options.losses.artifact is not None else {},
        weights={name: term.weight for name, term in options.losses if term is not None and name != "r1"},
        batches_per_step=train.accumulate_batches or 1,  # unknown until an automatic batch size is measured
        sharpened=options.degradation.sharpened_targets if options.degradation is not None else (),
        schedule=build_schedule(options),
        clip_grad_norm=options.optimizer.clip_grad_norm,
        ema_decay=train.ema_decay,
        precision=precision,
        deterministic=train.deterministic,
    )
    if train.compile:
        train_step.compile()
    return train_step


def _check_support(options: Options, generator: Generator, device: torch.device, precision: str) -> None:
    """Raise UserError if the device or the generator does not support what the options ask for."""
    train = options.train
    if precision in ("fp16", "tf32") and device.type == "cpu":
        raise UserError(f"train.precision is {precision}, which needs a GPU; on a CPU use bf16 or fp32")
    if precision not in generator.precisions:
        raise UserError(f"train.precision is {precision}, which {generator.about} does not support; use fp32")
    if train.cuda_graph is True and device.type == "cpu":
        raise UserError("train.cuda_graph is true, which needs a GPU; on a CPU use auto or false")
    if train.gradient_checkpointing and not hasattr(generator, "checkpointing"):
        raise UserError(f"train.gradient_checkpointing is true, but {generator.about} does not support it: remove it")


def _adam(options: Options, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam over a network's parameters, on the device where they are."""
    return torch.optim.Adam(
        network.parameters(),
        lr=learning_rate,
        betas=options.optimizer.betas,
        fused=True,
        capturable=next(network.parameters()).is_cuda,
    )


def records_graphs(options: Options, device: torch.device) -> bool:
    """Whether training steps on this device run as CUDA graphs."""
    chosen = options.train.cuda_graph
    return device.type == "cuda" if chosen == "auto" else chosen
