"""The pack loads in a real server, and the server does what it is asked."""

from PIL import Image


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
    assert "IMPORT FAILED" not in server.log


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
