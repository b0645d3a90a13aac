"""Names as a script or a linked input sends them: no file outside ComfyUI's folders is opened."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image
from tiny_models import write_classifier

AUTO = {"noise_schedule": "auto", "dtype": "auto"}
LOADERS = {
    "NoisyClassifierLoader": ("classifier_name", AUTO),
    "ImageClassifierLoader": ("classifier_name", {}),
    "ZeroShotClassifier": ("classifier_name", {"classes": "cat", "template": "{}"}),
    "ADMModelLoader": ("model_name", {**AUTO, "clip_denoised": True}),
}


@pytest.fixture
def outside(tmp_path):
    """A file and folders that are in none of ComfyUI's folders."""
    write_classifier(tmp_path / "outside.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "class").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    return tmp_path


def refusal(call, node, **inputs):
    """The one sentence of the error."""
    with pytest.raises(ValueError) as caught:
        call(node, **inputs)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said


@pytest.fixture
def load(call):
    """Runs a loader with that name of a file."""

    def run(node, name):
        parameter, others = LOADERS[node]
        return call(node, **{parameter: name}, **others)

    return run


@pytest.fixture
def refused(call, pack_nodes):
    """What a loader says of a name that it refuses; to ComfyUI the file is missing."""

    def run(node, name):
        parameter, others = LOADERS[node]
        assert pack_nodes[node].fingerprint_inputs(**{parameter: name}) == "missing"
        return refusal(call, node, **{parameter: name}, **others)

    return run


@pytest.mark.parametrize("node", LOADERS)
def test_a_name_that_leads_out_of_the_folder(files, refused, outside, node):
    file = outside / "outside.safetensors"
    climbing = os.path.relpath(file, files["classifiers"])
    names = [climbing, f"./{climbing}", str(file), str(outside / "folder"), "..", "", ".", "a\0b"]
    names += ["../classifiers/any_size", "C:\\a.safetensors", "..\\a.safetensors"]
    names += ["//host/a.safetensors", 7, None, ["any_size.safetensors"]]
    for name in names:
        assert "There is no model file" in refused(node, name)


@pytest.mark.parametrize(
    "node", sorted(LOADERS.keys() - {"ZeroShotClassifier"})
)  # it opens no files
@pytest.mark.parametrize("name", ["any_size.pkl", "any_size.ckpt", "any_size"])
def test_a_file_of_another_ending(files, load, node, name):
    """diffusion_models is a folder of ComfyUI's, which lists more endings than are opened."""
    for folder in files.values():
        shutil.copy(files["classifiers"] / "any_size.safetensors", folder / name)
    try:
        with pytest.raises(ValueError, match="not one of .safetensors, .pt, .pth"):
            load(node, name)
    finally:
        for folder in files.values():
            (folder / name).unlink()


@pytest.fixture
def link():
    """`link(path, target)` makes a symbolic link, for one test."""
    made = []

    def make(path, target):
        try:
            os.symlink(target, path)
        except OSError:
            pytest.skip("this system lets nobody make links")
        made.append(path)

    yield make
    for path in made:
        os.unlink(path)


@pytest.mark.parametrize("node", LOADERS)
def test_a_link_out_of_the_folder(files, refused, link, outside, node):
    folder = files["diffusion_models" if node == "ADMModelLoader" else "classifiers"]
    link(folder / "linked.safetensors", outside / "outside.safetensors")
    said = refused(node, "linked.safetensors")
    assert "linked.safetensors is a link to" in said and "move the file itself" in said


@pytest.mark.parametrize(
    ("node", "path", "target", "name"),
    [
        ("NoisyClassifierLoader", "linked", "", "linked/outside.safetensors"),
        ("ImageClassifierLoader", "hub", "folder", "hub"),
        ("ImageClassifierLoader", "own/model.safetensors", "outside.safetensors", "own"),
    ],
    ids=["folder", "folder of a classifier", "weights in a folder"],
)
def test_links_of_and_in_folders(files, refused, link, outside, node, path, target, name):
    own = files["classifiers"] / "own"
    own.mkdir(exist_ok=True)
    (own / "config.json").write_text("{}")
    link(files["classifiers"] / path, outside / target)
    assert "is a link to" in refused(node, name)


def test_a_link_within_the_folders(files, load, link):
    link(files["classifiers"] / "second.safetensors", files["classifiers"] / "any_size.safetensors")
    assert load("NoisyClassifierLoader", "second.safetensors")


@pytest.fixture
def class_folder(comfy):
    """A folder with one picture for each of two classes, in ComfyUI's input folder."""
    import folder_paths

    root = os.path.join(folder_paths.get_input_directory(), "untrusted")
    for name in ("a", "b"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
        Image.new("RGB", (8, 8)).save(os.path.join(root, name, "1.png"))
    yield root
    shutil.rmtree(root)


def test_a_class_folder_elsewhere(call, pack_nodes, class_folder, outside):
    assert len(call("LabelledImageFolder", folder="untrusted", size=8)[0]) == 2
    names = ("..", "../..", "../input", str(outside), "untrusted/../..", "", ".", "a\0b", 7, None)
    for name in names:
        said = refusal(call, "LabelledImageFolder", folder=name, size=8)
        assert "which is no folder in" in said
        assert pack_nodes["LabelledImageFolder"].fingerprint_inputs(folder=name) == "missing"


@pytest.mark.parametrize("target", ["outside.png", "class"])
def test_a_class_folder_that_links_out(call, class_folder, outside, link, target):
    link(os.path.join(class_folder, "a", "2.png"), outside / target)
    said = refusal(call, "LabelledImageFolder", folder="untrusted", size=8)
    assert "2.png is a link to" in said and "put the pictures themselves there" in said


def test_more_pictures_than_there_is_room_for(call, pack_module, class_folder, monkeypatch):
    """Refused before the first of them is read."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 1000)
    monkeypatch.setattr(pack_module("guidance.training.data"), "_read", None)
    said = refusal(call, "LabelledImageFolder", folder="untrusted", size=8)
    assert "2 images of 8x8" in said and "smaller size" in said
