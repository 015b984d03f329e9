"""Make a workflow of an export of ComfyUI."""
