"""One optimisation step: the algorithm of SeD in one screen.

SeD (CVPR 2024), section 3: the generator G maps LR to SR; the discriminator D sees SR or HR *and* semantic features of
the HR image, which a frozen vision model extracts:

    L_G = w_pix |G(lr) - hr|_1  +  w_per L_VGG(G(lr), hr)  +  w_gan L_adv(D(G(lr), s)),    s = extractor(hr)
    L_D = L_real(D(hr, s)) + L_fake(D(G(lr), s))

Without a discriminator this is PSNR-oriented training.

A step has two parts, `_backward` and `_update`, with one sum over processes between them. Neither waits for the device,
so that both can be recorded as CUDA graphs (models/cuda_graph.py).
"""

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sed_sr.data.batches import Batch
from sed_sr.models.cuda_graph import GraphedFunction, Recorder
from sed_sr.models.diagnostics import accuracy, colour_drift, gradient_shares
from sed_sr.models.gradients import FlatGradients
from sed_sr.models.losses import GANLoss, PerceptualLoss, l1_loss
from sed_sr.models.outcome import FIGURES, Outcome
from sed_sr.models.precision import AUTOCAST_DTYPE, WorkingCopy, convolutions


class TrainStep:
    """Two networks, their objectives and optimisers, and the step that updates them.

    Args:
        generator: G, maps (B, 3, H, W) in [0, 1] to (B, 3, 4H, 4W).
        generator_optimizer, discriminator_optimizer: over the parameters of G and of D; PyTorch's with `fused=True`,
            which skip an update by their attribute `found_inf` without waiting for the device.
        batches_per_step: how many batches of this process make one step.
        schedule: factor of both learning rates after so many steps.
        clip_grad_norm: the largest norm of a network's gradient, over all its parameters.
        discriminator: D(image, semantic) -> logits; None for PSNR-oriented training.
        extractor: frozen; (B, 3, 4H, 4W) in [0, 1] -> semantic features; None for a plain discriminator.
        perceptual: L_VGG(sr, hr), where it is one of the terms.
        adversarial: formulas of the adversarial loss, where there is a discriminator.
        weights: factor of each term of L_G that is used, among pixel, perceptual and gan.
        sharpened: the terms among them that compare with sharpened HR (Real-ESRGAN); semantics are HR's all the same.
        ema_decay: of the exponential moving average of G's weights, which starts from G's first weights; None: none.
        precision: fp32, tf32, bf16 or fp16 (the latter with loss scaling) of the networks.
        deterministic: do not let the speed of this GPU's convolutions decide how they are computed.
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        generator_optimizer: Optimizer,
        weights: dict[str, float],
        batches_per_step: int = 1,
        sharpened: Collection[str] = (),
        discriminator: nn.Module | None = None,
        discriminator_optimizer: Optimizer | None = None,
        extractor: nn.Module | None = None,
        perceptual: PerceptualLoss | None = None,
        adversarial: GANLoss | None = None,
        schedule: Callable[[int], float] = lambda steps_done: 1.0,
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        precision: str = "fp32",
        deterministic: bool = False,
    ) -> None:
        self.step = 0  # optimisation steps done
        self.generator, self.discriminator = generator, discriminator
        self.extractor, self.perceptual, self.adversarial, self.weights = extractor, perceptual, adversarial, weights
        self.batches_per_step, self.sharpened = batches_per_step, sharpened
        self.schedule, self.clip_grad_norm = schedule, clip_grad_norm
        self.ema, self.ema_decay = (copy.deepcopy(generator) if ema_decay is not None else None), ema_decay
        self.optimizers = {"generator": generator_optimizer}
        if discriminator is not None:
            self.optimizers["discriminator"] = discriminator_optimizer
        self._losses = (*weights, *(["d_loss"] if discriminator is not None else ()))
        self._norms = tuple(f"{name}_gradient" for name in self.optimizers)

        device = next(generator.parameters()).device
        self.autocast = partial(
            torch.autocast, device.type, dtype=AUTOCAST_DTYPE[precision], enabled=AUTOCAST_DTYPE[precision] is not None
        )
        self._working = {"generator": WorkingCopy(generator, precision)}
        if discriminator is not None:
            self._working["discriminator"] = WorkingCopy(discriminator, precision)
        self._convolutions = partial(convolutions, tf32=precision == "tf32", autotune=not deterministic)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        groups = {name: optimizer.param_groups for name, optimizer in self.optimizers.items()}
        assert all(group["fused"] for networks in groups.values() for group in networks)
        self.base_learning_rates = {name: group["lr"] for name, (group, *_) in groups.items()}
        for group in (group for networks in groups.values() for group in networks):
            group["lr"] = torch.tensor(group["lr"], device=device)  # which changes without a new recording
        trained = {
            name: [p for group in networks for p in group["params"] if p.requires_grad]
            for name, networks in groups.items()
        }
        self._leaves = {name: list(map(self._working[name].leaf_of, trained[name])) for name in trained}
        self._gradients = FlatGradients(trained, figures=FIGURES)
        self._report = torch.zeros(2 * FIGURES + len(self._norms) + 1, device=device)
        self._terms = {}  # watched or not -> names of the terms, in the order of the figures
        self._run_backward, self._run_update, self._new_recorder = self._backward, self._update, None
        self.distribute(add_up=lambda values: values, processes=1)

    def distribute(self, *, add_up: Callable[[Tensor], Tensor], processes: int) -> None:
        """Share each step with other processes, whose networks are the same: gradients are averaged over all of them.

        Args:
            add_up: sums a tensor over the processes, in its place.
            processes: how many there are.
        """
        self._add_up, self._share = add_up, 1 / (self.batches_per_step * processes)

    def compile(self) -> None:
        """Compile the block that G repeats, once for all of them (the whole of a G that has none), and D.

        To compile the whole of RRDB or SwinIR takes minutes.
        """
        generator = self._working["generator"].network
        for block in getattr(generator, "repeated_blocks", [generator]):
            block.compile(dynamic=False)
        if "discriminator" in self._working:
            self._working["discriminator"].network.compile(dynamic=False)

    def record(self, new_recorder: Callable[[], Recorder], *, warn: Callable[[str], None]) -> None:
        """From now on, replay both parts of a step as CUDA graphs. The backward pass of watched steps runs as it is.

        Args:
            new_recorder: makes what records both parts.
            warn: called with one sentence if a part cannot be recorded.
        """
        self._new_recorder, recorder = new_recorder, new_recorder()
        self._run_backward = GraphedFunction(self._backward, name="the backward pass", recorder=recorder, warn=warn)
        self._run_update = GraphedFunction(self._update, name="the optimisers' update", recorder=recorder, warn=warn)

    def forget_recordings(self) -> None:
        """Give the memory of recorded steps back to something that needs it. The next steps are recorded anew."""
        if self._new_recorder is not None:
            recorder = self._new_recorder()
            self._run_backward.forget(recorder)
            self._run_update.forget(recorder)

    def __call__(self, *batches: Batch, watch: bool = False, stop: bool = False) -> Outcome:
        """Update G (and D) once, by the mean gradient of all batches of all processes.

        If a loss or a gradient is not finite on any process, nothing is updated on any of them; the step counts all the
        same. Nothing here waits for the device.

        Args:
            batches: `batches_per_step` of them.
            watch: measure how much of G's gradient comes from each term of its objective.
            stop: this process wants the run to end.

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
        self._gradients.clear()
        self._gradients.figures[0].fill_(float(stop))
        for batch in batches:
            tensors = [value for value in batch if value is not None]
            if watch:
                # Compiled code frees what the gradients of single terms would need.
                with torch.compiler.set_stance("force_eager"):
                    self._backward(*tensors, watch=True)
            else:
                self._run_backward(*tensors)
        self._report[:FIGURES].copy_(self._gradients.figures)
        self._add_up(self._gradients.all)
        self._run_update()
        self.step += 1
        return Outcome(self._report, terms=self._terms[watch], losses=self._losses, norms=self._norms)

    def _backward(self, lr: Tensor, hr: Tensor, sharp: Tensor | None = None, *, watch: bool = False) -> None:
        """Add this process's share of the gradients of both objectives on a batch, and of their terms."""
        batch = Batch(lr, hr, sharp)
        with self._convolutions():
            with self.autocast():
                semantic = self.extractor(hr) if self.extractor is not None else None
            sr, terms = self._generator_backward(batch, semantic, watch=watch)
            terms |= colour_drift(sr, hr)
            if self.discriminator is not None:
                terms |= self._discriminator_backward(sr, self._target("gan", batch), semantic)
        names = (*self._losses, *(name for name in terms if name not in self._losses))
        self._terms[watch] = names
        values = torch.stack([terms[name].detach().float() for name in names])
        self._gradients.figures[1 : 1 + len(names)].add_(values, alpha=self._share)

    def _target(self, term: str, batch: Batch) -> Tensor:
        """What SR is compared with in a term."""
        return batch.sharp if term in self.sharpened else batch.hr

    def _generator_backward(
        self, batch: Batch, semantic: Tensor | None, *, watch: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        generator, terms = self._working["generator"].network, {}
        with self.autocast():
            sr = generator(batch.lr).float()
            if "pixel" in self.weights:
                terms["pixel"] = l1_loss(sr, self._target("pixel", batch))
            if "perceptual" in self.weights:
                terms["perceptual"] = self.perceptual(sr, self._target("perceptual", batch))
            if "gan" in self.weights:
                discriminator = self._working["discriminator"].network.requires_grad_(False)
                real = discriminator(self._target("gan", batch), semantic) if self.adversarial.needs_real else None
                terms["gan"] = self.adversarial.generator(discriminator(sr, semantic), real)
        weighted = {name: self.scaler.scale(self.weights[name] * term * self._share) for name, term in terms.items()}
        shares = gradient_shares(weighted, self._leaves["generator"]) if watch and len(weighted) > 1 else {}
        self._gradients.add("generator", sum(weighted.values()), self._leaves["generator"])
        return sr.detach(), {**terms, **{f"share_{name}": share for name, share in shares.items()}}

    def _discriminator_backward(self, sr: Tensor, hr: Tensor, semantic: Tensor | None) -> dict[str, Tensor]:
        discriminator = self._working["discriminator"].network.requires_grad_(True)
        with self.autocast():
            # Real and fake in one batch, with the semantics that they share.
            real, fake = discriminator(torch.cat((hr, sr)), semantic).chunk(2)
            loss = self.adversarial.discriminator(real, fake)
        self._gradients.add("discriminator", self.scaler.scale(loss * self._share), self._leaves["discriminator"])
        means = {"d_loss": loss, "d_real": real.float().mean(), "d_fake": fake.float().mean()}
        return {**means, **accuracy(real.detach(), fake.detach(), self.adversarial.boundary)}

    def _update(self) -> None:
        """Update both networks and the average, unless a loss or a gradient is not finite; report what the step was."""
        gradients = self._gradients
        gradients.hand_over()
        loss_scale = self.scaler.scale(torch.ones((), device=gradients.all.device))
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norms = torch.stack([gradients.norm(name) for name in self.optimizers])
        losses = gradients.figures[1 : 1 + len(self._losses)]
        skip = (~torch.cat((losses, norms)).isfinite()).any().float()
        self._report[FIGURES:].copy_(torch.cat((gradients.figures, norms, loss_scale[None])))
        for (name, optimizer), norm in zip(self.optimizers.items(), norms, strict=True):
            if self.clip_grad_norm is not None:
                gradients.scale(name, (self.clip_grad_norm / (norm + 1e-6)).clamp(max=1))
            optimizer.grad_scale, optimizer.found_inf = None, skip
            optimizer.step()
        if self.ema is not None:
            self._update_average(skip)
        self.scaler.update()

    @torch.no_grad()
    def _update_average(self, skip: Tensor) -> None:
        average, weights = list(self.ema.parameters()), list(self.generator.parameters())
        change = torch._foreach_sub(weights, average)
        torch._foreach_mul_(change, (1 - self.ema_decay) * (1 - skip))
        torch._foreach_add_(average, change)
        for averaged, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            averaged.copy_(buffer)

    def learning_rate(self, name: str = "generator") -> float:
        """Of the generator or the discriminator, at the step that comes."""
        return self.base_learning_rates[name] * self.schedule(self.step)

    @property
    def deployed_generator(self) -> nn.Module:
        """The generator that is validated and that others will use: the averaged one where there is one."""
        return self.ema if self.ema is not None else self.generator

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the batch and the options."""
        moments = {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers.items()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "moments": moments, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()` of a TrainStep of the same networks.

        Learning rates and betas are the options', not the state's: whoever changes them means it. An average or a
        loss scale that the state does not have begins anew.
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
    """The state dict of an averaged generator, also of one that an earlier version saved as torch's AveragedModel."""
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
