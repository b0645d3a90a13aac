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
    "ADMModelLoader": ("model_name", {**AUTO, "clip_denoised": True}),
}


@pytest.fixture
def outside(tmp_path):
    """A file and a folder that are in none of ComfyUI's folders."""
    write_classifier(tmp_path / "outside.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    return tmp_path


def refused(call, node, **inputs) -> str:
    with pytest.raises(ValueError) as caught:
        call(node, **inputs)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said


@pytest.mark.parametrize("node", LOADERS)
def test_a_name_that_leads_out_of_the_folder(call, files, pack_nodes, outside, node):
    name, others = LOADERS[node]
    file = outside / "outside.safetensors"
    climbing = os.path.relpath(file, files["classifiers"])
    names = [
        climbing,
        f"./{climbing}",
        str(file),
        str(outside / "folder"),
        "../classifiers/any_size",
    ]
    names += [
        "..",
        "",
        ".",
        "a\0b",
        "C:\\a.safetensors",
        "..\\a.safetensors",
        "//host/a.safetensors",
    ]
    names += [7, None, ["any_size.safetensors"]]
    for value in names:
        said = refused(call, node, **{name: value}, **others)
        assert "There is no model file" in said, said
        assert pack_nodes[node].fingerprint_inputs(**{name: value}) == "missing"


@pytest.mark.parametrize("node", LOADERS)
@pytest.mark.parametrize("name", ["any_size.pkl", "any_size.ckpt", "any_size"])
def test_a_file_of_another_ending(call, files, node, name):
    """diffusion_models is a folder of ComfyUI's, which lists more endings than are opened."""
    for folder in files.values():
        shutil.copy(files["classifiers"] / "any_size.safetensors", folder / name)
    parameter, others = LOADERS[node]
    try:
        assert "is not one of .safetensors, .pt, .pth" in refused(
            call, node, **{parameter: name}, **others
        )
    finally:
        for folder in files.values():
            (folder / name).unlink()


@pytest.fixture
def link(files):
    """`link(folder, name, target)` makes a symbolic link in a model folder, for one test."""
    made = []

    def make(folder, name, target):
        path = files[folder] / name
        try:
            path.symlink_to(target)
        except OSError:
            pytest.skip("this system lets nobody make links")
        made.append(path)
        return name

    yield make
    for path in made:
        path.unlink()


@pytest.mark.parametrize("node", LOADERS)
def test_a_link_out_of_the_folder(call, pack_nodes, link, outside, node):
    folder = "diffusion_models" if node == "ADMModelLoader" else "classifiers"
    file = link(folder, "linked.safetensors", outside / "outside.safetensors")
    parameter, others = LOADERS[node]
    said = refused(call, node, **{parameter: file}, **others)
    assert "linked.safetensors is a link to" in said and "move the file itself" in said
    assert pack_nodes[node].fingerprint_inputs(**{parameter: file}) == "missing"


def test_a_linked_folder(call, link, outside):
    link("classifiers", "linked", outside)
    name = "linked/outside.safetensors"
    said = refused(
        call, "NoisyClassifierLoader", classifier_name=name, **LOADERS["NoisyClassifierLoader"][1]
    )
    assert "is a link to" in said


def test_a_link_within_the_folders(call, files, link):
    name = link("classifiers", "again.safetensors", files["classifiers"] / "any_size.safetensors")
    assert call(
        "NoisyClassifierLoader", classifier_name=name, **LOADERS["NoisyClassifierLoader"][1]
    )


@pytest.mark.parametrize("what", ["folder", "weights"])
def test_a_hugging_face_folder_that_links_out(call, files, link, outside, what):
    if what == "folder":
        link("classifiers", "hub", outside / "folder")
    else:
        folder = files["classifiers"] / "hub"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").symlink_to(outside / "outside.safetensors")
    try:
        assert "is a link to" in refused(call, "ImageClassifierLoader", classifier_name="hub")
    finally:
        if what == "weights":
            shutil.rmtree(files["classifiers"] / "hub")


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
    for name in ("..", "../input", str(outside), "untrusted/../..", "", ".", "a\0b", 7, None):
        assert "which is no folder in" in refused(call, "LabelledImageFolder", folder=name, size=8)
        assert pack_nodes["LabelledImageFolder"].fingerprint_inputs(folder=name) == "missing"


@pytest.mark.parametrize("target", ["outside.png", "class"])
def test_a_class_folder_that_links_out(call, class_folder, outside, target):
    Image.new("RGB", (8, 8)).save(outside / "outside.png")
    (outside / "class").mkdir()
    os.symlink(outside / target, os.path.join(class_folder, "a", "2.png"))
    said = refused(call, "LabelledImageFolder", folder="untrusted", size=8)
    assert "2.png is a link to" in said and "put the pictures themselves there" in said


def test_more_pictures_than_there_is_room_for(call, pack_module, class_folder, monkeypatch):
    """Said before the first of them is read."""
    data = pack_module("guidance.training.data")
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 1000)
    monkeypatch.setattr(data, "_read", None)
    said = refused(call, "LabelledImageFolder", folder="untrusted", size=8)
    assert "2 images of 8x8 take" in said and "choose a smaller size" in said
