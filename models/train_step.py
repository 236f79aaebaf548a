"""One optimisation step of SeD.

SeD (CVPR 2024), section 3: the generator G maps LR to SR. The discriminator D gets SR or HR, and semantic features s of
the HR image, which a frozen vision model extracts:

    L_G = w_pix |G(lr) - hr|_1  +  w_per L_VGG(G(lr), hr)  +  w_gan L_adv(D(G(lr), s)),    s = extractor(hr)
    L_D = L_real(D(hr, s)) + L_fake(D(G(lr), s))

Optional terms are further comparisons of G(lr) with hr and feature matching in L_G, and R1 in L_D. Without a
discriminator this is PSNR-oriented training.

A step calls `_backward` for each batch, sums gradients over processes, and calls `_update`. Neither waits for the
device, so both can be recorded as CUDA graphs (models/cuda_graph.py). To add a loss, see docs/extending.md.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from sed_sr.data.batches import Batch
from sed_sr.models.cuda_graph import GraphedFunction, Recorder
from sed_sr.models.diagnostics import accuracy, colour_drift, gradient_shares
from sed_sr.models.generator import Generator
from sed_sr.models.losses.feature_matching import feature_matching_loss
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.losses.gradient_penalty import r1_penalty, twice_differentiable
from sed_sr.models.losses.pixel import l1_loss
from sed_sr.models.precision import AUTOCAST_DTYPE, WorkingCopy, convolutions
from sed_sr.models.step_memory import SCALARS, FlatGradients, Outcome


@dataclass(frozen=True)
class Adversary:
    """The discriminator and all that its objective needs.

    Attributes:
        discriminator: D(image, semantic) -> logits.
        optimizer: of the parameters of D; same requirements as generator_optimizer.
        loss: formulas of the adversarial loss.
        extractor: frozen; (B, 3, H, W) in [0, 1] -> semantic features; None for a plain discriminator.
        r1_weight: factor of R1 in L_D; None: without it.
    """

    discriminator: nn.Module
    optimizer: Optimizer
    loss: GANLoss
    extractor: nn.Module | None = None
    r1_weight: float | None = None


class TrainStep:
    """Both networks, their objectives and optimisers, and the step that updates them.

    Args:
        generator: G, maps (B, 3, H, W) in [0, 1] to (B, 3, scale * H, scale * W).
        generator_optimizer: over the parameters of G; one of PyTorch's with `fused=True`, which skip an update by
            their attribute `found_inf` without waiting for the device.
        batches_per_step: batches of this process per step.
        schedule: steps done -> factor of both learning rates.
        clip_grad_norm: maximum L2 norm of a network's gradient over all its parameters; None: no clipping.
        adversary: the discriminator; None for PSNR-oriented training.
        image_losses: the terms of L_G that compare SR with HR: (sr, hr) -> scalar.
        ema_losses: the terms that also compare with SR of the averaged generator: (sr, hr, sr_ema) -> scalar. They
            need `ema_decay`.
        weights: factor of each term of L_G: of these losses and, with an adversary, of `gan` and optionally of
            `feature_matching`.
        sharpened: the terms that compare with sharpened HR (Real-ESRGAN); `gan` includes all terms of the adversary.
            Semantic features are always those of HR.
        ema_decay: decay of the exponential moving average of G's weights, which starts from G's initial weights; None:
            no average.
        precision: fp32, tf32, bf16 or fp16 (with loss scaling) for the networks.
        deterministic: do not let cuDNN choose convolution algorithms by their speed.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        generator_optimizer: Optimizer,
        weights: dict[str, float],
        batches_per_step: int = 1,
        sharpened: Collection[str] = (),
        adversary: Adversary | None = None,
        image_losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType({"pixel": l1_loss}),
        ema_losses: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType({}),
        schedule: Callable[[int], float] = lambda steps_done: 1.0,
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        precision: str = "fp32",
        deterministic: bool = False,
    ) -> None:
        self.step = 0  # optimisation steps done
        self.generator, self.adversary = generator, adversary
        self.image_losses, self.ema_losses, self.weights = image_losses, ema_losses, weights
        self.batches_per_step, self.sharpened = batches_per_step, sharpened
        self.schedule, self.clip_grad_norm = schedule, clip_grad_norm
        # In evaluation mode, without stochastic depth.
        self.ema, self.ema_decay = (copy.deepcopy(generator).eval() if ema_decay is not None else None), ema_decay
        assert self.ema is not None or not ema_losses
        self.optimizers = {"generator": generator_optimizer}
        if adversary is not None:
            self.optimizers["discriminator"] = adversary.optimizer
        self._losses = tuple(weights)
        if adversary is not None:
            self._losses += ("d_loss",) if adversary.r1_weight is None else ("d_loss", "r1")
        self._norms = tuple(f"{name}_gradient" for name in self.optimizers)
        device = next(generator.parameters()).device
        self._set_up_precision(precision, device, deterministic=deterministic)
        self._set_up_batch_norm()
        self._set_up_optimizers(device)
        self._report = torch.zeros(2 * SCALARS + len(self._norms) + 1, device=device)
        self._terms = {}  # value of `watch` -> names of the terms, in the order of the scalars
        self._run_backward: Callable[..., None] = self._backward
        self._run_update: Callable[[], None] = self._update
        self._recorded: list[GraphedFunction] = []
        self._new_recorder: Callable[[], Recorder] | None = None
        self.distribute(all_reduce=lambda values: values, processes=1)

    @property
    def discriminator(self) -> nn.Module | None:
        return None if self.adversary is None else self.adversary.discriminator

    @property
    def extractor(self) -> nn.Module | None:
        return None if self.adversary is None else self.adversary.extractor

    @property
    def frozen_networks(self) -> list[nn.Module]:
        """The pretrained networks, which are not part of the state: the extractor and those of the losses."""
        candidates = (self.extractor, *self.image_losses.values())
        return [network for network in candidates if isinstance(network, nn.Module)]

    def _set_up_precision(self, precision: str, device: torch.device, *, deterministic: bool) -> None:
        dtype = AUTOCAST_DTYPE[precision]
        self.autocast = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._convolutions = partial(convolutions, tf32=precision == "tf32", autotune=not deterministic)
        self._working = {"generator": WorkingCopy(self.generator, precision)}
        if self.discriminator is not None:
            self._working["discriminator"] = WorkingCopy(self.discriminator, precision)

    def _set_up_batch_norm(self) -> None:
        modules = [] if self.discriminator is None else self.discriminator.modules()
        layers = [module for module in modules if isinstance(module, _BatchNorm)]
        self._one_batch = not layers  # otherwise real and fake images would share the statistics of a batch
        # Running statistics, and what they were before a step: skipped steps do not change them.
        self._statistics = [buffer for layer in layers for buffer in layer.buffers()]
        self._statistics_before = [buffer.clone() for buffer in self._statistics]

    def _set_up_optimizers(self, device: torch.device) -> None:
        groups = {name: optimizer.param_groups for name, optimizer in self.optimizers.items()}
        assert all(group["fused"] for networks in groups.values() for group in networks)
        self.base_learning_rates = {name: group["lr"] for name, (group, *_) in groups.items()}
        for group in (group for networks in groups.values() for group in networks):
            group["lr"] = torch.tensor(group["lr"], device=device)  # so that a recorded update reads changes of it
        trained = {
            name: [p for group in networks for p in group["params"] if p.requires_grad]
            for name, networks in groups.items()
        }
        self._leaves = {name: list(map(self._working[name].leaf_of, trained[name])) for name in trained}
        self._gradients = FlatGradients(trained, scalars=SCALARS)

    def __call__(self, *batches: Batch, watch: bool = False, stop: bool = False) -> Outcome:
        """Update G (and D) once, by the mean gradient of all batches of all processes.

        If a loss or a gradient is not finite on any process, no process updates anything; the step is counted
        nevertheless. Nothing here waits for the device.

        Args:
            batches: `batches_per_step` of them.
            watch: measure how much of G's gradient comes from each term of its objective.
            stop: this process asks the run to end.

        Returns:
            The unweighted terms of both objectives, the norms of both gradients, and measures of the state of both
            networks (models.diagnostics).
        """
        assert len(batches) == self.batches_per_step
        if watch:
            self.forget_recordings()
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"].fill_(self.learning_rate(name))
        for working in self._working.values():
            working.refresh()
        for before, now in zip(self._statistics_before, self._statistics, strict=True):
            before.copy_(now)
        self._gradients.clear()
        self._gradients.scalars[0].fill_(float(stop))
        for batch in batches:
            tensors = [value for value in batch if value is not None]
            if watch:
                # Compiled code frees buffers that the gradients of single terms need.
                with torch.compiler.set_stance("force_eager"):
                    self._backward(*tensors, watch=True)
            else:
                self._run_backward(*tensors)
        self._report[:SCALARS].copy_(self._gradients.scalars)
        self._all_reduce(self._gradients.all)
        self._run_update()
        self.step += 1
        return Outcome(self._report, terms=self._terms[watch], losses=self._losses, norms=self._norms)

    def _backward(self, lr: Tensor, hr: Tensor, sharp: Tensor | None = None, *, watch: bool = False) -> None:
        """Add this process's share of the gradients of both objectives on a batch, and of their terms."""
        batch = Batch(lr, hr, sharp)
        with self._convolutions():
            extractor = self.extractor
            with self.autocast():
                semantic = extractor(hr) if extractor is not None else None
            sr, terms = self._generator_backward(batch, semantic, watch=watch)
            terms |= colour_drift(sr, hr)
            if self.adversary is not None:
                real = self._target("gan", batch)
                terms |= self._discriminator_backward(sr, real, semantic, self.adversary.loss)
                if self.adversary.r1_weight is not None:
                    terms["r1"] = self._r1_backward(real, semantic, self.adversary.r1_weight)
        names = (*self._losses, *(name for name in terms if name not in self._losses))
        self._terms[watch] = names
        values = torch.stack([terms[name].detach().float() for name in names])
        self._gradients.scalars[1 : 1 + len(names)].add_(values, alpha=self._share)

    def _generator_backward(
        self, batch: Batch, semantic: Tensor | None, *, watch: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradient of L_G. Returns SR without its graph, and the unweighted terms."""
        generator, terms = self._working["generator"].network, {}
        with self.autocast():
            sr = generator(batch.lr).float()
            for name, image_loss in self.image_losses.items():
                terms[name] = image_loss(sr, self._target(name, batch))
            if self.ema_losses:
                assert self.ema is not None
                with torch.no_grad():
                    sr_ema = self.ema(batch.lr).float()
                for name, ema_loss in self.ema_losses.items():
                    terms[name] = ema_loss(sr, self._target(name, batch), sr_ema)
            if self.adversary is not None:
                loss, discriminator = self.adversary.loss, self._working["discriminator"].network.requires_grad_(False)
                hr = self._target("gan", batch)
                if "feature_matching" in self.weights:
                    real, real_features = discriminator(hr, semantic, return_features=True)
                    fake, fake_features = discriminator(sr, semantic, return_features=True)
                    terms["feature_matching"] = feature_matching_loss(fake_features, real_features)
                else:
                    real = discriminator(hr, semantic) if loss.needs_real else None
                    fake = discriminator(sr, semantic)
                terms["gan"] = loss.generator(fake, real)
        weighted = {name: self.scaler.scale(self.weights[name] * term * self._share) for name, term in terms.items()}
        shares = gradient_shares(weighted, self._leaves["generator"]) if watch and len(weighted) > 1 else {}
        self._gradients.add("generator", reduce(torch.add, weighted.values()), self._leaves["generator"])
        return sr.detach(), {**terms, **{f"share_{name}": share for name, share in shares.items()}}

    def _discriminator_backward(
        self, sr: Tensor, hr: Tensor, semantic: Tensor | None, gan_loss: GANLoss
    ) -> dict[str, Tensor]:
        """Add the gradient of L_D. Returns the loss and statistics of the logits."""
        discriminator = self._working["discriminator"].network.requires_grad_(True)
        with self.autocast():
            if self._one_batch:  # they share their semantic features
                real, fake = discriminator(torch.cat((hr, sr)), semantic).chunk(2)
            else:
                real, fake = discriminator(hr, semantic), discriminator(sr, semantic)
            loss = gan_loss.discriminator(real, fake)
        self._gradients.add("discriminator", self.scaler.scale(loss * self._share), self._leaves["discriminator"])
        means = {"d_loss": loss, "d_real": real.float().mean(), "d_fake": fake.float().mean()}
        return {**means, **accuracy(real.detach(), fake.detach(), gan_loss.boundary)}

    def _r1_backward(self, hr: Tensor, semantic: Tensor | None, weight: float) -> Tensor:
        """Add the gradient of R1. Returns the unweighted penalty."""
        hr = hr.detach().requires_grad_()
        with self.autocast(), twice_differentiable():
            logits = self._working["discriminator"].network(hr, semantic)
        penalty = r1_penalty(logits, hr)
        objective = self.scaler.scale(weight * penalty * self._share)
        self._gradients.add("discriminator", objective, self._leaves["discriminator"])
        return penalty

    def _target(self, term: str, batch: Batch) -> Tensor:
        """What a term compares SR with."""
        if term not in self.sharpened:
            return batch.hr
        assert batch.sharp is not None
        return batch.sharp

    def _update(self) -> None:
        """Update both networks and the average, unless a loss or a gradient is not finite. Write the report."""
        gradients = self._gradients
        gradients.assign_grads()
        loss_scale = self.scaler.scale(torch.ones((), device=gradients.all.device))
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norms = torch.stack([gradients.norm(name) for name in self.optimizers])
        losses = gradients.scalars[1 : 1 + len(self._losses)]
        skip = (~torch.cat((losses, norms)).isfinite()).any().float()
        self._report[SCALARS:].copy_(torch.cat((gradients.scalars, norms, loss_scale[None])))
        for (name, optimizer), norm in zip(self.optimizers.items(), norms, strict=True):
            if self.clip_grad_norm is not None:
                gradients.scale(name, (self.clip_grad_norm / (norm + 1e-6)).clamp(max=1))
            # Attributes of fused optimisers.
            optimizer.grad_scale, optimizer.found_inf = None, skip  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        for before, now in zip(self._statistics_before, self._statistics, strict=True):
            now.copy_(torch.where(skip > 0, before, now))
        if self.ema is not None and self.ema_decay is not None:
            self._update_average(self.ema, self.ema_decay, skip)
        self.scaler.update()

    @torch.no_grad()
    def _update_average(self, ema: nn.Module, decay: float, skip: Tensor) -> None:
        # Of what is trained: frozen parameters are equal, and may be replaced by the network itself.
        pairs = zip(ema.parameters(), self.generator.parameters(), strict=True)
        average, weights = map(list, zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True))
        change = torch._foreach_sub(weights, average)
        torch._foreach_mul_(change, (1 - decay) * (1 - skip))
        torch._foreach_add_(average, change)
        for averaged, buffer in zip(ema.buffers(), self.generator.buffers(), strict=True):
            averaged.copy_(buffer)

    def learning_rate(self, name: str = "generator") -> float:
        """The learning rate of the generator or the discriminator in the next step."""
        return self.base_learning_rates[name] * self.schedule(self.step)

    def distribute(self, *, all_reduce: Callable[[Tensor], Tensor], processes: int) -> None:
        """Average gradients over several processes, whose networks must be equal.

        Args:
            all_reduce: sums a tensor over the processes, in place.
            processes: their number.
        """
        self._all_reduce, self._share = all_reduce, 1 / (self.batches_per_step * processes)

    def compile(self) -> None:
        """Compile D, and the block that G repeats, once for all its repetitions (all of G if it has no such block).

        Compiling all of RRDB or SwinIR would take minutes.
        """
        generator = self._working["generator"].network
        for block in getattr(generator, "repeated_blocks", [generator]):
            block.compile(dynamic=False)
        if "discriminator" in self._working:
            self._working["discriminator"].network.compile(dynamic=False)

    def record(self, new_recorder: Callable[[], Recorder], *, warn: Callable[[str], None]) -> None:
        """Replay both parts of a step as CUDA graphs from now on, except the backward pass of watched steps.

        Args:
            new_recorder: makes the recorder of both parts.
            warn: called with a message if a part cannot be recorded.
        """
        self._new_recorder, recorder = new_recorder, new_recorder()
        backward = GraphedFunction(self._backward, name="the backward pass", recorder=recorder, warn=warn)
        update = GraphedFunction(self._update, name="the optimisers' update", recorder=recorder, warn=warn)
        self._run_backward, self._run_update, self._recorded = backward, update, [backward, update]

    def forget_recordings(self) -> None:
        """Free the memory of recorded steps. The next steps are recorded again."""
        if self._new_recorder is not None:
            recorder = self._new_recorder()
            for function in self._recorded:
                function.forget(recorder)

    @property
    def deployed_generator(self) -> Generator:
        """The generator to validate and to publish: the averaged one if there is one."""
        return self.ema if self.ema is not None else self.generator

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the batch and the options."""
        moments = {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers.items()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "moments": moments, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict()` of a TrainStep with the same networks.

        Learning rates and betas remain those of the options, so that a user can change them for a resumed run. If the
        state has no average or no loss scale, these keep their initial values.
        """
        self.step = state["step"]
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state["moments"][name], "param_groups": groups})
        for name, part in self._parts().items():
            if state.get(name) or part not in (self.ema, self.scaler):
                part.load_state_dict(_without_wrapper(state[name]) if part is self.ema else state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}
        return {name: part for name, part in {**parts, "scaler": self.scaler}.items() if part is not None}


def _without_wrapper(average: dict[str, Any]) -> dict[str, Any]:
    """Remove the names of torch's AveragedModel, which earlier versions of this project saved."""
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
