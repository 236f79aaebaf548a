"""The training loop: skipped steps, saves, validations, warnings, stopping."""

import itertools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sed_sr.utils.training.progress as progress_module
from sed_sr.data.batches import GivenPairs
from sed_sr.data.benchmarks import find_benchmark
from sed_sr.models.discriminators import PatchDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.precision import resolved
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.training.batch_options import batches_of, with_batches
from sed_sr.utils.training.batch_size import resolve_batches
from sed_sr.utils.training.loop import TrainLoop
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import SilentLog
from sed_sr.utils.weights import checkpoint
from tests.conftest import same

RECIPE = Path(__file__).parents[3] / "options/train_rrdb_psnr.yml"


class MemoryLog(SilentLog):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines, self.warnings, self.keys, self.values = [], [], [], {}

    def info(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.keys.append((kind, step))
        self.values[kind, step] = values


def break_calls(network: nn.Module, broken_calls: set[int]) -> None:
    """Make the output of a network NaN in some of its calls in training mode."""
    calls = itertools.count(1)

    def spoil(_, inputs, output):
        return output * (float("nan") if network.training and next(calls) in broken_calls else 1.0)

    network.register_forward_hook(spoil)


@pytest.fixture
def benchmark_of_two(tmp_path):
    """A benchmark of two images."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for folder, side in (("LRbicx4", 8), ("GTmod12", 32)):
            (tmp_path / "Two" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(
                tmp_path / "Two" / folder / f"{name}.png"
            )
    return find_benchmark(tmp_path, "Two", scale=4)


@pytest.fixture
def make_loop(tmp_path):
    """Makes a loop with a tiny RRDB in the run folder `name`, and its log."""

    def make(
        name="run",
        *,
        broken_calls=(),
        benchmarks=(),
        metrics=None,
        adversary=None,
        pairs=None,
        state=None,
        **settings,
    ):
        overrides = [Override(key.replace("__", "."), value, key) for key, value in settings.items()]
        usual = {"train.total_steps": 6, "train.total_batch_size": None}
        options = load_options(RECIPE, [*(Override(key, value, "") for key, value in usual.items()), *overrides])
        options = with_batches(options, resolve_batches(batches_of(options), processes=1))
        torch.manual_seed(0)
        generator = RRDBNet(features=4, blocks=1, growth=2)
        against = None
        if adversary is not None:
            optimizer = torch.optim.SGD(adversary.parameters(), lr=0.0, fused=True)
            against = Adversary(adversary, optimizer, GANLoss("vanilla"))
        weights = {"pixel": 1.0, **({"gan": 0.1} if adversary is not None else {})}
        train_step = TrainStep(
            generator=generator,
            generator_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, fused=True),
            weights=weights,
            batches_per_step=options.train.accumulate_batches,
            precision=resolved(options.train.precision, torch.device("cpu")),
            adversary=against,
        )
        if state is not None:
            train_step.load_state_dict(state["train_step"])
        break_calls(generator, set(broken_calls))
        draw = torch.Generator().manual_seed(0)
        batches = [
            {
                "lr": torch.randint(256, (2, 3, 8, 8), generator=draw, dtype=torch.uint8),
                "hr": torch.randint(256, (2, 3, 32, 32), generator=draw, dtype=torch.uint8),
                "name": [f"{step}-first", f"{step}-second"],
            }
            for step in range(1, options.train.total_steps + 1)
        ]
        log = MemoryLog()
        loop = TrainLoop(
            options=options,
            train_step=train_step,
            batches=batches[train_step.step :],
            pairs=pairs or GivenPairs(),
            benchmarks=list(benchmarks),
            metrics=metrics or {},
            folder=RunFolder(tmp_path / name),
            log=log,
            world=World(),
            device=torch.device("cpu"),
        )
        if state is not None:
            loop.load_state_dict(state["loop"])
        return loop, log

    return make


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def steps_of_states(loop: TrainLoop) -> list[int]:
    return [int(path.stem[-9:]) for path in loop.folder.saved_states()]


# On a GPU the loop reads a step while the next one runs.
BEHIND = pytest.mark.parametrize("steps_behind", [0, 1])


@BEHIND
def test_steps_that_are_not_finite_are_skipped_and_reported_with_their_images(make_loop, steps_behind):
    loop, log = make_loop(broken_calls={2, 3, 5}, train__max_bad_steps=3)
    loop.steps_behind = steps_behind
    loop.run()
    assert loop.step == 6
    assert loop.samples == 12
    assert len(log.warnings) == 3
    for step, in_a_row, warning in zip((2, 3, 5), (1, 2, 1), log.warnings, strict=True):
        assert f"step {step} was skipped: pixel, generator_gradient not finite" in warning
        assert f"{step}-first, {step}-second" in warning
        assert f"({in_a_row} in a row" in warning


@BEHIND
def test_run_ends_after_too_many_skipped_steps_and_names_the_last_good_state(make_loop, steps_behind):
    loop, _ = make_loop(broken_calls={3, 4}, train__max_bad_steps=2, train__save_every_steps=1)
    loop.steps_behind = steps_behind
    with pytest.raises(UserError, match=r"2 steps in a row .* last good state is state_000000002\.pth"):
        loop.run()
    assert steps_of_states(loop) == [2, 1]  # that of step 3 is not saved


@BEHIND
def test_save_that_is_due_in_a_skipped_step_is_made_after_the_next_good_one(make_loop, steps_behind):
    loop, _ = make_loop(broken_calls={2, 3}, train__save_every_steps=2, train__keep_states=9)
    loop.steps_behind = steps_behind
    loop.run()
    assert steps_of_states(loop) == [6, 4]
    late, _ = make_loop("late", broken_calls={4, 6}, train__save_every_steps=2, train__keep_states=9)
    late.steps_behind = steps_behind
    late.run()
    assert steps_of_states(late) == [6, 5, 2]  # the last step is always saved
    assert weights_steps(late) == [6]


def weights_steps(loop):
    return [step for step in range(99, 0, -1) if loop.folder.weights(step).exists()]


@pytest.mark.parametrize(("every", "kept"), [(4, [10, 8, 4]), (3, [10, 6, 4]), (10, [10]), (50, [10])])
def test_some_weights_are_kept_and_the_newest_ones_are_a_link(make_loop, every, kept):
    """Where there is no save at a step that is to be kept, the next save is kept."""
    loop, _ = make_loop(train__total_steps=10, train__save_every_steps=2, train__keep_weights=every)
    loop.run()
    assert weights_steps(loop) == kept
    folder = loop.folder
    assert folder.weights(10).stat().st_ino == folder.latest_weights.stat().st_ino


def test_weights_of_an_earlier_version_are_not_deleted(make_loop):
    loop, _ = make_loop(train__save_every_steps=3)
    loop.folder.root.mkdir(parents=True)
    loop.folder.weights(1).write_bytes(b"old")
    loop.run()
    assert weights_steps(loop) == [6, 1]


def test_save_beside_running_steps_equals_that_of_a_run_that_ends_there(make_loop, monkeypatch):
    def run(name, **settings):
        torch.manual_seed(0)
        adversary = PatchDiscriminator(semantic_channels=None, features=8)  # each step moves its spectral norms
        loop, _ = make_loop(name, adversary=adversary, **settings)
        loop.run()
        return loop.folder

    def write_late(path, state):
        wait_until(lambda: loops[0].step > state["step"] or loops[0].step == 6)
        save_state(path, state)

    save_state, loops = checkpoint.save_state, []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", write_late)
        patch.setattr(TrainLoop, "run", lambda loop, run=TrainLoop.run: loops.append(loop) or run(loop))
        late = run("late", train__save_every_steps=2)
    for step in (2, 4, 6):
        ended = run(f"ended_{step}", train__total_steps=step)
        ours, theirs = (checkpoint.load(folder.state(step)) for folder in (late, ended))
        assert same(ours["train_step"], theirs["train_step"])
        assert same(ours["params"], theirs["params"])
    ours, theirs = (checkpoint.load(folder.weights(6)) for folder in (late, ended))
    assert same(ours["params"], theirs["params"])


@BEHIND
def test_signal_stops_the_run_after_the_current_step(make_loop, steps_behind):
    loop, log = make_loop()
    loop.steps_behind = steps_behind

    def batches(loaded):
        for number, batch in enumerate(loaded, start=1):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    loop.batches = batches(loop.batches)
    loop.run()
    assert loop.step == 2 + steps_behind
    assert steps_of_states(loop) == [loop.step]
    assert f"stopped after step {loop.step}" in log.lines[-1]


@BEHIND
def test_failed_save_ends_the_run_after_the_current_step(make_loop, steps_behind):
    loop, _ = make_loop(train__save_every_steps=2)
    loop.steps_behind = steps_behind
    loop.folder.latest_weights.mkdir(parents=True)  # no file can be renamed to it

    def batches(loaded):
        for number, batch in enumerate(loaded, start=1):
            if number == 3:
                wait_until(lambda: loop.saving.failed)
            yield batch

    loop.batches = batches(loop.batches)
    with pytest.raises(UserError, match=r"cannot write .*generator_latest\.pth"):
        loop.run()
    assert loop.step == 3 + steps_behind
    assert steps_of_states(loop) == [2]


def test_time_is_assigned_to_the_parts_of_a_step(make_loop, benchmark_of_two, monkeypatch):
    """With a clock that advances by 3 s per batch, 5 s per step, 7 s per validation image and 8 s per save."""
    now_s = [0.0]

    def pass_s(seconds, result=None):
        now_s[0] += seconds
        return result

    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    monkeypatch.setattr(checkpoint, "snapshot", lambda state, copy=checkpoint.snapshot: pass_s(8.0, copy(state)))
    loop, log = make_loop(
        benchmarks=[benchmark_of_two],
        metrics={"psnr": Metric("psnr", "PSNR-Y", lambda sr, hr: pass_s(7.0, 20.0))},
        validation__every_steps=2,
        train__save_every_steps=4,
        train__log_every_steps=1,
    )
    loop.batches = (pass_s(3.0, batch) for batch in loop.batches)
    generator = loop.train_step.generator
    generator.register_forward_hook(lambda *_: pass_s(5.0 if generator.training else 0.0))
    loop.run()
    usual = {"data_wait_s": 3.0, "step_s": 5.0, "validation_s": 0.0, "save_s": 0.0, "other_s": 0.0}
    validated = {**usual, "validation_s": 14.0}
    assert [log.values["time", step] for step in (1, 2, 3, 4)] == [usual, usual, validated, usual]
    assert log.values["time", 5] == {**validated, "save_s": 8.0}
    line_of = {step: line for step in (1, 5) for line in log.lines if line.startswith(f"step {step}/6")}
    assert "  data 37.5% step 62.5%  ETA 0:00:40" in line_of[1]
    assert "  data 10.0% step 16.7% validation 46.7% save 26.7%  ETA 0:00:08" in line_of[5]
    pairs = 2  # in each of the batches
    assert all(log.values["train", step]["images_per_s"] == pairs / 8 for step in range(1, 7))


def test_weights_that_are_missing_after_a_kill_are_written_on_resume(make_loop):
    settings = {"train__save_every_steps": 3, "train__keep_weights": 3}
    loop, _ = make_loop(**settings)
    loop.run()
    state = checkpoint.load(loop.folder.state(3))
    loop.folder.weights(3).unlink()
    make_loop(**settings, state=state)[0].run()
    written = checkpoint.load(loop.folder.weights(3))
    assert written["step"] == 3
    assert all(torch.equal(written["params"][name], value) for name, value in state["params"].items())


@pytest.mark.parametrize(("metric", "scores", "best"), [("psnr", (20, 25, 22), 4), ("lpips", (0.3, 0.4, 0.2), 6)])
def test_best_weights_are_kept_beside_the_newest_states(make_loop, benchmark_of_two, metric, scores, best):
    """Validated after steps 2, 4 and 6: the highest PSNR, the lowest LPIPS."""
    script = iter(score for score in scores for _ in benchmark_of_two.images)
    scripted = Metric(metric, metric, lambda sr, hr: next(script), lower_is_better=metric == "lpips")
    loop, _ = make_loop(
        benchmarks=[benchmark_of_two],
        metrics={metric: scripted},
        validation__every_steps=2,
        validation__metrics=(metric,),
        validation__best_by=metric,
        train__save_every_steps=5,
        train__keep_states=1,
    )
    loop.run()
    assert steps_of_states(loop) == sorted({6, best}, reverse=True)
    kept = checkpoint.load(loop.folder.best_weights)
    assert kept["step"] == best
    state = checkpoint.load(loop.folder.state(best))
    assert all(torch.equal(kept["params"][name], value) for name, value in state["params"].items())
    assert state["loop"]["best"]["score"] == scores[best // 2 - 1]


def test_mean_over_some_of_the_images_is_reported_and_never_the_best(make_loop, benchmark_of_two):
    """Validated after steps 2, 4 and 6; the highest mean, that after step 4, is over one image of two."""

    def scripted(sr, hr):
        score = next(script)
        if score is None:
            raise UserError("an image of 32x32 px is too small")
        return score

    script = iter((20.0, 20.0, None, 30.0, 21.0, 23.0))
    loop, log = make_loop(
        benchmarks=[benchmark_of_two],
        metrics={"psnr": Metric("psnr", "PSNR-Y", scripted)},
        validation__every_steps=2,
        validation__best_by="psnr",
        train__save_every_steps=2,
        train__keep_states=9,
    )
    loop.run()
    assert loop.validator.best == {"score": 22.0, "metric": "psnr", "benchmark": "Two", "step": 6}
    failure, not_compared = log.warnings
    assert "GTmod12/a.png has no psnr: an image of 32x32 px is too small" in failure
    assert "1 of 2 images have a psnr score, so these weights are not compared with the best ones" in not_compared
    assert "step 4  Two: psnr 30.0000 (1 of 2 images)" in log.lines
    assert [log.values["validation/Two", step] for step in (4, 6)] == [{"psnr": 30.0, "psnr_images": 1}, {"psnr": 22.0}]
    state = checkpoint.load(loop.folder.state(4))
    assert state["loop"]["scores"] == {"Two": {}}  # no incomplete score


def test_validation_image_that_becomes_unreadable_does_not_end_the_run(make_loop, benchmark_of_two):
    benchmark_of_two.images[0].hr.write_bytes(b"cut off")
    adversary = PatchDiscriminator(semantic_channels=None, features=8)
    metrics = {"psnr": Metric("psnr", "PSNR-Y", lambda sr, hr: 20.0)}
    loop, log = make_loop(adversary=adversary, benchmarks=[benchmark_of_two], metrics=metrics)
    loop.run()
    assert (loop.step, log.values["validation/Two", 6]) == (6, {"psnr": 20.0, "psnr_images": 1})
    failure, not_shown = log.warnings
    assert "GTmod12/a.png has no psnr: cannot decode" in failure
    assert "the discriminator's views are not shown: cannot decode" in not_shown


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_validation_is_in_float32_whatever_the_precision_of_training(
    make_loop, benchmark_of_two, tf32_allowed, precision
):
    """No TF32, even where the process allows it; no autocast; and the weights that the optimiser updates."""
    seen = {}

    def note(where, *tensors):
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        seen.setdefault(where, []).append((tf32, torch.is_autocast_enabled("cpu"), types))

    def metric(sr, hr):
        note("metric")
        return 20.0

    def observe(network, inputs, sr):
        if not network.training:
            note("generator", *inputs, sr, *network.parameters())

    loop, _ = make_loop(
        benchmarks=[benchmark_of_two],
        metrics={"psnr": Metric("psnr", "PSNR-Y", metric)},
        train__precision=precision,
    )
    loop.train_step.deployed_generator.register_forward_hook(observe)
    loop.run()
    plain = (False, False), False
    assert seen == {"metric": [(*plain, set())] * 2, "generator": [(*plain, {torch.float32})] * 2}


def test_weights_contain_the_last_scores_before_them_also_after_a_resume(make_loop, benchmark_of_two):
    """Validated after steps 3 and 6, saved after every second one."""

    def settings(*scores):
        script = iter(score for score in scores for _ in benchmark_of_two.images)
        metric = Metric("psnr", "PSNR-Y", lambda sr, hr: next(script))
        every = {"validation__every_steps": 3, "train__save_every_steps": 2, "train__keep_weights": 1}
        return {"benchmarks": [benchmark_of_two], "metrics": {"psnr": metric}, **every}

    loop, _ = make_loop(**settings(21.0, 22.0))
    loop.run()
    known = {step: checkpoint.load(loop.folder.weights(step)) for step in (2, 4, 6)}
    assert [known[step]["scores"] for step in known] == [{}, {"Two": {"psnr": 21.0}}, {"Two": {"psnr": 22.0}}]
    assert [known[step]["scored_step"] for step in known] == [0, 3, 6]
    assert known[6]["scale"] == 4

    state = checkpoint.load(loop.folder.state(4))
    again, _ = make_loop("again", **settings(22.0), state=state)
    again.run()
    for step in (4, 6):
        resumed = checkpoint.load(again.folder.weights(step))
        assert (resumed["scores"], resumed["scored_step"]) == (known[step]["scores"], known[step]["scored_step"])


def test_signal_during_validation_saves_at_once_and_the_validation_is_repeated_on_resume(make_loop, benchmark_of_two):
    signals = []

    def metric(sr, hr):
        if not signals:
            signals.append("now")
            os.kill(os.getpid(), signal.SIGUSR1)
        return 20.0

    metrics = {"psnr": Metric("psnr", "PSNR-Y", metric)}
    # An image is scored while the next is upscaled, so that the signal is noticed before the third.
    benchmark = replace(benchmark_of_two, images=benchmark_of_two.images * 2)
    more = {"benchmarks": [benchmark], "metrics": metrics, "validation__every_steps": 3}
    loop, log = make_loop(**more)
    loop.run()
    assert loop.step == 3
    assert ("validation/Two", 3) not in log.keys
    state = checkpoint.load(loop.folder.saved_states()[0])
    again, resumed = make_loop(**more, state=state)
    again.run()
    assert again.step == 6
    assert [key for key in resumed.keys if key[0].startswith("validation/")] == [
        ("validation/Two", 3),
        ("validation/Two", 6),
    ]


def test_warning_mentions_earlier_images_where_a_pool_mixes_batches(make_loop):
    class Mixed(GivenPairs):
        mixes_batches = True

    for pairs in (GivenPairs(), Mixed()):
        loop, log = make_loop(type(pairs).__name__, pairs=pairs, broken_calls={2})
        loop.run()
        assert ("from the pool of pairs" in log.warnings[0]) == pairs.mixes_batches


class Seeded(GivenPairs):
    """Records the seeds of its pairs."""

    def __init__(self):
        self.seeds = []

    def __call__(self, loaded, *, seed, device):
        self.seeds.append(seed)
        return super().__call__(loaded, seed=seed, device=device)


def test_every_batch_has_its_own_seed_also_after_a_resume(make_loop):
    def seeds_of(name, **more):
        pairs = Seeded()
        loop, _ = make_loop(name, pairs=pairs, train__total_steps=3, train__save_every_steps=1, **more)
        loop.batches = [batch for batch in loop.batches for _ in range(2)]
        loop.run()
        return pairs.seeds, loop

    twice = {"train__accumulate_batches": 2}
    seeds, loop = seeds_of("whole", **twice)
    assert len(seeds) == len(set(seeds)) == 6
    assert not set(seeds) & set(seeds_of("other", seed=2, **twice)[0])
    state = checkpoint.load(loop.folder.state(1))
    assert seeds_of("resumed", state=state, **twice)[0] == seeds[2:]


def test_validation_compiles_nothing(make_loop, benchmark_of_two):
    def compiler(graph, inputs):
        batches.append(max(len(value) for value in inputs if value.dim() == 4 and value.shape[2:] == (8, 8)))
        return graph.forward

    batches = []
    torch._dynamo.reset()
    loop, _ = make_loop(
        benchmarks=[benchmark_of_two],
        metrics={"psnr": Metric("psnr", "PSNR-Y", lambda sr, hr: 20.0)},
        validation__every_steps=2,
    )
    for block in loop.train_step.generator.repeated_blocks:
        block.compile(backend=compiler, dynamic=False)
    loop.run()
    assert loop.validator.step == 6
    assert batches == [2]  # once, for training


def test_recorded_steps_are_freed_before_each_validation(make_loop, benchmark_of_two):
    class Recorder:
        def warm_up(self, function, inputs):
            return function(*inputs), False

        def record(self, function, inputs):
            return lambda: function(*inputs), None

    def new_recorder():
        recorders.append(Recorder())
        return recorders[-1]

    def metric(sr, hr):
        backward = loop.train_step._run_backward
        kept.append(len(backward._recordings))
        return 20.0

    recorders, kept = [], []
    loop, _ = make_loop(
        benchmarks=[benchmark_of_two], metrics={"psnr": Metric("psnr", "PSNR-Y", metric)}, validation__every_steps=5
    )
    loop.train_step.record(new_recorder, warn=pytest.fail)
    loop.run()
    assert kept == [0] * 4  # two images, after steps 5 and 6
    assert len(recorders) == 3


def test_signal_handlers_are_restored_after_a_run(make_loop):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    make_loop()[0].run()
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_vanishing_adversarial_gradient_is_a_warning(make_loop):
    """A last layer of zeros gives every image the same logits."""
    adversary = PatchDiscriminator(semantic_channels=None, features=8)
    nn.init.zeros_(adversary.conv4.weight)
    loop, log = make_loop(adversary=adversary, train__watch_every_steps=3)
    loop.run()
    assert len(log.warnings) == 1
    assert "the generator gets no gradient from the adversarial loss at step 3" in log.warnings[0]
    assert ("spectral_norm", 3) in log.keys


def test_out_of_memory_in_a_step_says_what_to_lower(make_loop):
    def too_large(lr):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    loop, _ = make_loop()
    loop.train_step.generator.forward = too_large
    with pytest.raises(UserError, match=r"ran out of memory in step 1: lower dataloader\.batch_size"):
        loop.run()
