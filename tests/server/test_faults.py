"""After anything that goes wrong, the next prompt draws what a fresh server draws, bit for bit."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest
from prompts import SMALL, Queue, guidance, guided_run, node, wait_for, write_models
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import write_classifier

STEPS = 25
FAULTS = Path(__file__).with_name("fault_nodes")

numbers = itertools.count(1)


def drawing(*, fault="ask to stop", at=0, nonce=None, **changes):
    """A guided run of 25 steps that is never cached; a fault happens in evaluation `at`."""
    nonce = next(numbers) if nonce is None else nonce
    prompt = guided_run(scale=100.0, seed=5, steps=STEPS, **changes)
    prompt["sampled"]["inputs"]["model"] = ["faulty", 0]
    del prompt["shown"]
    return prompt | {
        "faulty": node("TestsFaultAt", model=["guided", 0], fault=fault, at=at, nonce=nonce),
        "digest": node("TestsDigest", samples=["sampled", 0], image=["decoded", 0]),
    }


@pytest.fixture(scope="module")
def own_server(comfyui):
    """A server for this file alone, with the nodes that make things go wrong."""
    from comfy_server import ComfyServer

    with ComfyServer(comfyui, extra_packs=(FAULTS,)) as running:
        write_models(running.base)
        yield running


@pytest.fixture(scope="module")
def queue(own_server):
    """Its queue."""
    return Queue(own_server)


@pytest.fixture(scope="module")
def draw(queue):
    """Draws; the hash of the image."""
    return lambda **changes: queue.run(drawing(**changes)).digest


@pytest.fixture(scope="module")
def fresh(draw):
    """The image of a fresh server's first prompt."""
    return draw()


@pytest.fixture(scope="module")
def different(draw, fresh):
    """The image of another label: a prompt that changes later ones would show it."""
    other = draw(label="0")
    assert other != fresh
    return other


# --- a run that does not come to its end ------------------------------------------------------


def interrupted_then_drawn(queue, draw, fault, at):
    """Another image is interrupted in evaluation `at`; then the image is drawn."""
    assert queue.run(drawing(label="0", fault=fault, at=at)).interrupted_in == "sampled"
    return draw()


STOPS = ("ask to stop", "stop in the guider", "stop in the network")


@pytest.mark.parametrize("fault", STOPS)
def test_interrupted_in_the_middle(queue, draw, fresh, different, fault):
    assert interrupted_then_drawn(queue, draw, fault, 13) == fresh


@pytest.mark.long
@pytest.mark.parametrize("fault", STOPS)
def test_interrupted_at_every_step(queue, draw, fresh, different, fault):
    steps = range(1, STEPS + 1)
    found = {step: interrupted_then_drawn(queue, draw, fault, step) for step in steps}
    assert found == dict.fromkeys(steps, fresh)


def test_cancelled_over_http(own_server, queue, fresh):
    """As the page does it; the prompt that waits is drawn."""
    running = queue.add(drawing(label="0", fault="wait", at=2))
    waiting = queue.add(drawing())
    wait_for(own_server.base / "temp" / "waiting")
    own_server.request("/interrupt", {})
    assert queue.end(running).interrupted_in == "sampled"
    assert queue.end(waiting).digest == fresh


def composed():
    """A guider that stays in the cache: a CFG by schedule and two classifier guidances."""
    prompt = drawing(model="labels.safetensors", positive="2")
    kept = ("model", "classifier", "positive", "negative", "latent", "decoded", "digest")
    conditions = {name: [name, 0] for name in ("positive", "negative")}
    custom = {"noise": "noise", "guider": "guider", "sampler": "method", "sigmas": "steps"}
    custom = {name: [source, 0] for name, source in custom.items()}
    return {name: prompt[name] for name in kept} | {
        "armed": node("TestsArmedFault", model=["model", 0], nonce=next(numbers)),
        "first": guidance("1", 30.0, "armed", every=2),
        "second": guidance("2", 20.0, "first", entropy_limit=4.0),
        "traced": node("GuidanceTrace", model=["second", 0]),
        "schedule": node("GuidanceSchedule", **SCHEDULE_INPUTS | {"end": 0.6}),
        "guider": node(
            "ClassifierFreeGuidance",
            model=["traced", 0],
            schedule=["schedule", 0],
            cfg=1.0,
            **conditions,
        ),
        "steps": node("ADMScheduler", model=["model", 0], respacing="6", denoise=1.0),
        "method": node("SamplerADM", method="ddpm", eta=0.0),
        "noise": node("RandomNoise", noise_seed=3),
        "sampled": node("SamplerCustomAdvanced", latent_image=["latent", 0], **custom),
    }


def test_an_interrupted_guider_is_used_again(own_server, queue):
    """A run that was interrupted has not changed the nodes' results in the cache."""
    expected = queue.run(composed()).digest
    for evaluation in range(1, 7):
        prompt = composed()
        (own_server.base / "temp").mkdir(exist_ok=True)
        (own_server.base / "temp" / "armed").write_text(str(evaluation))
        assert queue.run(prompt).interrupted_in == "sampled"
        second = queue.run(prompt)
        assert "guider" in second.cached and "sampled" not in second.cached
        assert second.digest == expected, evaluation


def test_out_of_memory(queue, draw, fresh):
    raised_by, said = queue.run(drawing(fault="out of memory", at=13)).error
    assert raised_by == "sampled" and "memory" in said
    assert draw() == fresh


# --- models that leave the device, and the cache ----------------------------------------------


@pytest.mark.parametrize("at", [1, 13, STEPS])
def test_memory_pressure_during_a_run(draw, fresh, at):
    assert draw(fault="memory pressure", at=at) == fresh
    assert draw() == fresh


@pytest.mark.parametrize("request_body", [{"unload_models": True}, {"free_memory": True}])
def test_unloaded_between_prompts(own_server, draw, fresh, request_body):
    draw()
    before = classifier_loads(own_server)
    assert own_server.request("/free", request_body)[0] == 200
    assert [draw(), draw()] == [fresh, fresh]  # the server may unload before or after the first
    assert classifier_loads(own_server) > before


def classifier_loads(server):
    """How often the classifier's network was put on the device, by the server's log."""
    return len(re.findall(r"Requested to load \w+UNet\b", server.log))


def test_waiting_prompts_keep_their_own_inputs(queue, fresh, different):
    queued = [queue.add(drawing(label=label)) for label in ("2", "0", "2", "0")]
    assert [queue.end(one).digest for one in queued] == [fresh, different, fresh, different]


def test_the_cache_runs_what_changed_and_what_depends_on_it(queue, fresh, different):
    nonce = next(numbers)
    first, same = (queue.run(drawing(nonce=nonce)) for _ in range(2))
    other = queue.run(drawing(nonce=nonce, label="0"))
    assert first.cached >= {"model", "classifier"}
    assert same.cached >= {"guided", "sampled", "decoded"}
    assert other.cached & {"model", "classifier", "guided", "sampled"} == {"model", "classifier"}
    assert [one.digest for one in (first, same, other)] == [fresh, fresh, different]


# --- files that change ------------------------------------------------------------------------


@pytest.fixture
def changing(own_server):
    """A classifier file that a test may change: the same network as one.safetensors."""
    path = own_server.base / "models" / "classifiers" / "changing.safetensors"
    write_classifier(path, pool="adaptive", **SMALL)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def other_file(changing, tmp_path):
    """The bytes of another classifier, as many."""
    path = tmp_path / "other.safetensors"
    write_classifier(path, pool="adaptive", seed=2, **SMALL)
    assert path.stat().st_size == changing.stat().st_size
    return path.read_bytes()


def move_over(path, data):
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def move_over_with_the_old_time(path, data):
    """Like rsync and archives: size and time of change stay the same."""
    before = path.stat().st_mtime_ns
    move_over(path, data)
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize("replace", [move_over, Path.write_bytes, move_over_with_the_old_time])
def test_a_file_is_replaced_between_prompts(draw, fresh, changing, other_file, replace):
    old = changing.read_bytes()
    assert draw(classifier_name=changing.name) == fresh
    replace(changing, other_file)
    assert draw(classifier_name=changing.name) != fresh
    replace(changing, old)
    assert draw(classifier_name=changing.name) == fresh


def test_a_file_is_replaced_while_a_prompt_waits(own_server, queue, fresh, changing, other_file):
    """Each prompt reads the file when its turn comes."""
    running = queue.add(drawing(classifier_name=changing.name, fault="wait", at=2))
    waiting = queue.add(drawing(classifier_name=changing.name))
    wait_for(own_server.base / "temp" / "waiting")
    move_over(changing, other_file)
    (own_server.base / "temp" / "go on").touch()
    assert queue.end(running).digest == fresh
    assert queue.end(waiting).digest != fresh


def test_a_file_is_deleted_between_prompts(queue, draw, fresh, changing):
    data = changing.read_bytes()
    assert draw(classifier_name=changing.name) == fresh
    changing.unlink()
    (reason,) = queue.refusals(drawing(classifier_name=changing.name))["classifier"]
    assert reason["type"] == "value_not_in_list" and changing.name in reason["details"]
    changing.write_bytes(data)
    assert draw(classifier_name=changing.name) == fresh


@pytest.mark.parametrize(
    "name, option, folder",
    [
        ("classifier", "classifier_name", "classifiers"),
        ("model", "model", "diffusion_models"),
    ],
)
def test_a_file_is_deleted_while_a_prompt_waits(
    own_server, queue, draw, fresh, name, option, folder
):
    """The prompt was accepted; its loader names the file and the folder."""
    file = own_server.base / "models" / folder / "deleted.safetensors"
    good = {"classifiers": "one.safetensors", "diffusion_models": "plain.safetensors"}
    file.write_bytes(file.with_name(good[folder]).read_bytes())
    running = queue.add(drawing(fault="wait", at=2))
    waiting = queue.add(drawing(**{option: file.name}))
    wait_for(own_server.base / "temp" / "waiting")
    file.unlink()
    (own_server.base / "temp" / "go on").touch()
    assert queue.end(running).digest == fresh
    raised_by, said = queue.end(waiting).error
    assert raised_by == name and file.name in said and str(file.parent) in said
    assert draw() == fresh


# --- the server is killed: last in this file, which has a server of its own --------------------


def classifiers_offered(server, loader):
    """The files that a loader offers."""
    _, about = server.request(f"/object_info/{loader}")
    options = about[loader]["input"]["required"]["classifier_name"]
    return options[1]["options"] if options[0] == "COMBO" else options[0]


def test_killed_while_it_saves(own_server, queue, draw, fresh):
    """No loader offers the half-written file, and the next server saves and draws."""
    saving = drawing()
    saving["stalling"] = node("TestsStallingDisk", classifier=["classifier", 0])
    saving["saved"] = node(
        "SaveNoisyClassifier", classifier=["stalling", 0], filename_prefix="classifiers/mine"
    )
    offered = classifiers_offered(own_server, "NoisyClassifierLoader")
    queue.add(saving)
    wait_for(own_server.base / "temp" / "half")
    own_server.kill()
    (half,) = (own_server.base / "output" / "classifiers").iterdir()
    assert half.stat().st_size > 1000
    own_server.start_again()
    assert classifiers_offered(own_server, "NoisyClassifierLoader") == offered
    others = classifiers_offered(own_server, "ImageClassifierLoader")
    assert not [name for name in others if "mine" in name]
    assert draw() == fresh
    saving["saved"]["inputs"]["classifier"] = ["classifier", 0]
    del saving["stalling"]
    assert queue.run(saving).status == "success"
    (name,) = set(classifiers_offered(own_server, "NoisyClassifierLoader")) - set(offered)
    assert draw(classifier_name=name) == fresh
