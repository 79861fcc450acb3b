"""Train the starter image model: handwritten digits, a small residual network.

    python starters/images/train.py

The data, scikit-learn's `load_digits` (1,797 images of 8x8, from the UCI repository), comes
with scikit-learn. A fixed fifth (360) is written to `samples/` and never trained on;
`calibrate/` gets 200 images of the training part. Takes about three minutes on one core and
keeps no cache: the run is short enough to start again.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

HERE = Path(__file__).parent
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT, CALIBRATION = 360, 200
EPOCHS, BATCH, PEAK_LEARNING_RATE = 80, 64, 3e-3
AVERAGING = 0.995
"""Decay of the running mean of the weights; the mean is what ships."""

Pixels = NDArray[np.uint8]
"""Images of shape (count, 8, 8), 0-255."""


def parts() -> tuple[Pixels, NDArray[np.int64], Pixels, NDArray[np.int64]]:
    """Training images and labels, then held-out images and labels; no image is in both."""
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    train, held, train_labels, held_labels = train_test_split(
        pixels, digits.target, test_size=HELD_OUT, stratify=digits.target, random_state=0
    )
    seen = {image.tobytes() for image in held}
    new = np.array([image.tobytes() not in seen for image in train])
    return train[new], train_labels[new], held, held_labels


def write_folder(folder: Path, pixels: Pixels, labels: Sequence[int]) -> None:
    """Write PNG files and a `metadata.csv` (`file_name,label,label_id`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file_name", "label", "label_id"])
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            Image.fromarray(image).save(folder / f"{number:03d}.png")
            rows.writerow([f"{number:03d}.png", NAMES[label], label])


def new_processor() -> ViTImageProcessorPil:
    """8x8 grey (or any image) to 32x32 RGB in [-1, 1]. Runs on Pillow and numpy alone."""
    half = [0.5, 0.5, 0.5]
    size = {"height": 32, "width": 32}
    return ViTImageProcessorPil(
        do_convert_rgb=True, size=size, resample=Image.Resampling.BILINEAR, image_mean=half, image_std=half
    )


def new_model() -> ResNetForImageClassification:
    """0.7 M parameters, randomly initialised."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[2, 2, 2],
            layer_type="basic",
            id2label=dict(enumerate(NAMES)),
            label2id={name: i for i, name in enumerate(NAMES)},
        )
    )


def varied(images: torch.Tensor) -> torch.Tensor:
    """Each image a little turned, sheared, scaled and shifted, with other contrast and some noise."""
    count = len(images)

    def draw(spread: float) -> torch.Tensor:
        return (torch.rand(count) * 2 - 1) * spread

    turn, shear, grow = draw(0.22), draw(0.2), 1 + draw(0.15)
    matrix = torch.stack(
        [
            torch.stack([grow * turn.cos(), shear - turn.sin(), draw(0.15)], 1),
            torch.stack([turn.sin(), (1 + draw(0.15)) * turn.cos(), draw(0.15)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is black, which is -1
    contrast = (1 + draw(0.2)).view(-1, 1, 1, 1)
    rough = functional.interpolate(torch.randn(count, 1, 8, 8), 32, mode="bilinear") * 0.12
    return ((moved + 1) * contrast - 1 + rough).clamp(-1, 1.4)


def train(arguments: argparse.Namespace) -> None:
    """The whole run: folders, epochs, the model folder, and its accuracy on the held-out images."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    pixels, labels, held, held_labels = parts()
    write_folder(HERE / "samples", held, held_labels.tolist())
    chosen = np.random.default_rng(0).permutation(len(pixels))[:CALIBRATION]
    write_folder(HERE / "calibrate", pixels[chosen], labels[chosen].tolist())

    processor = new_processor()

    def tensor(images: Pixels) -> torch.Tensor:
        return torch.from_numpy(processor([Image.fromarray(i) for i in images], return_tensors="np")["pixel_values"])

    inputs, targets = tensor(pixels), torch.from_numpy(labels)
    model, average = new_model(), new_model()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * math.ceil(len(inputs) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            logits = model(pixel_values=varied(inputs[rows])).logits
            loss = functional.cross_entropy(logits, targets[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    if kept.is_floating_point():
                        kept.lerp_(new, 1 - AVERAGING)
                    else:
                        kept.copy_(new)
        if epoch % 10 == 0:
            print(f"epoch {epoch} of {EPOCHS}, loss {loss.item():.3f}", flush=True)
    average.eval()
    average.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    with torch.inference_mode():
        right = average(pixel_values=tensor(held)).logits.argmax(-1).numpy() == held_labels
    print(f"top-1 on {len(held)} held-out images: {right.mean():.4f} ({(~right).sum()} wrong)")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="not needed: the data comes with scikit-learn")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="where the model goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
