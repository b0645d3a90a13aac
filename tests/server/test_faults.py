"""Whatever goes wrong in a server, the next prompt draws what a fresh server draws, bit for bit."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import write_classifier, write_unet

STEPS = 25
SMALL = {"channel_mult": (1,), "attention_levels": ()}
FAULTS = Path(__file__).with_name("fault_nodes")

numbers = itertools.count(1)


def drawing(*, label="2", classifier="one.safetensors", fault="ask to stop", at=0, nonce=None):
    """A guided run of 25 steps, drawn anew each time; in evaluation `at` a fault happens."""
    from_file = {"noise_schedule": "auto", "dtype": "auto"}
    inputs = {
        "model": {"model_name": "plain.safetensors", "clip_denoised": True, **from_file},
        "classifier": {"classifier_name": classifier, **from_file},
        "guided": {
            "model": ["model", 0],
            "classifier": ["classifier", 0],
            "label": label,
            "scale": 100.0,
        },
        "faulty": {
            "model": ["guided", 0],
            "fault": fault,
            "at": at,
            "nonce": next(numbers) if nonce is None else nonce,
        },
        "positive": {"model": ["model", 0], "label": ""},
        "latent": {"width": 16, "height": 16, "batch_size": 1},
        "sampled": {
            "model": ["faulty", 0],
            "positive": ["positive", 0],
            "negative": ["positive", 0],
            "latent_image": ["latent", 0],
            "seed": 5,
            "steps": STEPS,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
        "decoded": {"samples": ["sampled", 0], "vae": ["model", 1]},
        "digest": {"samples": ["sampled", 0], "image": ["decoded", 0]},
    }
    kinds = {
        "model": "ADMModelLoader",
        "classifier": "NoisyClassifierLoader",
        "guided": "ClassifierGuidance",
        "faulty": "TestsFaultAt",
        "positive": "ADMClassLabel",
        "latent": "EmptyLatentImage",
        "sampled": "KSampler",
        "decoded": "VAEDecode",
        "digest": "TestsDigest",
    }
    return {name: {"class_type": kinds[name], "inputs": inputs[name]} for name in inputs}


class Prompts:
    """Queues prompts in a server, and tells what became of them."""

    def __init__(self, server):
        self.server = server

    def queue(self, prompt):
        """The prompt's id."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 200 and not answer["node_errors"], answer
        return answer["prompt_id"]

    def refusal(self, prompt):
        """What the server says of a prompt that it does not take."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 400, answer
        return answer

    def end(self, prompt_id, seconds=120):
        """Its entry in the history."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _, history = self.server.request(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.02)
        raise AssertionError(f"no end within {seconds} s:\n{self.server.log[-3000:]}")

    def digest(self, entry):
        """The hash of what a finished prompt drew."""
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        return entry["outputs"]["digest"]["text"][0]

    def draw(self, **changes):
        """The hash of what a prompt draws."""
        return self.digest(self.end(self.queue(drawing(**changes))))


def events(entry):
    """What the server said about a prompt: by event, its data."""
    return dict(entry["status"]["messages"])


@pytest.fixture(scope="module")
def own_server(comfyui):
    """A server for this file, with the nodes that make things go wrong."""
    from comfy_server import ComfyServer

    with ComfyServer(comfyui, extra_packs=(FAULTS,)) as running:
        models = running.base / "models"
        write_unet(models / "diffusion_models" / "plain.safetensors", classes=None, **SMALL)
        write_unet(models / "diffusion_models" / "labels.safetensors", **SMALL)
        write_classifier(models / "classifiers" / "one.safetensors", pool="adaptive", **SMALL)
        yield running


@pytest.fixture(scope="module")
def prompts(own_server):
    """Its queue."""
    return Prompts(own_server)


@pytest.fixture(scope="module")
def fresh(prompts):
    """What the first prompt of a fresh server draws."""
    return prompts.draw()


@pytest.fixture(scope="module")
def unlike(prompts, fresh):
    """What another label draws: a prompt that leaves something behind would show it."""
    other = prompts.draw(label="0")
    assert other != fresh
    return other


# --- a run that does not come to its end ------------------------------------------------------


def cut_off(prompts, fault, at):
    """Draws another image until evaluation `at`, where it is interrupted."""
    happened = events(prompts.end(prompts.queue(drawing(label="0", fault=fault, at=at))))
    assert "execution_interrupted" in happened, happened
    assert happened["execution_interrupted"]["node_id"] == "sampled"


@pytest.mark.parametrize(
    "fault, steps",
    [
        ("ask to stop", range(1, STEPS + 1)),
        ("stop in the guider", (1, 13, STEPS)),
        ("stop in the network", (1, 13, STEPS)),
    ],
)
def test_interrupted_at_every_step(prompts, fresh, unlike, fault, steps):
    found = {}
    for step in steps:
        cut_off(prompts, fault, step)
        found[step] = prompts.draw()
    same = list(found.values()).count(fresh)
    print(f"{fault}: {same} of {len(found)} reruns are the fresh image")
    assert found == dict.fromkeys(steps, fresh)


def test_cancelled_over_http(own_server, prompts, fresh):
    """As the page does it: whichever step it hits, and the prompt that waits is drawn."""
    running = prompts.queue(drawing(label="0", fault="slow", at=2))
    waiting = prompts.queue(drawing())
    wait_for(own_server.base / "temp" / "slow")
    own_server.request("/interrupt", {})
    assert "execution_interrupted" in events(prompts.end(running))
    assert prompts.digest(prompts.end(waiting)) == fresh


def composed(nonce):
    """A guider that lives in the cache: a CFG by schedule, its term used again, two classifiers."""
    prompt = drawing()
    inputs = {
        "armed": {"model": ["model", 0], "nonce": nonce},
        "first": {"model": ["armed", 0], "classifier": ["classifier", 0], "label": "1"},
        "second": {"model": ["first", 0], "classifier": ["classifier", 0], "label": "2"},
        "traced": {"model": ["second", 0]},
        "schedule": SCHEDULE_INPUTS | {"end": 0.6},
        "guider": {"model": ["traced", 0], "schedule": ["schedule", 0], "cfg": 1.0},
        "sampled": {"guider": ["guider", 0], "sigmas": ["steps", 0], "sampler": ["method", 0]},
        "steps": {"model": ["model", 0], "respacing": "6", "denoise": 1.0},
        "method": {"method": "ddpm", "eta": 0.0},
        "noise": {"noise_seed": 3},
        "label": {"model": ["model", 0], "label": "2"},
        "none": {"model": ["model", 0], "label": ""},
    }
    inputs["first"] |= {"scale": 30.0, "every": 2}
    inputs["second"] |= {"scale": 20.0, "entropy_limit": 4.0}
    inputs["guider"] |= {"positive": ["label", 0], "negative": ["none", 0]}
    inputs["sampled"] |= {"noise": ["noise", 0], "latent_image": ["latent", 0]}
    kinds = {
        "armed": "TestsArmedFault",
        "first": "ClassifierGuidance",
        "second": "ClassifierGuidance",
        "traced": "GuidanceTrace",
        "schedule": "GuidanceSchedule",
        "guider": "ClassifierFreeGuidance",
        "sampled": "SamplerCustomAdvanced",
        "steps": "ADMScheduler",
        "method": "SamplerADM",
        "noise": "RandomNoise",
        "label": "ADMClassLabel",
        "none": "ADMClassLabel",
    }
    prompt = {name: prompt[name] for name in ("model", "classifier", "latent", "decoded", "digest")}
    prompt["model"]["inputs"]["model_name"] = "labels.safetensors"
    return prompt | {n: {"class_type": kinds[n], "inputs": inputs[n]} for n in inputs}


def test_an_interrupted_guider_is_used_again(own_server, prompts):
    """What a node made stays in the cache: a run that was cut off must not have changed it."""
    expected = prompts.digest(prompts.end(prompts.queue(composed(next(numbers)))))
    found = []
    for evaluation in range(1, 7):
        prompt = composed(next(numbers))
        (own_server.base / "temp").mkdir(exist_ok=True)
        (own_server.base / "temp" / "armed").write_text(str(evaluation))
        assert "execution_interrupted" in events(prompts.end(prompts.queue(prompt)))
        again = prompts.end(prompts.queue(prompt))
        assert "guider" in cached(again) and "sampled" not in cached(again)
        found.append(prompts.digest(again))
    assert found == [expected] * 6


@pytest.mark.parametrize("at", [1, 13])
def test_out_of_memory(prompts, fresh, at):
    happened = events(prompts.end(prompts.queue(drawing(fault="out of memory", at=at))))
    assert "memory" in happened["execution_error"]["exception_message"]
    assert prompts.draw() == fresh


# --- models that come and go ------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 13, STEPS])
def test_memory_pressure_during_a_run(prompts, fresh, at):
    assert prompts.draw(fault="memory pressure", at=at) == fresh
    assert prompts.draw() == fresh


@pytest.mark.parametrize("asked", [{"unload_models": True}, {"free_memory": True}])
def test_unloaded_between_prompts(own_server, prompts, fresh, asked):
    prompts.draw()
    loads = own_server.log.count("Requested to load HalfUNet")
    assert own_server.request("/free", asked)[0] == 200
    time.sleep(0.5)  # the queue's worker looks at it when it is idle
    assert prompts.draw() == fresh
    assert own_server.log.count("Requested to load HalfUNet") > loads


# --- the queue and the cache ------------------------------------------------------------------


def cached(entry):
    """The nodes that did not run, because what they gave before still holds."""
    return set(events(entry)["execution_cached"]["nodes"])


def test_prompts_that_wait_keep_to_their_own_inputs(prompts, fresh, unlike):
    """One is changed and queued while the one before it still draws."""
    queued = [prompts.queue(drawing(label=label)) for label in ("2", "0", "2", "0")]
    found = [prompts.digest(prompts.end(one)) for one in queued]
    assert found == [fresh, unlike, fresh, unlike]


def test_the_cache_runs_what_changed_and_what_hangs_on_it(prompts, fresh, unlike):
    nonce = next(numbers)
    first = prompts.end(prompts.queue(drawing(nonce=nonce)))
    again = prompts.end(prompts.queue(drawing(nonce=nonce)))
    other = prompts.end(prompts.queue(drawing(nonce=nonce, label="0")))
    assert cached(first) >= {"model", "classifier"}
    assert cached(again) >= {"guided", "sampled", "decoded"}
    assert cached(other) & {"model", "classifier", "guided", "sampled"} == {"model", "classifier"}
    assert [prompts.digest(each) for each in (first, again, other)] == [fresh, fresh, unlike]


# --- files that change ------------------------------------------------------------------------


@pytest.fixture
def changing(own_server):
    """A classifier file that a test may change: the same network as one.safetensors."""
    path = own_server.base / "models" / "classifiers" / "changing.safetensors"
    write_classifier(path, pool="adaptive", **SMALL)
    yield path
    path.unlink(missing_ok=True)


def moved_over(path, data):
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def written_over(path, data):
    path.write_bytes(data)


def moved_over_with_the_old_time(path, data):
    """As rsync and archives do it: size and time of change stay what they were."""
    time_before = path.stat().st_mtime_ns
    moved_over(path, data)
    os.utime(path, ns=(time_before, time_before))


@pytest.mark.parametrize("replace", [moved_over, written_over, moved_over_with_the_old_time])
def test_a_classifier_is_replaced_between_prompts(prompts, fresh, changing, tmp_path, replace):
    write_classifier(tmp_path / "other.safetensors", pool="adaptive", seed=2, **SMALL)
    old, new = changing.read_bytes(), (tmp_path / "other.safetensors").read_bytes()
    assert len(old) == len(new)
    assert prompts.draw(classifier=changing.name) == fresh
    replace(changing, new)
    replaced = prompts.draw(classifier=changing.name)
    assert replaced != fresh
    replace(changing, old)
    assert prompts.draw(classifier=changing.name) == fresh


def test_a_classifier_is_replaced_while_a_run_waits_for_it(
    own_server, prompts, fresh, changing, tmp_path
):
    """What was queued before is drawn with what is there when its turn comes."""
    write_classifier(tmp_path / "other.safetensors", pool="adaptive", seed=2, **SMALL)
    running = prompts.queue(drawing(classifier=changing.name, fault="slow", at=2))
    waiting = prompts.queue(drawing(classifier=changing.name))
    wait_for(own_server.base / "temp" / "slow")
    moved_over(changing, (tmp_path / "other.safetensors").read_bytes())
    assert prompts.digest(prompts.end(running)) == fresh
    assert prompts.digest(prompts.end(waiting)) != fresh


def test_a_classifier_is_deleted_between_prompts(prompts, fresh, changing):
    data = changing.read_bytes()
    assert prompts.draw(classifier=changing.name) == fresh
    changing.unlink()
    refused = prompts.refusal(drawing(classifier=changing.name))
    (reason,) = refused["node_errors"]["classifier"]["errors"]
    assert reason["type"] == "value_not_in_list" and changing.name in reason["details"]
    assert prompts.draw() == fresh
    changing.write_bytes(data)
    assert prompts.draw(classifier=changing.name) == fresh


def test_a_classifier_is_deleted_while_its_prompt_waits(own_server, prompts, fresh, changing):
    running = prompts.queue(drawing(fault="slow", at=2))
    waiting = prompts.queue(drawing(classifier=changing.name))
    wait_for(own_server.base / "temp" / "slow")
    changing.unlink()
    assert prompts.digest(prompts.end(running)) == fresh
    error = events(prompts.end(waiting))["execution_error"]
    assert error["node_id"] == "classifier"
    assert changing.name in error["exception_message"]
    assert prompts.draw() == fresh


# --- the server is killed; last, for it is this file's own -------------------------------------


def wait_for(path, seconds=60):
    """Until there is such a file; takes it away, so that the next one is waited for again."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path} within {seconds} s"
        time.sleep(0.02)
    path.unlink()


def names_offered(server, node, field):
    """What a loader offers."""
    _, about = server.request(f"/object_info/{node}")
    options = about[node]["input"]["required"][field]
    return options[1]["options"] if options[0] == "COMBO" else options[0]


def test_killed_while_it_saves(own_server, prompts, fresh):
    """What is half written is offered by no loader, and a fresh server draws the same image."""
    saving = drawing()
    saving["stalling"] = {
        "class_type": "TestsStallingDisk",
        "inputs": {"classifier": ["classifier", 0]},
    }
    saving["saved"] = {
        "class_type": "SaveNoisyClassifier",
        "inputs": {"classifier": ["stalling", 0], "filename_prefix": "classifiers/mine"},
    }
    folder = own_server.base / "output" / "classifiers"
    offered = names_offered(own_server, "NoisyClassifierLoader", "classifier_name")
    prompts.queue(saving)
    wait_for(own_server.base / "temp" / "half")
    own_server.kill()
    (half,) = folder.iterdir()
    assert half.stat().st_size > 1000
    own_server.start_again()
    for node in ("NoisyClassifierLoader", "ImageClassifierLoader"):
        now = names_offered(own_server, node, "classifier_name")
        assert not [name for name in now if "mine" in name]
    assert names_offered(own_server, "NoisyClassifierLoader", "classifier_name") == offered
    assert prompts.draw() == fresh
    del saving["stalling"]
    saving["saved"]["inputs"]["classifier"] = ["classifier", 0]
    assert events(prompts.end(prompts.queue(saving))).keys() >= {"execution_success"}
    (name,) = [
        name
        for name in names_offered(own_server, "NoisyClassifierLoader", "classifier_name")
        if name not in offered
    ]
    assert prompts.draw(classifier=name) == fresh
