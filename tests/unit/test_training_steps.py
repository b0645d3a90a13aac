"""Data, chance and the steps of a training: exact values."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import SIZE, classifier_layout, half_unet, unet

from guidance import NoiseSchedule
from guidance.core.distributed import Processes
from guidance.sampling.generate import SamplingConfig
from guidance.training import loop, new_classifier, resume, train_classifier
from guidance.training import rng as draws
from guidance.training.data import Augment, LabelledImages, load_images, save_latents, shifted
from guidance.training.loop import OptimizerConfig, Trained, TrainingContext, optimise
from guidance.training.new_classifier import TrainingConfig
from guidance.training.resume import ResumeFile, TrainingState
from guidance.training.rng import Batches, generator, seed_of
from guidance.training.samples import Sampler, sample_path

# --- data ------------------------------------------------------------------------------------


def numbered(count, channels=1, side=2, names=("a", "b")):
    """Image i is filled with i; even and odd ones are the classes."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    images = images.expand(count, channels, side, side).contiguous()
    return LabelledImages(images, torch.arange(count) % 2, names, ("lost.png",), "rgb")


def which(data):
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(10, 0.0, 0), (10, 0.1, 1), (10, 0.14, 1), (10, 0.16, 2), (3, 0.99, 3), (4, 0.1, 0)],
)
def test_so_many_images_are_held_out(count, share, held):
    rest, out = numbered(count).split(share, 0)
    assert (len(out), len(rest)) == (held, count - held)
    assert sorted(which(rest) + which(out)) == list(range(count))
    assert rest.labels.tolist() == [number % 2 for number in which(rest)]
    assert (rest.skipped, out.skipped, rest.names, rest.space) == ((), (), ("a", "b"), "rgb")


def test_a_larger_share_holds_out_the_same_images_and_more():
    data = numbered(20)
    few, more = (which(data.split(share, 3)[1]) for share in (0.2, 0.5))
    assert more[: len(few)] == few and len(few) == 4


def test_a_share_is_refused_in_these_words():
    for share in (1.0, -0.5):
        with pytest.raises(ValueError) as caught:
            numbered(4).split(share, 0)
        assert str(caught.value) == f"held_out is {share}; it must be at least 0 and below 1."


def test_the_first_images():
    assert which(numbered(5).first(2)) == [0, 1]
    assert which(numbered(5).first(9)) == [0, 1, 2, 3, 4]


def test_a_digest_tells_data_apart():
    data = numbered(6)
    assert data.digest() == numbered(6).digest()
    assert len(data.digest()) == 32
    images = data.images.clone()
    images[5, 0, 1, 1] += 1
    labels = data.labels.clone()
    labels[0] = 1
    others = [
        LabelledImages(images, data.labels, data.names),
        LabelledImages(data.images, labels, data.names),
        LabelledImages(data.images, data.labels, ("a", "c")),
        LabelledImages(data.images.view(6, 1, 1, 4), data.labels, data.names),
    ]
    assert len({one.digest() for one in (data, *others)}) == 5


def test_of_large_data_a_part_is_looked_at(monkeypatch):
    """24 bytes with a limit of 8: every third image."""
    monkeypatch.setattr("guidance.training.data.HASHED", 8)
    whole = numbered(6).digest()
    for number in range(6):
        images = numbered(6).images.clone()
        images[number] += 1
        same = LabelledImages(images, numbered(6).labels, ("a", "b")).digest() == whole
        assert same == (number not in (0, 3)), number


def test_grey_values_become_what_models_see():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    data = LabelledImages(pixels, torch.zeros(3, dtype=torch.int64), ("a",))
    assert data.x0(slice(None)).flatten().tolist() == pytest.approx([-1, -0.6, 1])
    assert (data.skipped, data.space) == ((), "rgb")


def test_mirror_images_are_mirrored_left_to_right():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    found = Augment(flip=True)(image.expand(40, 1, 2, 3), torch.Generator().manual_seed(0))
    seen = {tuple(one.flatten().tolist()) for one in found}
    assert seen == {(0, 1, 2, 3, 4, 5), (2, 1, 0, 5, 4, 3)}


def test_a_shift_goes_both_ways_and_repeats_the_edge():
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(300, 1, 3, 3)
    chance = torch.Generator().manual_seed(0)
    seen = {tuple(one.flatten().int().tolist()) for one in shifted(image, 1, chance)}
    assert len(seen) == 9
    assert (0, 0, 1, 0, 0, 1, 3, 3, 4) in seen
    assert (4, 5, 5, 7, 8, 8, 7, 8, 8) in seen
    moved = Augment(shift=1)(image, torch.Generator().manual_seed(0))
    assert torch.equal(moved, shifted(image, 1, torch.Generator().manual_seed(0)))


def test_augmenting_is_off_by_default():
    assert Augment() == Augment(shift=0, flip=False)


def test_a_wide_npz_says_its_width_first(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((1, 2, 3, 1), np.uint8), arr_1=np.zeros(1, int))
    with pytest.raises(ValueError) as caught:
        load_images(path, 2)
    assert str(caught.value) == f"{path} has 3x2 images, not 2."


def test_the_count_of_a_folder_is_told_before_it_is_read(tmp_path):
    for number in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "a" / f"{number}.png")
    told = []
    assert len(load_images(tmp_path, 2, told.append)) == 3
    assert told == [3]


def test_pictures_of_every_known_ending_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    endings = ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
    for ending in endings:
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending.upper())
        mode = "L" if ending == "pgm" else "RGB"
        Image.new(mode, (2, 2)).save(tmp_path / "a" / f"a.{ending}", format=kind)
    data = load_images(tmp_path, 2)
    assert (len(data), data.skipped, data.names) == (9, (), ("a",))


def test_a_tall_picture_keeps_its_middle(tmp_path):
    pixels = np.zeros((7, 2, 3), np.uint8)
    pixels[2:4] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "a.png")
    assert load_images(tmp_path, 2).images.unique().tolist() == [200]


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0, 2], "labels from 0 to 2, but names 2 classes."), ([-1, 0], "labels from -1 to 0, but")],
)
def test_labels_of_latents_have_to_be_named(tmp_path, labels, said):
    path = tmp_path / "a.safetensors"
    save_latents(path, LabelledImages(torch.zeros(2, 4, 2, 2), torch.tensor(labels), ("a", "b")))
    with pytest.raises(ValueError) as caught:
        load_images(path)
    assert said in str(caught.value)


# --- chance ----------------------------------------------------------------------------------


def test_seeds_of_a_training_stay_what_they_were():
    """numpy keeps these numbers from version to version, so that trainings can be repeated."""
    assert seed_of(0) == 6569863346532939966
    assert seed_of(0, 1) == 5836529245451711556
    assert seed_of(-1, 3) == seed_of(2**64 - 1, 3) == 2691144761069918725
    assert (draws.ORDER, draws.STEP, draws.WEIGHTS) == (0, 1, 2)
    assert (draws.VALIDATION, draws.DROPOUT, draws.NETWORK) == (3, 4, 5)
    places = [seed_of(0, 1), seed_of(0, 2), seed_of(1, 1), seed_of(0, 1, 1), seed_of(0, 2, 1)]
    assert len(set(places)) == 5
    assert all(0 <= place < 2**63 for place in places)
    one, two = (torch.rand(3, generator=generator(4, 1, step)) for step in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(
        one, torch.rand(3, generator=torch.Generator().manual_seed(seed_of(4, 1, 0)))
    )


def test_a_pass_is_shuffled_once_however_it_is_asked_for():
    batches = Batches(5, 3, seed=1)
    passes = torch.cat([batches.at(step) for step in range(5)]).view(3, 5)
    assert passes.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 3
    backwards = torch.cat([batches.at(step) for step in reversed(range(5))]).view(5, 3).flip(0)
    assert torch.equal(backwards.reshape(3, 5), passes)
    assert batches.at(2).shape == (3,)


# --- the loop --------------------------------------------------------------------------------


class Weight(torch.nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor([value]))


def slope(network, rows):
    return (network.value * rows).mean()


def optimised(network=None, draw=None, run=None, **recipe):
    recipe = OptimizerConfig(**{"steps": 4, "batch_size": 2, "weight_decay": 0.0} | recipe)
    draw = draw or (lambda step: (torch.ones(recipe.batch_size),))
    return optimise(network or Weight(), draw, slope, recipe, run)


def test_a_recipe_and_a_run_by_default():
    assert vars(OptimizerConfig(steps=1)) == {
        "steps": 1,
        "batch_size": 64,
        "learning_rate": 3e-4,
        "weight_decay": 0.05,
        "ema": 0.999,
        "seed": 0,
        "bf16": False,
        "accumulate": 1,
    }
    assert vars(TrainingContext()) == {
        "title": "train",
        "device": "cpu",
        "processes": Processes(0, 1),
        "resume": None,
        "on_step": None,
        "validate": None,
        "validate_every": 100,
        "patience": 0,
        "show": None,
        "show_every": 0,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1."),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1."),
        ({"accumulate": -1}, "accumulate is -1; it must be at least 1."),
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and below 1."),
        ({"ema": -0.5}, "ema is -0.5; it must be at least 0 and below 1."),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must fit into 64 bits."),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809; it must fit into 64 bits."),
    ],
)
def test_a_recipe_is_refused_in_these_words(options, said):
    with pytest.raises(ValueError) as caught:
        OptimizerConfig(**{"steps": 1} | options)
    assert str(caught.value) == said


def test_the_outermost_recipes():
    OptimizerConfig(steps=1, batch_size=1, accumulate=1, ema=0.0, seed=2**63 - 1)
    OptimizerConfig(steps=1, seed=-(2**63))


def test_the_learning_rate_falls_linearly():
    """AdamW goes by the rate where the gradient is always the same: 4/4, 3/4, 2/4 and 1/4 of it."""
    network, seen = Weight(), []
    run = TrainingContext(
        on_step=lambda step, loss: seen.append((step, network.value.item(), loss))
    )
    trained = optimised(network, run=run, learning_rate=0.1)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    assert [value for _, value, _ in seen] == pytest.approx([0.9, 0.825, 0.775, 0.75], abs=1e-5)
    assert trained.losses == pytest.approx([1.0, 0.9, 0.825, 0.775], abs=1e-5)
    assert [loss for _, _, loss in seen] == trained.losses


def test_weights_decay_as_the_recipe_says():
    network = Weight()
    optimised(network, lambda step: (torch.zeros(2),), steps=1, learning_rate=0.5, weight_decay=0.5)
    assert network.value.item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("ema", "expected"),
    [
        # at first the average follows within (1 + step) / (10 + step): 1/10, then 2/11
        (0.999, (0.1 * 1.0 + 0.9 * 0.9) * 2 / 11 + 0.85 * 9 / 11),
        (0.15, (0.1 * 1.0 + 0.9 * 0.9) * 0.15 + 0.85 * 0.85),
        (0.0, 0.85),
    ],
)
def test_weights_are_averaged(ema, expected):
    trained = optimised(steps=2, learning_rate=0.1, ema=ema)
    assert trained.network.value.item() == pytest.approx(expected, abs=1e-5)


def test_parts_of_a_batch_are_averaged():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    seen = []

    def loss(network, rows):
        seen.append(rows.tolist())
        return slope(network, rows)

    network = Weight(2.0)
    recipe = OptimizerConfig(steps=1, batch_size=4, accumulate=2, learning_rate=0.0)
    trained = optimise(network, lambda step: (values,), loss, recipe)
    assert seen == [[1.0, 2.0], [3.0, 6.0]]
    assert trained.losses == [pytest.approx(6.0)]
    assert network.value.grad.item() == pytest.approx(3.0)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError) as caught:
        optimised(batch_size=4, accumulate=3)
    assert str(caught.value) == (
        "batch_size is 4; it must be a multiple of 3 (1 processes, 3 parts each)."
    )


def test_gradients_of_the_step_before_are_forgotten():
    network = Weight()
    optimised(network, lambda step: (torch.full((2,), step + 1.0),), steps=3)
    assert network.value.grad.item() == pytest.approx(3.0)


def test_draws_are_asked_for_step_by_step():
    asked = []
    optimised(draw=lambda step: asked.append(step) or (torch.ones(2),))
    assert asked == [0, 1, 2, 3]


def test_bf16_is_used_where_it_is_asked_for():
    for bf16 in (False, True):
        seen = []

        def loss(network, rows, seen=seen):
            seen.append(torch.is_autocast_enabled("cpu"))
            return slope(network, rows)

        optimise(
            Weight(),
            lambda step: (torch.ones(2),),
            loss,
            OptimizerConfig(steps=1, batch_size=2, bf16=bf16),
        )
        assert seen == [bf16]


def test_validation_and_pictures_come_when_they_are_due():
    shown, validated = [], []

    def validate(network):
        validated.append(network)
        return {"loss": 1.0, "more": 2}

    run = TrainingContext(
        validate=validate,
        validate_every=2,
        show=lambda network, step: shown.append((network, step)),
        show_every=3,
    )
    trained = optimised(steps=5, run=run)
    assert trained.validations == [{"step": step, "loss": 1.0, "more": 2} for step in (2, 4, 5)]
    assert [step for _, step in shown] == [3, 5]
    assert all(network is trained.network for network in [*validated, *(n for n, _ in shown)])
    never = TrainingContext(show=run.show, show_every=0)
    shown.clear()
    optimised(steps=2, run=never)
    assert shown == []


@pytest.mark.parametrize(
    ("losses", "patience", "steps"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2, 3),
        ([3.0, 2.0, 2.0, 1.0, 1.0], 2, 5),
        ([3.0, 2.0, 2.5, 2.1, 1.0], 2, 4),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1, 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3, 4),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 4, 5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0, 5),
    ],
)
def test_a_training_stops_when_its_best_validation_is_so_old(losses, patience, steps):
    seen = iter(losses)
    run = TrainingContext(
        validate=lambda network: {"loss": next(seen)}, validate_every=1, patience=patience
    )
    assert len(optimised(steps=5, run=run).losses) == steps


def test_the_loss_of_a_training_is_that_of_its_last_200_steps():
    assert Trained(None, [9.0] * 50 + [1.0, 3.0] * 100, []).loss == 2.0
    assert Trained(None, [9.0, 1.0, 2.0], []).loss == 4.0


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self, **options):
        self.options, self.said = options, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def set_postfix(self, loss, refresh):
        self.said.append((loss, refresh))

    def update(self):
        self.said.append("step")


def test_progress_shows_the_mean_of_recent_losses(monkeypatch):
    bars = []
    monkeypatch.setattr(loop, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    draw = lambda step: (torch.full((2,), 9.0 if step == 0 else 1.0 + step % 2),)  # noqa: E731
    optimised(draw=draw, steps=101, learning_rate=0.0, run=TrainingContext(title="one"))
    assert bars[0].options == {
        "total": 101,
        "initial": 0,
        "desc": "one",
        "unit": "step",
        "mininterval": 1.0,
        "disable": False,
    }
    assert bars[0].said[:4] == [("9.0000", False), "step", ("5.5000", False), "step"]
    assert bars[0].said[-2] == ("1.5000", False)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("cannot allocate memory: 9 bytes")])
def test_too_little_memory_is_said_in_these_words(error):
    def loss(network, rows):
        raise error

    recipe = OptimizerConfig(steps=1, batch_size=1)
    with pytest.raises(ValueError) as caught:
        optimise(Weight(), lambda step: (torch.ones(1),), loss, recipe)
    assert str(caught.value) == (
        "batch_size 1 in 1 parts does not fit into the memory of cpu; try accumulate 2, or "
        "batch_size 1."
    )


def test_another_error_is_not_taken_for_too_little_memory():
    def loss(network, rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        optimise(Weight(), lambda step: (torch.ones(64),), loss, OptimizerConfig(steps=1))


# --- going on --------------------------------------------------------------------------------


class Stop(Exception):
    """What a cancelled run raises."""


def stopping(at):
    def on_step(step, loss):
        if step == at:
            raise Stop

    return on_step


def test_a_training_says_from_where_it_goes_on(tmp_path, capsys):
    file = ResumeFile(tmp_path / "a.resume", {"seed": 0})
    with pytest.raises(Stop):
        optimised(run=TrainingContext(title="one", resume=file, on_step=stopping(3)))
    assert capsys.readouterr().out == ""
    optimised(run=TrainingContext(title="one", resume=file))
    assert capsys.readouterr().out == "one goes on from step 3.\n"


def test_a_training_that_fails_before_its_first_step_keeps_no_state(tmp_path):
    file = ResumeFile(tmp_path / "a.resume", {})

    def draw(step):
        raise Stop

    with pytest.raises(Stop):
        optimised(draw=draw, run=TrainingContext(resume=file))
    assert not file.path.exists()


def test_a_step_that_was_half_done_is_not_kept(tmp_path, monkeypatch):
    file = ResumeFile(tmp_path / "a.resume", {})
    real, calls = loop._average, iter(range(9))

    def average(*arguments):
        if next(calls) == 2:
            raise Stop
        real(*arguments)

    monkeypatch.setattr(loop, "_average", average)
    with pytest.raises(Stop):
        optimised(run=TrainingContext(resume=file))
    assert not file.path.exists()


def test_a_state_is_saved_when_the_last_time_is_long_enough_ago(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: now[0]))
    network = Weight()
    state = TrainingState(network, Weight(), torch.optim.AdamW(network.parameters()))
    file = ResumeFile(tmp_path / "a.resume", {})
    now[0] = 129.9
    file.save_sometimes(state)
    assert not file.path.exists()
    now[0] = 130.0
    file.save_sometimes(state)
    assert file.path.exists()
    file.delete()
    file.delete()
    now[0] = 159.9
    file.save_sometimes(state)
    assert not file.path.exists()
    now[0] = 160.0
    file.save_sometimes(state)
    assert file.path.exists()


def test_a_state_is_saved_with_its_settings(tmp_path):
    from safetensors import safe_open

    file = ResumeFile.beside(tmp_path / "a.safetensors", {"levels": (1, 2)})
    assert file.path == tmp_path / "a.safetensors.resume"
    with pytest.raises(Stop):
        optimised(run=TrainingContext(resume=file, on_step=stopping(2)))
    with safe_open(file.path, "pt") as saved:
        about = json.loads(saved.metadata()["training"])
        keys = set(saved.keys())
    assert (about["settings"], about["step"], about["validations"]) == ({"levels": [1, 2]}, 2, [])
    assert len(about["losses"]) == 2
    optimizer = {f"optimizer.0.{name}" for name in ("step", "exp_avg", "exp_avg_sq")}
    assert keys == {"network.value", "average.value", *optimizer}


def test_a_state_of_other_settings_is_refused_in_these_words(tmp_path):
    path = tmp_path / "a.resume"
    with pytest.raises(Stop):
        optimised(
            run=TrainingContext(resume=ResumeFile(path, {"a": 1, "b": 2}), on_step=stopping(2))
        )
    for settings, said in (
        ({"a": 1, "b": 3}, "b 2, but this one has 3"),
        ({"a": 1}, "b 2, but this one has None"),
    ):
        with pytest.raises(ValueError) as caught:
            optimised(run=TrainingContext(resume=ResumeFile(path, settings)))
        assert str(caught.value) == (
            f"{path} is of a training with {said}; delete it to start again, or use the same "
            "settings."
        )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": -1}, "TypeError"),
        ({"step": 1.0}, "TypeError"),
        ({"step": True}, "TypeError"),
        ({"losses": {}}, "TypeError"),
        ({"validations": None}, "TypeError"),
        ({"step": None}, "TypeError"),
    ],
)
def test_a_state_whose_progress_cannot_be_is_refused(tmp_path, changes, why):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = ResumeFile(tmp_path / "a.resume", {})
    with pytest.raises(Stop):
        optimised(run=TrainingContext(resume=file, on_step=stopping(2)))
    tensors = load_file(file.path)
    with safe_open(file.path, "pt") as saved:
        about = json.loads(saved.metadata()["training"])
    save_file(tensors, file.path, {"training": json.dumps(about | changes)})
    with pytest.raises(ValueError) as caught:
        optimised(run=TrainingContext(resume=file))
    assert str(caught.value) == (
        f"{file.path} is not a state that this training can resume from ({why}); delete it to "
        "start again."
    )
    save_file(tensors, file.path, {"training": json.dumps(about | {"step": 0})})
    assert len(optimised(run=TrainingContext(resume=file)).losses) == 2 + 4


def test_the_optimisers_state_has_to_fit(tmp_path):
    network = Weight()
    state = TrainingState(network, Weight(), torch.optim.AdamW(network.parameters()))
    network.value.sum().backward()
    state.optimizer.step()
    about = {"step": 0, "losses": [], "validations": []}
    good = state.tensors()
    state.restore(good, about)
    for wrong in ({"optimizer.1.step": torch.tensor(1.0)}, {"optimizer.0.exp_avg": torch.zeros(2)}):
        number = next(iter(wrong)).split(".")[1]
        with pytest.raises(ValueError) as caught:
            state.restore(good | wrong, about)
        assert str(caught.value) == f"the optimiser's state {number} does not fit"


# --- classifiers -----------------------------------------------------------------------------


def stripes(count=20):
    images = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    images[1::2, :, ::2] = 255
    return LabelledImages(images, torch.arange(count) % 2, ("plain", "striped"))


def plan(**changes):
    small = {"channel_mult": (1,), "attention_levels": (), "out_channels": 2}
    recipe = OptimizerConfig(**{"steps": 3, "batch_size": 4, "seed": 5} | changes.pop("recipe", {}))
    return TrainingConfig(
        data=stripes(), layout=classifier_layout(**small), recipe=recipe, **changes
    )


def test_a_plan_by_default():
    found = plan()
    assert (found.noise_schedule, found.clean, found.augment) == ("linear", False, Augment())
    assert (found.held_out, found.patience) == (0.1, 0)


def test_the_settings_of_a_plan_are_all_that_decides_its_result():
    found = plan().settings()
    assert found.keys() == {
        *vars(OptimizerConfig(steps=1)),
        *("layout", "noise_schedule", "clean", "augment", "held_out", "data"),
    }
    assert (found["steps"], found["seed"], found["data"]) == (3, 5, stripes().digest())
    assert found["augment"] == {"shift": 0, "flip": False}
    for change in ({"clean": True}, {"held_out": 0.5}, {"augment": Augment(1)}):
        assert plan(**change).settings() != found
    assert plan(patience=3).settings() == found, "it may stop earlier or later when it goes on"


def test_a_new_classifier_says_how_it_was_trained(monkeypatch):
    clock = iter([10.0, 12.6])
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(new_classifier, "time", fake)
    trained, about = new_classifier.new_classifier(plan(held_out=0.2), TrainingContext())
    assert (about.kind, about.noise_schedule, about.space) == ("classifier", "linear", "rgb")
    assert (about.labels, about.layout) == (("plain", "striped"), plan().layout)
    shares = about.training.pop("accuracy_by_timestep")
    assert list(shares) == ["0", "100", "200", "300", "400", "500", "600", "800"]
    assert all(share in (0.0, 0.25, 0.5, 0.75, 1.0) for share in shares.values())
    assert trained.validations[-1]["accuracy"] == shares
    assert about.training == {
        "images": 16,
        "held_out": 4,
        "steps": 3,
        "batch_size": 4,
        "clean": False,
        "seed": 5,
        "seconds": 3,
        "loss": trained.loss,
    }


def test_without_held_out_images_nothing_is_validated():
    trained, about = new_classifier.new_classifier(plan(held_out=0.0), TrainingContext())
    assert (trained.validations, about.training["accuracy_by_timestep"]) == ([], {})


@pytest.mark.parametrize(
    ("steps", "often"), [(1, 100), (1000, 100), (1009, 100), (1010, 101), (5000, 500)]
)
def test_a_classifier_is_validated_ten_times(monkeypatch, steps, often):
    seen = {}

    def train(data, layout, schedule, recipe, **options):
        seen.update(options)
        return Trained(half_unet(), [1.0], [])

    monkeypatch.setattr(new_classifier, "train_classifier", train)
    plans = plan(recipe={"steps": steps}, patience=4, held_out=0.0, clean=True, augment=Augment(1))
    new_classifier.new_classifier(plans, TrainingContext(title="one"))
    run = seen["run"]
    assert (run.validate_every, run.patience, run.title) == (often, 4, "one")
    assert (seen["clean"], seen["augment"], len(seen["held_out"])) == (True, Augment(1), 0)


def test_one_class_alone_is_refused():
    said = (
        "There is one class only ({}); a classifier needs two or more, each in a folder of its own."
    )
    images, labels = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    for names, shown in ((("a",), "a"), (("a", "b"), "a"), ((), "without a name")):
        with pytest.raises(ValueError) as caught:
            train_classifier.check_classes(LabelledImages(images, labels, names))
        assert str(caught.value) == said.format(shown)
    train_classifier.check_classes(LabelledImages(images, torch.tensor([0, 1]), ("a", "b")))


class Judge(torch.nn.Module):
    """Says class 1 where the first pixel is above 0, with logits 0 and 2; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.clone(), t.clone()))
        striped = (x[:, 0, 0, 0] > 0).float()
        return 2 * torch.stack([1 - striped, striped], dim=1)


def test_accuracy_and_loss_at_one_noise_level():
    judge, data = Judge(), stripes(4)
    data = LabelledImages(data.images, torch.tensor([0, 1, 1, 1]), data.names)
    share, loss = train_classifier.measured(judge, data, 1.0, 0.0)
    assert share == 0.75
    right, wrong = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    assert loss == pytest.approx((3 * right + wrong) / 4)
    assert train_classifier.accuracy(judge, data) == 0.75
    (x, t), *_ = judge.seen
    assert torch.equal(x, data.x0(slice(None))) and t.tolist() == [0.0] * 4


def test_validation_goes_through_the_noise_levels():
    judge, schedule = Judge(), NoiseSchedule("linear")
    found = train_classifier.validated(judge, stripes(6), schedule)
    levels = [0, 100, 200, 300, 400, 500, 600, 800]
    assert list(found["accuracy"]) == [str(level) for level in levels]
    assert [t.unique().tolist() for _, t in judge.seen] == [[float(level)] for level in levels]
    each = [
        train_classifier.measured(judge, stripes(6), float(schedule.alpha_bar[t]), t)
        for t in levels
    ]
    assert found["loss"] == pytest.approx(sum(loss for _, loss in each) / 8)
    assert list(found["accuracy"].values()) == [share for share, _ in each]
    short = NoiseSchedule(schedule.alpha_bar[:200])
    assert list(train_classifier.validated(judge, stripes(6), short)["accuracy"]) == ["0", "100"]


def test_a_clean_classifier_is_validated_without_noise():
    judge = Judge()
    found = train_classifier.validated(judge, stripes(6), NoiseSchedule("linear"), clean=True)
    assert found["accuracy"] == {"0": 1.0}
    ((x, _),) = judge.seen
    assert torch.equal(x, stripes(6).x0(slice(None)))


def test_images_are_measured_in_parts_of_250(monkeypatch):
    judge = Judge()
    share, loss = train_classifier.measured(judge, stripes(251), 1.0, 0.0)
    assert [len(x) for x, _ in judge.seen] == [250, 1]
    assert (share, loss) == (1.0, pytest.approx(np.log(1 + np.exp(-2)), rel=1e-5))


def test_a_step_sees_images_noise_time_and_label():
    data = stripes(10)
    recipe = OptimizerConfig(steps=1, batch_size=200, seed=2)
    draw = train_classifier.drawing(data, recipe, 5, Augment())
    x0, noise, t, labels = draw(0)
    assert x0.shape == noise.shape == (200, 3, SIZE, SIZE)
    assert t.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal((x0[:, 0, 0, 0] > 0).long(), labels)
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    again, other = draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(again, (x0, noise, t, labels), strict=True))
    assert not torch.equal(other[1], noise)
    flipped = train_classifier.drawing(data, recipe, 5, Augment(flip=True))(0)
    assert not torch.equal(flipped[1], noise), "chance is drawn for the mirror images first"


def test_at_most_500_images_are_validated_while_it_trains(monkeypatch):
    seen = []
    monkeypatch.setattr(
        train_classifier,
        "validated",
        lambda net, data, schedule, clean: seen.append((len(data), clean)) or {"loss": 1.0},
    )
    held_out = stripes(502)
    options = {"held_out": held_out, "clean": True}
    one = plan()
    schedule = NoiseSchedule("linear")
    train_classifier.train_classifier(one.data, one.layout, schedule, one.recipe, **options)
    assert seen == [(500, True)]


# --- samples of a training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "name"), [(5, "a.b_step_0000005.png"), (12345678, "a.b_step_12345678.png")]
)
def test_the_picture_of_a_step_is_beside_the_model(tmp_path, step, name):
    assert sample_path(tmp_path / "a.b.safetensors", step) == tmp_path / name


@pytest.mark.parametrize(
    ("classes", "null", "job", "columns"),
    [
        (4, 3, {"label": [0, 1, 2], "cfg": 2.5, "num_samples": 12, "batch_size": 12}, 3),
        (3, None, {"label": [0, 1, 2], "cfg": 1.0, "num_samples": 12, "batch_size": 12}, 3),
        (None, None, {"label": "random", "cfg": 1.0, "num_samples": 16, "batch_size": 16}, 4),
        (12, 11, {"label": list(range(10)), "cfg": 2.5, "num_samples": 40, "batch_size": 40}, 10),
    ],
)
def test_a_column_is_drawn_for_each_class(tmp_path, monkeypatch, classes, null, job, columns):
    from guidance.training import samples

    seen, saved = [], []

    def generate(model, classifier, job, title):
        seen.append((model.network, classifier, job, title, torch.is_grad_enabled()))
        return np.zeros((job.num_samples, SIZE, SIZE, 3), np.uint8), None

    real = samples.save_grid
    monkeypatch.setattr(samples, "generate", generate)
    monkeypatch.setattr(samples, "save_grid", lambda *given: saved.append(given[2]) or real(*given))
    network = unet(num_classes=classes, null_class=null)
    Sampler(tmp_path / "a.safetensors", "linear", 2.5)(network, 7)
    expected = SamplingConfig(respacing="ddim25", **job)
    assert seen == [(network, None, expected, "samples at step 7", False)]
    assert saved == [columns]
    assert [path.name for path in tmp_path.iterdir()] == ["a_step_0000007.png"]
