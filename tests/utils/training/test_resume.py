"""What a run starts from: the newest intact state, weights, or random weights; and the messages about it."""

from pathlib import Path

import pytest
import torch

from sed_sr.models.build import build_generator
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.training.resume import AUTO, discriminator_to_start_from, file_to_start_from, find_start
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint

RECIPE = Path(__file__).parents[3] / "options/train_rrdb_psnr.yml"
TINY = {"generator.features": 4, "generator.blocks": 1, "generator.growth": 2}


def options_with(**settings):
    overrides = {**TINY, **{key.replace("__", "."): value for key, value in settings.items()}}
    return load_options(RECIPE, [Override(key, value, key) for key, value in overrides.items()])


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def save(folder):
    """Saves a state of a step, as a run of these options does."""

    def save(step, options, **loop):
        path = folder.state(step)
        state = {
            "step": step,
            "params": build_generator(options).state_dict(),
            "options": options.model_dump(mode="json"),
            "train_step": {},
            "loop": {"samples": 8 * step, "validated": 0, "processes": 1, **loop},
        }
        checkpoint.save_state(path, state)
        return path

    return save


def start(resume, options, folder, path=None, processes=1):
    return find_start(resume, options, folder, path=path, processes=processes)


def test_newest_intact_state_is_resumed_and_damaged_ones_are_reported(folder, save):
    options = options_with()
    save(2, options)
    save(10, options)
    for step in (11, 100):
        broken = save(step, options)
        broken.write_bytes(broken.read_bytes()[:-20])
    found = start(AUTO, options, folder)
    assert (found.step, found.samples, found.in_place) == (10, 80, True)
    assert [path.stem for path in found.damaged] == ["state_000000100", "state_000000011"]
    assert all(
        path.name in line and "damaged" in line for path, line in zip(found.damaged, found.messages, strict=False)
    )


def test_state_that_cannot_be_read_for_a_moment_is_not_damaged(folder, save, monkeypatch):
    save(2, options_with())
    save(10, options_with())
    failures = [UserError("state_000000010.pth could not be read: Input/output error")]

    def load(path, load=checkpoint.load):
        if failures:
            raise failures.pop()
        return load(path)

    monkeypatch.setattr(checkpoint, "load", load)
    found = start(AUTO, options_with(), folder)
    assert (found.step, found.damaged) == (10, ())


def test_run_without_an_intact_state_is_refused(folder, save):
    save(2, options_with()).write_bytes(b"PK")
    with pytest.raises(UserError, match="none of the 1 training states"):
        start(AUTO, options_with(), folder)


@pytest.mark.parametrize("resume", [None, AUTO])
def test_new_run_starts_from_the_weights_of_the_options(folder, tmp_path, resume):
    weights = build_generator(options_with()).state_dict()
    checkpoint.save(weights, tmp_path / "weights.pth")
    options = options_with(train__start_from=str(tmp_path / "weights.pth"))
    assert file_to_start_from(resume, options, folder) == str(tmp_path / "weights.pth")
    found = start(resume, options, folder, path=tmp_path / "weights.pth")
    assert found.step == 0
    assert torch.equal(found.weights.state["conv_first.weight"], weights["conv_first.weight"])


@pytest.mark.parametrize(
    ("recipe", "advice"), [("train_rrdb_P", "start_from=RRDB.pth"), ("train_rrdb_P_real", "train_*_psnr_real.yml")]
)
def test_run_from_random_weights_reports_what_the_paper_starts_from(folder, recipe, advice):
    (message,) = start(None, load_options(RECIPE.with_name(f"{recipe}.yml")), folder).messages
    assert advice in message


def test_resumed_run_needs_no_weights_to_start_from(folder, save):
    options = options_with(train__start_from="weights.pth")
    save(3, options)
    assert file_to_start_from(AUTO, options, folder) is None
    assert start(AUTO, options, folder).step == 3
    assert file_to_start_from("other.pth", options, folder) == "other.pth"


def test_discriminator_comes_from_the_state_that_is_resumed(folder, save, tmp_path):
    options, path_d = options_with(), tmp_path / "D.pth"
    weights = tmp_path / "weights.pth"
    checkpoint.save(build_generator(options).state_dict(), weights)
    # Without a discriminator, this option is refused; here only the file's name matters.
    options = options.model_copy(
        update={"train": options.train.model_copy(update={"start_discriminator_from": str(path_d)})}
    )
    for resume, path in ((None, None), (AUTO, None), (str(weights), weights)):
        assert discriminator_to_start_from(resume, options, folder) == str(path_d)
        found = find_start(resume, options, folder, path=path, discriminator=path_d, processes=1)
        assert found.discriminator == path_d
    state = save(3, options)
    assert discriminator_to_start_from(AUTO, options, folder) is None
    for resume, path in ((AUTO, None), (str(state), state)):
        found = find_start(resume, options, folder, path=path, discriminator=path_d, processes=1)
        assert found.discriminator is None
        assert f"the discriminator is that of the state, not {path_d}" in found.messages


def test_changed_options_are_listed_and_another_network_is_refused(folder, save):
    save(3, options_with())
    found = start(AUTO, options_with(train__precision="bf16", optimizer__warmup_steps=5), folder, processes=4)
    changes = [line for line in found.messages if line.startswith("changed since then")]
    assert len(changes) == 3
    assert 'train.precision was "auto", is "bf16"' in changes[1] + changes[0]
    assert "there were 1 processes, now 4" in changes[2]
    with pytest.raises(UserError, match=r"generator\.features 4, the options say 8"):
        start(AUTO, options_with(generator__features=8), folder)


@pytest.mark.parametrize("changed", [{"semantic_extractor__model": "clip/RN101"}, {"semantic_extractor__layer": "8"}])
def test_other_semantics_are_refused(folder, save, changed):
    save(1, options_with())
    with pytest.raises(UserError, match=rf"was trained with {next(iter(changed)).replace('__', '.')}"):
        start(AUTO, options_with(**changed), folder)


def test_state_from_before_a_network_option_existed_needs_its_default(folder, save):
    path = save(3, options_with())
    state = checkpoint.load(path)
    del state["options"]["generator"]["growth"]
    checkpoint.save_state(path, state)
    default = type(options_with().generator)(type="rrdb").growth
    assert start(AUTO, options_with(generator__growth=default), folder).step == 3
    with pytest.raises(UserError, match=rf"generator\.growth {default}, the options say 2"):
        start(AUTO, options_with(), folder)


def test_state_from_before_wandb_was_logged_to_tensorboard(folder, save):
    path = save(3, options_with())
    state = checkpoint.load(path)
    del state["options"]["logging"]
    checkpoint.save_state(path, state)
    assert not any("logging" in line for line in start(AUTO, options_with(), folder).messages)
    (change,) = [line for line in start(AUTO, options_with(logging=("wandb",)), folder).messages if "logging" in line]
    assert change == 'changed since then: logging was ["tensorboard"], is ["wandb"]'


def test_older_state_of_the_same_run_is_not_resumed_in_place(folder, save):
    options = options_with()
    older, newer = save(3, options), save(6, options)
    with pytest.raises(UserError, match=r"newer state, state_000000006\.pth"):
        start(str(older), options, folder, path=older)
    assert start(str(newer), options, folder, path=newer).in_place
    branch = RunFolder(folder.root.with_name("branch"))
    assert not start(str(older), options, branch, path=older).in_place


def test_state_of_another_version_is_refused(folder, save):
    path = save(3, options_with())
    state = checkpoint.load(path)
    del state["loop"]
    checkpoint.save(state, path)
    with pytest.raises(UserError, match="lacks loop: another version"):
        start(AUTO, options_with(), folder)
