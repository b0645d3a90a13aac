"""After anything that goes wrong, the next prompt draws what a fresh server draws, bit for bit."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

import pytest
from prompts import SMALL, Queue, custom_sampler, guidance, guided_run, node, write_models
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import write_classifier

STEPS = 25
FAULTS = Path(__file__).with_name("fault_nodes")
STOPS = ("ask to stop", "stop in the guider", "stop in the network")

numbers = itertools.count(1)


def drawing(*, nonce=None, **changes):
    """A guided run of 25 steps, which is never cached."""
    nonce = next(numbers) if nonce is None else nonce
    prompt = guided_run(scale=100.0, seed=5, steps=STEPS, **changes)
    prompt["sampled"]["inputs"]["model"] = ["faulty", 0]
    del prompt["shown"]
    return prompt | {
        "faulty": node("TestsFault", model=["guided", 0], nonce=nonce),
        "digest": node("TestsDigest", samples=["sampled", 0], image=["decoded", 0]),
    }


class FaultyServer(Queue):
    """A server with the nodes that make things go wrong, and its queue."""

    def arm(self, fault, at):
        """A fault happens in an evaluation of the next run; 1 is the first one."""
        self.signal("armed").write_text(f"{fault} {at}")

    def signal(self, name):
        """A file by which a test and the nodes tell each other something."""
        folder = self.server.base / "temp"
        folder.mkdir(exist_ok=True)
        return folder / name

    def wait_for(self, name):
        """Waits for such a file and removes it."""
        deadline = time.monotonic() + 60
        while not self.signal(name).exists():
            assert time.monotonic() < deadline, f"no signal {name!r}"
            time.sleep(0.02)
        self.signal(name).unlink()

    def add_waiting(self, prompt):
        """Queues a prompt and waits until it is in a step that lasts until "go on"."""
        self.arm("wait", 2)
        running = self.add(prompt)
        self.wait_for("waiting")
        return running

    def draw(self, **changes):
        """The hash of the image that is drawn."""
        return self.run(drawing(**changes)).digest

    def interrupt(self, prompt, fault, at):
        """Runs a prompt until a fault interrupts it."""
        self.arm(fault, at)
        assert self.run(prompt).interrupted_in == "sampled"


@pytest.fixture(scope="module")
def faulty(comfyui):
    """A server for this file alone."""
    from comfy_server import ComfyServer

    with ComfyServer(comfyui, extra_packs=(FAULTS,)) as running:
        write_models(running.base)
        yield FaultyServer(running)


@pytest.fixture(scope="module")
def fresh(faulty):
    """The image of a fresh server's first prompt."""
    return faulty.draw()


@pytest.fixture(scope="module")
def different(faulty, fresh):
    """The image of another label: a prompt that changes later ones would show it."""
    other = faulty.draw(label="0")
    assert other != fresh
    return other


# --- a run that does not come to its end ------------------------------------------------------


@pytest.mark.parametrize("fault", STOPS)
def test_interrupted_in_the_middle(faulty, fresh, different, fault):
    faulty.interrupt(drawing(label="0"), fault, 13)
    assert faulty.draw() == fresh


@pytest.mark.long
@pytest.mark.parametrize("fault", STOPS)
def test_interrupted_at_every_step(faulty, fresh, different, fault):
    for step in range(1, STEPS + 1):
        faulty.interrupt(drawing(label="0"), fault, step)
        assert faulty.draw() == fresh, step


def test_cancelled_over_http(faulty, fresh):
    """As the page does it; the prompt that waits is drawn."""
    running = faulty.add_waiting(drawing(label="0"))
    waiting = faulty.add(drawing())
    faulty.server.request("/interrupt", {})
    assert faulty.end(running).interrupted_in == "sampled"
    assert faulty.end(waiting).digest == fresh


def composed():
    """A guider that stays in the cache: a CFG by schedule and two classifier guidances."""
    prompt = drawing(model="labels.safetensors", positive="2")
    del prompt["guided"]
    links = {name: [name, 0] for name in ("positive", "negative", "schedule")}
    return prompt | {
        "faulty": node("TestsFault", model=["model", 0], nonce=next(numbers)),
        "first": guidance("1", 30.0, "faulty", gradient_interval=2),
        "second": guidance("2", 20.0, "first", entropy_limit=4.0),
        "traced": node("GuidanceTrace", model=["second", 0]),
        "schedule": node("GuidanceSchedule", **SCHEDULE_INPUTS | {"end": 0.6}),
        "guider": node("ClassifierFreeGuidance", model=["traced", 0], cfg=1.0, **links),
        **custom_sampler("guider", "6", 3),
    }


def test_an_interrupted_guider_is_used_again(faulty):
    """A run that was interrupted has not changed the nodes' results in the cache."""
    expected = faulty.run(composed()).digest
    for evaluation in range(1, 7):
        prompt = composed()
        faulty.interrupt(prompt, "stop in the network", evaluation)
        second = faulty.run(prompt)
        assert "guider" in second.cached and "sampled" not in second.cached
        assert second.digest == expected, evaluation


def test_out_of_memory(faulty, fresh):
    faulty.arm("out of memory", 13)
    raised_by, said = faulty.run(drawing()).error
    assert raised_by == "sampled" and "memory" in said
    assert faulty.draw() == fresh


# --- models that leave the device, and the cache ----------------------------------------------


@pytest.mark.parametrize("at", [1, 13, STEPS])
def test_memory_pressure_during_a_run(faulty, fresh, at):
    faulty.arm("memory pressure", at)
    assert [faulty.draw(), faulty.draw()] == [fresh, fresh]
    assert not faulty.signal("armed").exists()  # it has happened


@pytest.mark.parametrize("request_body", [{"unload_models": True}, {"free_memory": True}])
def test_unloaded_between_prompts(faulty, fresh, request_body):
    def loads():
        """How often the classifier's network was put on the device, by the log."""
        return len(re.findall(r"Requested to load \w+UNet\b", faulty.server.log))

    faulty.draw()
    before = loads()
    assert faulty.server.request("/free", request_body)[0] == 200
    # the server unloads them before the first or after it
    assert [faulty.draw(), faulty.draw()] == [fresh, fresh]
    assert loads() > before


def test_waiting_prompts_keep_their_own_inputs(faulty, fresh, different):
    queued = [faulty.add(drawing(label=label)) for label in ("2", "0", "2", "0")]
    assert [faulty.end(one).digest for one in queued] == [fresh, different, fresh, different]


def test_the_cache_runs_what_changed_and_what_depends_on_it(faulty, fresh, different):
    nonce = next(numbers)
    first, same = (faulty.run(drawing(nonce=nonce)) for _ in range(2))
    other = faulty.run(drawing(nonce=nonce, label="0"))
    assert first.cached >= {"model", "classifier"}
    assert same.cached >= {"guided", "sampled", "decoded"}
    assert other.cached & {"model", "classifier", "guided", "sampled"} == {"model", "classifier"}
    assert [one.digest for one in (first, other)] == [fresh, different]
    if "digest" in same.outputs:  # ComfyUI 0.19 shows nothing where nothing was left to do
        assert same.digest == fresh


# --- files that change ------------------------------------------------------------------------


@pytest.fixture
def changing(faulty):
    """A classifier file that a test may change: the same network as one.safetensors."""
    path = faulty.server.base / "models" / "classifiers" / "changing.safetensors"
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


def move_over_with_the_old_time(path, data):
    """Like rsync and archives: size and time of change stay the same."""
    before = path.stat().st_mtime_ns
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize("replace", [Path.write_bytes, move_over_with_the_old_time])
def test_a_file_is_replaced_between_prompts(faulty, fresh, changing, other_file, replace):
    old = changing.read_bytes()
    assert faulty.draw(classifier_name=changing.name) == fresh
    replace(changing, other_file)
    assert faulty.draw(classifier_name=changing.name) != fresh
    replace(changing, old)
    assert faulty.draw(classifier_name=changing.name) == fresh


def test_a_file_is_replaced_while_a_prompt_waits(faulty, fresh, changing, other_file):
    """Each prompt reads the file when its turn comes."""
    running = faulty.add_waiting(drawing(classifier_name=changing.name))
    waiting = faulty.add(drawing(classifier_name=changing.name))
    move_over_with_the_old_time(changing, other_file)
    faulty.signal("go on").touch()
    assert faulty.end(running).digest == fresh
    assert faulty.end(waiting).digest != fresh


@pytest.mark.parametrize("name", ["classifier", "model"])
def test_a_file_is_deleted_while_its_prompt_waits(faulty, fresh, name):
    """The prompt was accepted; its loader names the file and the folder."""
    option, good = {
        "classifier": ("classifier_name", "classifiers/one.safetensors"),
        "model": ("model", "diffusion_models/plain.safetensors"),
    }[name]
    good = faulty.server.base / "models" / good
    file = good.with_name("deleted.safetensors")
    file.write_bytes(good.read_bytes())
    running = faulty.add_waiting(drawing())
    waiting = faulty.add(drawing(**{option: file.name}))
    file.unlink()
    faulty.signal("go on").touch()
    assert faulty.end(running).digest == fresh
    raised_by, said = faulty.end(waiting).error
    assert raised_by == name and file.name in said and str(file.parent) in said
    assert faulty.draw() == fresh


# --- the server is killed: last in this file, which has a server of its own --------------------


def classifiers_offered(server, loader):
    """The files that a loader offers."""
    _, about = server.request(f"/object_info/{loader}")
    return about[loader]["input"]["required"]["classifier_name"][1]["options"]


def test_killed_while_it_saves(faulty, fresh):
    """No loader offers the half-written file, and the next server saves and draws."""
    server, saving = faulty.server, drawing()
    saving["stalling"] = node("TestsStallingDisk", classifier=["classifier", 0])
    prefix = {"filename_prefix": "classifiers/mine"}
    saving["saved"] = node("SaveNoisyClassifier", classifier=["stalling", 0], **prefix)
    offered = classifiers_offered(server, "NoisyClassifierLoader")
    faulty.add(saving)
    faulty.wait_for("half")
    server.kill()
    (half,) = (server.base / "output" / "classifiers").iterdir()
    assert half.stat().st_size > 1000
    server.start_again()
    assert classifiers_offered(server, "NoisyClassifierLoader") == offered
    others = classifiers_offered(server, "ImageClassifierLoader")
    assert not [name for name in others if "mine" in name]
    assert faulty.draw() == fresh
    del saving["stalling"]
    saving["saved"] = node("SaveNoisyClassifier", classifier=["classifier", 0], **prefix)
    assert faulty.run(saving).status == "success"
    (name,) = set(classifiers_offered(server, "NoisyClassifierLoader")) - set(offered)
    assert faulty.draw(classifier_name=name) == fresh
