"""The pack loads in a real server, and the server's results and refusals arrive."""

from __future__ import annotations

import pytest
from PIL import Image
from prompts import node

from comfy_run import WorkflowFailed, WorkflowRejected


def white(prefix="white"):
    """A workflow of core nodes alone: two images."""
    return {
        "1": node("EmptyImage", width=16, height=16, batch_size=2, color=0xFFFFFF),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def test_pack_is_imported(server):
    """ComfyUI starts even if a pack fails to import, so look at its log."""
    assert "classifier-guidance" in server.log
    assert "IMPORT FAILED" not in server.log, server.log


def test_a_workflow_in_api_form_runs(server, comfyui):
    run = server.run(white())
    assert len(run.images) == 2
    assert comfyui.path not in run.images[0].parents  # nothing goes into the user's ComfyUI
    with Image.open(run.images[0]) as image:
        assert (image.size, image.getpixel((0, 0))) == ((16, 16), (255, 255, 255))


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"1": node("NoSuchNode")}, "NoSuchNode"),
        ({"2": node("SaveImage", images=["9", 0], filename_prefix="white")}, "9"),
        # ComfyUI runs the valid branches and drops this one, which is no success
        (
            {
                "3": node("LoadImage", image="missing.png"),
                "4": node("PreviewImage", images=["3", 0]),
            },
            "missing.png",
        ),
    ],
)
def test_rejected_workflow(server, changes, part):
    with pytest.raises(WorkflowRejected, match=part):
        server.run(white() | changes)


def test_failed_workflow(server):
    """The error of a node arrives with the node."""
    with pytest.raises(WorkflowFailed, match="outside the output folder") as error:
        server.run(white("../../outside"))
    assert error.value.details["node_id"] == "2"
