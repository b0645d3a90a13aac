"""The pack loads in a real server, and the server does what it is asked."""

import pytest
from PIL import Image

from comfy_run import WorkflowFailed, WorkflowRejected


def white(size=16, count=2):
    """A workflow of core nodes alone."""
    picture = {"width": size, "height": size, "batch_size": count, "color": 0xFFFFFF}
    return {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "white"},
        },
    }


def test_pack_is_imported(server):
    """ComfyUI starts although a pack fails to import, so its log has the answer."""
    assert "classifier-guidance" in server.log
    assert "IMPORT FAILED" not in server.log, server.log


def test_core_workflow_runs(server):
    """A run returns the files that it saved."""
    run = server.run(white())
    assert len(run.images) == 2
    with Image.open(run.images[0]) as image:
        assert image.size == (16, 16)
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_server_uses_a_folder_of_its_own(server, comfyui):
    """Nothing is written into the user's ComfyUI."""
    run = server.run(white(count=1))
    assert comfyui.path not in run.images[0].parents


def test_saved_workflow_runs(server):
    """A workflow as the page saves it runs like one in API form."""
    nodes = [
        {
            "id": 1,
            "type": "EmptyImage",
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [24, 8, 1, 0],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [],
            "widgets_values": ["black"],
        },
    ]
    run = server.run({"nodes": nodes, "links": [[1, 1, 0, 2, 0, "IMAGE"]], "version": 0.4})
    with Image.open(run.images[0]) as image:
        assert image.size == (24, 8)


def test_rejected_workflow(server):
    """What does not pass validation is named, with the node."""
    with pytest.raises(WorkflowRejected, match="NoSuchNode"):
        server.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})
    workflow = white()
    workflow["2"]["inputs"]["images"] = ["9", 0]
    with pytest.raises(WorkflowRejected):
        server.run(workflow)


def test_failed_workflow(server):
    """What a node raises while it runs arrives with the node."""
    workflow = white()
    workflow["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(WorkflowFailed, match="outside the output folder") as error:
        server.run(workflow)
    assert error.value.details["node_id"] == "2"


def test_partly_valid_workflow_is_rejected(server):
    """ComfyUI runs the branches that are valid and drops the others: that is no success."""
    workflow = white()
    workflow["3"] = {"class_type": "LoadImage", "inputs": {"image": "missing.png"}}
    workflow["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    with pytest.raises(WorkflowRejected, match="missing.png"):
        server.run(workflow)
