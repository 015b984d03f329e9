"""ComfyUI workflows as data: loaded, checked, filled."""
