"""What the inputs of ComfyUI's node classes are, by their names: the data of an import.

Names tell more than classes: a sampler of somebody's own has `steps` and `cfg` too. What is not in
here is left as it is.
"""

from __future__ import annotations

# what a sampler, its guider, its noise and its schedule have, and the placeholder for it
CONTROLS = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "cfg",
    "sampler_name": "sampler",
    "scheduler": "scheduler",
}
# the links of a sampler that lead to such nodes, and on from node to node
CONTROLLED_BY = ("noise", "guider", "sampler", "sigmas")
# a sampler with its noise off makes no use of its seed
NOISE_OFF = ("disable", False)

POSITIVE = ("positive", "conditioning", "cond1")
NEGATIVE = ("negative",)
# inputs of a text encoder that hold a text
TEXTS = (
    *("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "bert", "mt5xl", "llama"),
    *("prompt", "user_prompt"),
)
GUIDANCE = "guidance"
ZEROED = "ConditioningZeroOut"
# what a node holds that is nothing but a value for others
VALUES = (*("value", "text", "string", "prompt", "int", "float", "number"), *CONTROLS)

# links that lead away from texts, and from where a latent comes from
_TOOLS = (
    *("model", "clip", "vae", "mask", "control_net", "style_model", "clip_vision"),
    *("clip_vision_output", "gligen_textbox_model", "model_patch", "upscale_model"),
)
NO_TEXT = (
    *_TOOLS,
    *("image", "images", "pixels", "samples", "latent", "latent_image", *CONTROLLED_BY),
)
NO_LATENT = (
    *(*_TOOLS, *POSITIVE, *NEGATIVE, *CONTROLLED_BY, *CONTROLS),
    *("width", "height", "batch_size", "length", "denoise"),
)

# nodes that are told the size of the picture again, where it is the same
SIZED = {
    "ModelSamplingFlux": ("width", "height"),
    "Flux2Scheduler": ("width", "height"),
    "CLIPTextEncodeSDXL": ("width", "height", "target_width", "target_height"),
}
# of what the sizes of a latent are multiples, where it is not 8
MULTIPLES = {"EmptySD3LatentImage": 16, "EmptyFlux2LatentImage": 16}

# inputs that name a model file: the placeholder, and ComfyUI's folder
MODELS = {
    "ckpt_name": ("checkpoint", "checkpoints"),
    "unet_name": ("unet", "diffusion_models"),
    "clip_name": ("clip", "text_encoders"),
    "clip_name1": ("clip_1", "text_encoders"),
    "clip_name2": ("clip_2", "text_encoders"),
    "clip_name3": ("clip_3", "text_encoders"),
    "clip_name4": ("clip_4", "text_encoders"),
    "vae_name": ("vae", "vae"),
    "lora_name": ("lora", "loras"),
    "control_net_name": ("controlnet", "controlnet"),
    "style_model_name": ("style_model", "style_models"),
    "gligen_name": ("gligen", "gligen"),
    "hypernetwork_name": ("hypernetwork", "hypernetworks"),
}
# where the same name means something else
MODELS_OF = {
    ("CLIPVisionLoader", "clip_name"): ("clip_vision", "clip_vision"),
    ("UpscaleModelLoader", "model_name"): ("upscale_model", "upscale_models"),
    ("ModelPatchLoader", "name"): ("model_patch", "model_patches"),
}
# what the files of text encoders that come in twos and threes are called by
ENCODERS = {"t5": "t5xxl", "clip_l": "clip_l", "clip_g": "clip_g"}
