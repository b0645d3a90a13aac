"""Classifier Guidance: the ComfyUI entry point, and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once, when it starts."""
    from .nodes import ClassifierGuidanceExtension

    return ClassifierGuidanceExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
