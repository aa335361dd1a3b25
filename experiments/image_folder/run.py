"""How many images a second train from a folder of JPEGs, against the same pixels in an .npz.

    python experiments/image_folder/run.py --data=../shared/data/cifar10.npz

Makes 5,000 JPEGs of CIFAR-10's images, enlarged to 200 to 500 pixels a side, as noisy as photographs and of mixed modes
(grey, CMYK, turned by EXIF); the .npz holds the same pixels, already resized to 224. A ViT-Ti/16 trains on both through
the command line, with two reading threads, in turns. The time is that between two lines of metrics.jsonl, some steps
after the compiler has finished, by the clock and in the run's processor seconds, which tell more if others use the
machine. Without a model it times how long the folder takes to be opened, to be hashed, and to be decoded by two
threads. Two CPU cores need a quarter of an hour and 1.5 GB of disk. Needs Linux's /proc.
"""

import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from experiments.shared import command, processes, recipes, results
from surm.data import decode, sources

RESULTS = results.of(__file__)
SIZE, BATCH, SKIPPED = 224, 32, 4  # SKIPPED steps wait for the compiler, or find batches that were read meanwhile
TRAIN, TEST = 5000, 64
MODES = ("RGB",) * 16 + ("L", "L", "CMYK", "turned")  # of 20 files


def write_jpeg(image: np.ndarray, index: int, file: pathlib.Path) -> None:
    """Writes a small image as one of the size, detail and mode of somebody's photograph."""
    rng = np.random.default_rng(index)
    width, height = rng.integers(200, 501, 2).tolist()
    large = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    large = np.clip(large + rng.normal(0, 5, large.shape), 0, 255).astype(np.uint8)
    mode, exif = MODES[index % len(MODES)], Image.Exif()
    if mode == "turned":
        exif[0x0112] = 6
    Image.fromarray(large).convert("RGB" if mode == "turned" else mode).save(file, quality=90, exif=exif)


def resized(file: pathlib.Path) -> np.ndarray:
    """The pixels of a file, as an .npz of people's own would hold them."""
    with open(file, "rb") as opened:
        pixels = decode.pixels(opened)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def make(data: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes both forms, jpeg/ and same.npz."""
    with np.load(data) as small:
        images, labels = small["x_train"], small["y_train"]
        parts = {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}
        arrays = {}
        for split, indices in parts.items():
            written = [folder / "jpeg" / split / f"class_{labels[i]}" / f"{i:05d}.jpg" for i in indices]
            for name in {file.parent for file in written}:
                name.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(write_jpeg, images[indices], indices, written))
                arrays[f"x_{split}"] = np.stack(list(pool.map(resized, written)))
            arrays[f"y_{split}"] = labels[list(indices)]
    np.savez(folder / "same.npz", **arrays)


def images_a_second(source: pathlib.Path, steps: int) -> tuple[float, float]:
    """The rates at which a run trains from its SKIPPED'th step to its last, by the clock and a processor's second."""
    changes = {
        "data.source": source, "data.augment": "none", "data.threads": 2, "model.weights": "none",
        "model.name": "vit_ti16", "optim.batch_size": BATCH, "optim.steps": SKIPPED + steps, "log_every_steps": 1,
    }  # fmt: skip
    with processes.Training(recipes.flags("cifar10", changes)) as run:
        run.wait_for_step(SKIPPED)
        began = _clocks(run.process.pid)
        run.wait_for_step(SKIPPED + steps)
        seconds, processors = np.subtract(_clocks(run.process.pid), began).tolist()
    return steps * BATCH / seconds, steps * BATCH / processors


def _clocks(process: int) -> tuple[float, float]:
    """The clock, and a process's seconds on processors."""
    ticks = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return time.perf_counter(), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def alone(folder: pathlib.Path) -> dict[str, float]:
    """What the folder takes without a model."""
    opened, indices = sources.load(str(folder)), range(0, TRAIN, 5)
    with ThreadPoolExecutor(2) as pool:
        decoded = _seconds(lambda: list(pool.map(lambda index: len(opened.train[index]["image"]), indices)))
    return {
        "seconds_to_open": _seconds(lambda: sources.load(str(folder))),
        "seconds_to_hash": _seconds(opened.fingerprint),
        "images_decoded_a_second_by_two_threads": len(indices) / decoded,
    }


def measure(places: dict[str, pathlib.Path], turns: int, steps: int) -> dict[str, Any]:
    """Trains from both places in turns; the rates, and those of the folder over those of the .npz."""
    each: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
    for turn in range(turns):
        for name in list(places)[:: 1 if turn % 2 else -1]:
            each[name].append(images_a_second(places[name], steps))
            print(json.dumps({"source": name, "rates": each[name][-1]}), flush=True)
    medians = {name: np.median(rates, axis=0).tolist() for name, rates in each.items()}
    of_clock, of_processors = ({name: rates[which] for name, rates in medians.items()} for which in (0, 1))
    return {
        "images_a_second": of_clock,
        "images_a_processor_second": of_processors,
        "each": each,
        "ratio": of_clock["folder"] / of_clock["npz"],
        "ratio_of_processors": of_processors["folder"] / of_processors["npz"],
    }


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    default = results.ROOT.parent / "shared" / "data" / "cifar10.npz"
    parser.add_argument("--data", type=command.existing, default=str(default), help="CIFAR-10 as an .npz")
    parser.add_argument("--turns", type=command.count, default=3)
    parser.add_argument("--steps", type=command.count, default=24)
    parser.add_argument("--made", help="a folder that keeps the images, for another time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.made or temporary).absolute()
        places = {"folder": folder / "jpeg", "npz": folder / "same.npz"}
        if not places["npz"].is_file():
            make(arguments.data, folder)
        sizes = [file.stat().st_size for file in (places["folder"] / "train").rglob("*.jpg")]
        found = measure(places, arguments.turns, arguments.steps) | alone(places["folder"])
    setting = {"model": "vit_ti16", "batch_size": BATCH, "threads": 2}
    made = {"files": len(sizes), "mean_bytes": statistics.mean(sizes)}
    results.write(RESULTS / "cpu.json", {**setting, **made, **found})


if __name__ == "__main__":
    command.run(main)
