"""The only code that uses ComfyUI's internals."""
