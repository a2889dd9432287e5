"""What tests of runs on pictures share: pictures, a small ResNet in a folder, and a command line."""

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig, ViTImageProcessorPil

CLASSES = ("amber", "blue", "cyan")
SHADES = {"amber": (230, 150, 20), "blue": (20, 40, 230), "cyan": (10, 220, 210)}


def draw(folder, count=8, owners=("anna", "bo"), size=(12, 10), seed=0):
    """Noisy pictures of one colour a class, in a folder a class, named for whose they are."""
    rng = np.random.default_rng(seed)
    for name, shade in SHADES.items():
        for number in range(count):
            noise = rng.normal(0, 30, (size[1], size[0], 3))
            path = folder / name / f"{owners[number % len(owners)]}_{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.array(shade) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return folder


def resnet(folder, names=CLASSES, seed=0, **more):
    """A small ResNet with its processor, in a folder as transformers saves it."""
    torch.manual_seed(seed)
    labels = dict(enumerate(names)) if names else {}
    named = {"id2label": labels, "label2id": {name: n for n, name in labels.items()}} if names else {"num_labels": 3}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **named)
    AutoModelForImageClassification.from_config(config).eval().save_pretrained(folder)
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    ViTImageProcessorPil(**{**settings, **more}).save_pretrained(folder)
    return folder


def command(files, *more, without=()):
    defaults = {
        "--images": str(files / "pictures"),
        "--model": str(files / "model"),
        "--out": str(files / "run"),
        "--method": "neg-grad-plus",
        "--epochs": "2",
        "--lr": "0.01",
        "--batch-size": "8",
        "--device": "cpu",
    }
    left = {flag: value for flag, value in defaults.items() if flag not in (*more, *without)}
    by = () if "--by" in more or "--by" in without else ("--by", "class", "blue")
    return ["forget", *(part for pair in left.items() for part in pair), *by, *more]
