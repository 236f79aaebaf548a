"""From the option tree to modules. Two plain dicts say which networks there are; a new one is a line here."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses import GANLoss, PerceptualLoss
from sed_sr.models.precision import keep_in_autocast_type, resolved, use_deterministic_algorithms
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.schedules import cosine, stepwise, warmup
from sed_sr.models.semantic_extractor import SemanticExtractor, load_extractor_weights, published_weights
from sed_sr.models.swinir import SwinIR
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import GeneratorOptions, Options
from sed_sr.utils.runtime.memory import disable_malloc_trim
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.formats import RECOMPUTED_BUFFERS, check_shapes, load_into
from sed_sr.utils.weights.generator_file import GeneratorFile
from sed_sr.utils.weights.pretrained import locate, verify

GENERATORS = {"rrdb": RRDBNet, "swinir": SwinIR}
DISCRIMINATORS = {"patch": PatchDiscriminator, "unet": UNetDiscriminator}

RANDOM = "random"  # asked for instead of a weight file
MAX_DERIVED_BYTES = 2**30  # of buffers that follow from a window; SwinIR-M's take 20 MB


def build_generator(options: Options) -> nn.Module:
    """The generator of the options, with random weights from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return _generator(options.generator)


def load_generator(file: GeneratorFile, options: dict[str, Any] | None = None) -> nn.Module:
    """The generator of a file, with its weights.

    Args:
        options: the `generator:` of an option file, which the weights must fit; None: what the file tells of itself.

    Raises:
        UserError: the file is of no network of this project, does not fit the options, or tells nonsense. Nothing is
            allocated before the tensors are known to fit, whatever sizes a hostile file claims.
    """
    options = file.generator_options if options is None else options
    if options is None:
        raise UserError(
            f"{file.path} holds {file.weights.kind}; the generators of this project are x4 RRDB, and x4 SwinIR with "
            "pixelshuffle or nearest+conv"
        )
    try:
        options = TypeAdapter(GeneratorOptions).validate_json(json.dumps(options))  # in JSON, a list may be a tuple
        with torch.device("meta"):
            outline = _generator(options)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file.path} asks for a generator that cannot be: {where}: {problem['msg']}") from None
    except RuntimeError:  # sizes whose product no integer holds
        raise UserError(f"{file.path} asks for a generator that is larger than any memory") from None
    check_shapes(outline, file.weights, file.path)
    derived_bytes = sum(b.nbytes for name, b in outline.state_dict().items() if name.endswith(RECOMPUTED_BUFFERS))
    if derived_bytes > MAX_DERIVED_BYTES:
        raise UserError(
            f"{file.path} asks for attention windows whose masks would take {derived_bytes / 1e9:.3g} GB; "
            f"at most {MAX_DERIVED_BYTES / 1e9:.3g} GB make sense"
        )
    generator = _generator(options)
    load_into(generator, file.weights, file.path)
    return generator


def _generator(options: GeneratorOptions) -> nn.Module:
    return GENERATORS[options.type](**options.model_dump(exclude={"type"}))


def build_discriminator(options: Options, extractor: SemanticExtractor | None) -> nn.Module | None:
    """The discriminator of the options, with random weights from the run's seed; None for PSNR-oriented training.

    Its fusion blocks fit the extractor's semantic maps.
    """
    if options.discriminator is None:
        return None
    kind, fusion, features = options.discriminator.type, options.discriminator.fusion, options.discriminator.features
    semantics = {"semantic_channels": None}
    if extractor is not None:
        semantics = {
            "semantic_channels": extractor.channels,
            "semantic_stride": extractor.stride,
            "fusion": fusion,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return DISCRIMINATORS[kind](**semantics, features=features)


def build_extractor(options: Options) -> SemanticExtractor | None:
    """The frozen semantic extractor; None where nothing is conditioned on it."""
    weights = _extractor_weights(options)
    if weights is None:
        return None
    chosen = options.semantic_extractor
    state = None
    if weights != RANDOM:
        path = locate(weights, pretrained_root=options.paths.pretrained_root)
        state = load_extractor_weights(path, chosen.model)
    return SemanticExtractor(
        model=chosen.model, layer=chosen.layer, state=state, batch_statistics=chosen.batch_statistics
    )


def _extractor_weights(options: Options) -> str | None:
    """A file, or `random`; None where no extractor is needed."""
    if options.discriminator is None or options.discriminator.fusion == "none":
        return None
    chosen = options.semantic_extractor
    return published_weights(chosen.model) if chosen.weights is None else chosen.weights


def build_perceptual_loss(options: Options) -> PerceptualLoss | None:
    """The frozen perceptual loss; None where the objective has no such term."""
    perceptual = options.losses.perceptual
    if perceptual is None:
        return None
    weights = perceptual.vgg_weights
    path = None if weights == RANDOM else locate(weights, pretrained_root=options.paths.pretrained_root)
    state = None if path is None else checkpoint.load(path, verified=verify(path))
    return PerceptualLoss(layer_weights=perceptual.layers, state=state)


def pretrained_weights(options: Options) -> dict[str, str]:
    """The pretrained networks that training needs, and what the options give for each: a file, or `random`."""
    wanted = {}
    extractor = _extractor_weights(options)
    if extractor is not None:
        wanted["semantic extractor"] = extractor
    if options.losses.perceptual is not None:
        wanted["VGG19 of the perceptual loss"] = options.losses.perceptual.vgg_weights
    return wanted


def with_random_weights(options: Options) -> Options:
    """The options of a process that reads no pretrained weights, because another one sends it theirs."""
    extractor = options.semantic_extractor.model_copy(update={"weights": RANDOM})
    losses = options.losses
    if losses.perceptual is not None:
        perceptual = losses.perceptual.model_copy(update={"vgg_weights": RANDOM})
        losses = losses.model_copy(update={"perceptual": perceptual})
    return options.model_copy(update={"semantic_extractor": extractor, "losses": losses})


def build_schedule(options: Options) -> Callable[[int], float]:
    """Factor of the learning rates after so many steps."""
    chosen, warmup_steps = options.optimizer, options.optimizer.warmup_steps
    if chosen.schedule == "cosine":
        falling = partial(cosine, total_steps=options.train.total_steps)
    else:
        falling = partial(stepwise, milestones=chosen.milestones, decay=chosen.decay)
    return lambda steps_done: falling(steps_done) * warmup(steps_done, warmup_steps=warmup_steps)


def build_train_step(options: Options, *, generator: nn.Module, device: torch.device) -> TrainStep:
    """All that a training step needs, on `device`, around a generator whose weights are loaded already.

    Raises UserError where a weight file is missing or wrong, or the device cannot do what is asked.
    """
    train = options.train
    precision = resolved(train.precision, device)
    if precision in ("fp16", "tf32") and device.type == "cpu":
        raise UserError(f"train.precision is {precision}, which needs a GPU; on a CPU take bf16 or fp32")
    if train.cuda_graph is True and device.type == "cpu":
        raise UserError("train.cuda_graph is true, which needs a GPU; on a CPU take auto or false")
    if train.gradient_checkpointing and not hasattr(generator, "checkpointing"):
        raise UserError(
            f"train.gradient_checkpointing is true, but {type(generator).__name__} cannot do it: leave it out"
        )
    if device.type == "cpu":
        disable_malloc_trim()
    elif train.deterministic:
        use_deterministic_algorithms()
    extractor, perceptual = build_extractor(options), build_perceptual_loss(options)
    discriminator = build_discriminator(options, extractor)
    for network in filter(None, (generator, discriminator, extractor, perceptual)):
        # the layout in which convolutions run fastest, by far in bfloat16
        network.to(device=device, memory_format=torch.channels_last).train()
    for frozen in filter(None, (extractor, perceptual)):
        keep_in_autocast_type(frozen, precision)
    if train.gradient_checkpointing:
        generator.checkpointing = True

    def adam(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            network.parameters(),
            lr=learning_rate,
            betas=options.optimizer.betas,
            fused=True,
            capturable=device.type == "cuda",
        )

    adversary = {}
    if discriminator is not None:
        adversary = {
            "discriminator": discriminator,
            "discriminator_optimizer": adam(discriminator, options.optimizer.discriminator_learning_rate),
            "extractor": extractor,
            "adversarial": GANLoss(options.losses.gan.type),
        }
    terms = {name: getattr(options.losses, name) for name in ("pixel", "perceptual", "gan")}
    train_step = TrainStep(
        generator=generator,
        generator_optimizer=adam(generator, options.optimizer.learning_rate),
        **adversary,
        perceptual=perceptual,
        weights={name: term.weight for name, term in terms.items() if term is not None},
        batches_per_step=train.accumulate_batches or 1,  # not known yet where the batch size is measured
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


def records_graphs(options: Options, device: torch.device) -> bool:
    """Whether steps on this device are recorded as CUDA graphs."""
    chosen = options.train.cuda_graph
    return device.type == "cuda" if chosen == "auto" else chosen
