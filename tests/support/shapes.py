"""Graphs of the shapes that people export, by the names of their shapes: written for the tests.

Each is built by `at`, which gives the link to a node's first outputs; ids count up from 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from servers.comfyui import DATA

Graph = dict[str, dict[str, Any]]
PHOTO = "a photo of a lighthouse"
BAD = "blurry, watermark"


class Drawing:
    """A graph that grows; calling it puts a node in and gives its id."""

    def __init__(self) -> None:
        self.graph: Graph = {}

    def __call__(self, kind: str, **inputs: Any) -> str:
        """Put a node in: an input (id, slot), a tuple, is a link."""
        linked = {n: [*v] if isinstance(v, tuple) else v for n, v in inputs.items()}
        key = str(len(self.graph) + 1)
        title = {"title": kind}
        self.graph[key] = {"inputs": linked, "class_type": kind, "_meta": title}
        return key

    def saved(self, samples: str, vae: tuple[str, int]) -> str:
        """Decode and save, and give the id of the node that saves."""
        decoded = self("VAEDecode", samples=(samples, 0), vae=vae)
        return self("SaveImage", filename_prefix="ComfyUI", images=(decoded, 0))

    def texts(self, clip: tuple[str, int]) -> dict[str, tuple[str, int]]:
        """Encode a prompt and a negative one."""
        good = self("CLIPTextEncode", text=PHOTO, clip=clip)
        bad = self("CLIPTextEncode", text=BAD, clip=clip)
        return {"positive": (good, 0), "negative": (bad, 0)}

    def latent(self, kind: str = "EmptyLatentImage", side: int = 512) -> tuple[str, int]:
        """Begin with an empty latent."""
        return self(kind, width=side, height=side * 3 // 2, batch_size=1), 0


SAMPLED = {
    "seed": 156680208700286,
    "steps": 20,
    "cfg": 8,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1,
}


def sd15() -> Graph:
    """A checkpoint with all in it, one sampler."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    said = {**at.texts((loader, 1)), **SAMPLED}
    sampler = at("KSampler", model=(loader, 0), latent_image=at.latent(), **said)
    at.saved(sampler, (loader, 2))
    return at.graph


def loras() -> Graph:
    """Two LoRAs behind each other, for model and text encoder, and a VAE of its own."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="base/dreamshaper_8.safetensors")
    vae = at("VAELoader", vae_name="vae-ft-mse-840000-ema-pruned.safetensors")
    first = at(
        "LoraLoader",
        lora_name="ink.safetensors",
        strength_model=0.8,
        strength_clip=1,
        model=(loader, 0),
        clip=(loader, 1),
    )
    second = at(
        "LoraLoader",
        lora_name="detail.safetensors",
        strength_model=0.5,
        strength_clip=1,
        model=(first, 0),
        clip=(first, 1),
    )
    skip = at("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=(second, 1))
    said = {**at.texts((skip, 0)), **SAMPLED}
    sampler = at("KSampler", model=(second, 0), latent_image=at.latent(), **said)
    at.saved(sampler, (vae, 0))
    return at.graph


def _flux(at: Drawing) -> tuple[str, str, str]:
    unet = at("UNETLoader", unet_name="flux1-schnell.safetensors", weight_dtype="default")
    clip = at(
        "DualCLIPLoader",
        clip_name1="t5xxl_fp8_e4m3fn.safetensors",
        clip_name2="clip_l.safetensors",
        type="flux",
        device="default",
    )
    return unet, clip, at("VAELoader", vae_name="ae.safetensors")


def dual_prompts(other: str = PHOTO) -> Graph:
    """FLUX with a text for each of its encoders, and the guidance in the same node."""
    at = Drawing()
    unet, clip, vae = _flux(at)
    good = at("CLIPTextEncodeFlux", clip_l=other, t5xxl=PHOTO, guidance=3.5, clip=(clip, 0))
    none = at("ConditioningZeroOut", conditioning=(good, 0))
    said = {**SAMPLED, "cfg": 1.0, "scheduler": "simple"}
    latent = at.latent("EmptySD3LatentImage", 1024)
    links = {"positive": (good, 0), "negative": (none, 0), "latent_image": latent}
    at.saved(at("KSampler", model=(unet, 0), **links, **said), (vae, 0))
    return at.graph


def guided() -> Graph:
    """FLUX with a custom sampler: RandomNoise, BasicGuider, FluxGuidance, BasicScheduler."""
    at = Drawing()
    unet, clip, vae = _flux(at)
    width, height = at("PrimitiveInt", value=1024), at("PrimitiveInt", value=768)
    sides = {"width": (width, 0), "height": (height, 0)}
    model = at("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, model=(unet, 0), **sides)
    text = at("CLIPTextEncode", text=PHOTO, clip=(clip, 0))
    guidance = at("FluxGuidance", guidance=3.5, conditioning=(text, 0))
    sampler = at(
        "SamplerCustomAdvanced",
        noise=(at("RandomNoise", noise_seed=219670278747233), 0),
        guider=(at("BasicGuider", model=(model, 0), conditioning=(guidance, 0)), 0),
        sampler=(at("KSamplerSelect", sampler_name="euler"), 0),
        sigmas=(
            at("BasicScheduler", scheduler="simple", steps=20, denoise=1, model=(model, 0)),
            0,
        ),
        latent_image=(at("EmptySD3LatentImage", batch_size=1, **sides), 0),
    )
    at.saved(sampler, (vae, 0))
    return at.graph


def klein() -> Graph:
    """FLUX.2 with CFGGuider and Flux2Scheduler, a negative text, and the prompt in a primitive."""
    at = Drawing()
    unet = at("UNETLoader", unet_name="flux-2-klein-base-4b.safetensors", weight_dtype="default")
    clip = at("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="flux2", device="default")
    vae = at("VAELoader", vae_name="flux2-vae.safetensors")
    words = at("PrimitiveStringMultiline", value=PHOTO)
    good = at("CLIPTextEncode", text=(words, 0), clip=(clip, 0))
    bad = at("CLIPTextEncode", text="", clip=(clip, 0))
    links = {"positive": (good, 0), "negative": (bad, 0), "model": (unet, 0)}
    sampler = at(
        "SamplerCustomAdvanced",
        noise=(at("RandomNoise", noise_seed=432262096973490), 0),
        guider=(at("CFGGuider", cfg=5, **links), 0),
        sampler=(at("KSamplerSelect", sampler_name="euler"), 0),
        sigmas=(at("Flux2Scheduler", steps=20, width=1024, height=1024), 0),
        latent_image=(
            at("EmptyFlux2LatentImage", width=1024, height=1024, batch_size=1),
            0,
        ),
    )
    at.saved(sampler, (vae, 0))
    return at.graph


def sdxl_refiner() -> Graph:
    """SDXL: a base and a refiner behind it, each with its own texts."""
    at = Drawing()
    base = at("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    refiner = at("CheckpointLoaderSimple", ckpt_name="sd_xl_refiner_1.0.safetensors")
    said = {name: SAMPLED[name] for name in ("cfg", "sampler_name", "scheduler")}
    first = at(
        "KSamplerAdvanced",
        add_noise="enable",
        noise_seed=721897303308196,
        steps=25,
        start_at_step=0,
        end_at_step=20,
        return_with_leftover_noise="enable",
        model=(base, 0),
        latent_image=at.latent(side=1024),
        **at.texts((base, 1)),
        **said,
    )
    second = at(
        "KSamplerAdvanced",
        add_noise="disable",
        noise_seed=0,
        steps=25,
        start_at_step=20,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        model=(refiner, 0),
        latent_image=(first, 0),
        **at.texts((refiner, 1)),
        **said,
    )
    at.saved(second, (refiner, 2))
    return at.graph


def sdxl_two_texts() -> Graph:
    """SDXL with CLIPTextEncodeSDXL: other words for each encoder, and sizes in it."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    sides = {"width": 4096, "height": 4096, "crop_w": 0, "crop_h": 0}
    sides |= {"target_width": 1024, "target_height": 1536}
    good = at("CLIPTextEncodeSDXL", text_g=PHOTO, text_l="35mm", clip=(loader, 1), **sides)
    bad = at("CLIPTextEncodeSDXL", text_g=BAD, text_l=BAD, clip=(loader, 1), **sides)
    links = {"positive": (good, 0), "negative": (bad, 0), "latent_image": at.latent(side=1024)}
    at.saved(at("KSampler", model=(loader, 0), **links, **SAMPLED), (loader, 2))
    return at.graph


def sd3_triple() -> Graph:
    """SD3 with three text encoders of one text, and its negative made nothing late."""
    at = Drawing()
    loader = at("UNETLoader", unet_name="sd3.5_medium.safetensors", weight_dtype="default")
    files = ("clip_g.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors")
    clip = at("TripleCLIPLoader", **{f"clip_name{n}": file for n, file in enumerate(files, 1)})
    vae = at("VAELoader", vae_name="ae.safetensors")
    three = dict.fromkeys(("clip_l", "clip_g", "t5xxl"), PHOTO)
    good = at("CLIPTextEncodeSD3", empty_padding="none", clip=(clip, 0), **three)
    bad = at("CLIPTextEncode", text=BAD, clip=(clip, 0))
    zero = at("ConditioningZeroOut", conditioning=(bad, 0))
    late = at("ConditioningSetTimestepRange", start=0.1, end=1, conditioning=(zero, 0))
    early = at("ConditioningSetTimestepRange", start=0, end=0.1, conditioning=(bad, 0))
    both = at("ConditioningCombine", conditioning_1=(late, 0), conditioning_2=(early, 0))
    model = at("ModelSamplingSD3", shift=3, model=(loader, 0))
    latent = at.latent("EmptySD3LatentImage", 1024)
    links = {"positive": (good, 0), "negative": (both, 0), "latent_image": latent}
    at.saved(at("KSampler", model=(model, 0), **links, **SAMPLED), (vae, 0))
    return at.graph


def two_outputs() -> Graph:
    """The picture as it is, and upscaled."""
    graph = sd15()
    at = Drawing()
    at.graph = graph
    decoded = next(key for key, node in graph.items() if node["class_type"] == "VAEDecode")
    model = at("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")
    large = at("ImageUpscaleWithModel", upscale_model=(model, 0), image=(decoded, 0))
    at("SaveImage", filename_prefix="large", images=(large, 0))
    return at.graph


def from_picture() -> Graph:
    """Image to image: the latent is a picture that was loaded."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    picture = at("LoadImage", image="example.png", upload="image")
    latent = at("VAEEncode", pixels=(picture, 0), vae=(loader, 2))
    said = {**at.texts((loader, 1)), **SAMPLED, "denoise": 0.87}
    sampler = at("KSampler", model=(loader, 0), latent_image=(latent, 0), **said)
    at.saved(sampler, (loader, 2))
    return at.graph


def hires_fix() -> Graph:
    """Two passes: a small picture, its latent made larger, sampled again with the same texts."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    links = {"model": (loader, 0), **at.texts((loader, 1))}
    first = at("KSampler", latent_image=at.latent(), **links, **SAMPLED)
    large = at(
        "LatentUpscale",
        upscale_method="nearest-exact",
        width=1024,
        height=1536,
        crop="disabled",
        samples=(first, 0),
    )
    again = {**SAMPLED, "seed": 469771404043268, "steps": 14, "denoise": 0.5}
    second = at("KSampler", latent_image=(large, 0), **links, **again)
    at.saved(second, (loader, 2))
    return at.graph


def controlled() -> Graph:
    """A ControlNet between texts and sampler, which has both sides as outputs."""
    at = Drawing()
    loader = at("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    net = at("ControlNetLoader", control_net_name="control_v11p_sd15_scribble.safetensors")
    drawn = at("LoadImage", image="scribble.png")
    how = {"strength": 1, "start_percent": 0, "end_percent": 1}
    applied = at(
        "ControlNetApplyAdvanced",
        control_net=(net, 0),
        image=(drawn, 0),
        **at.texts((loader, 1)),
        **how,
    )
    links = {"positive": (applied, 0), "negative": (applied, 1), "model": (loader, 0)}
    at.saved(at("KSampler", latent_image=at.latent(), **links, **SAMPLED), (loader, 2))
    return at.graph


SHAPES: dict[str, Callable[[], Graph]] = {
    one.__name__: one
    for one in (
        *(sd15, loras, dual_prompts, guided, klein, sdxl_refiner, sdxl_two_texts),
        *(sd3_triple, two_outputs, from_picture, hires_fix, controlled),
    )
}
# what answers the questions that these shapes leave open
ANSWERS: dict[str, list[str]] = {
    "sdxl_refiner": ["--sampler", "6", "--sampler", "9"],
    "sdxl_two_texts": ["--prompt", "2.text_g"],
    "two_outputs": ["--output-node", "7"],
    "hires_fix": ["--sampler", "5"],
}


def recorded() -> dict[str, Graph]:
    """Give the graphs that real servers accepted, by name."""
    graphs = json.loads((DATA / "recorded.json").read_text())["graphs"]
    return {**graphs, **json.loads((DATA / "exports.json").read_text())}
