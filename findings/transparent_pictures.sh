#!/usr/bin/env bash
# transformers 5.23.0 (pillow 12.0.0, numpy 2.3.5): one picture with transparency, three sets of pixels.
#
# An image processor that converts to RGB (`do_convert_rgb`, as CLIP's, BiT's and SigLIP's do by default) is given the
# same PNG of one transparent colour (10, 20, 30, alpha 0): as a path it drops alpha and gives 10, 20, 30; as the image
# that Pillow opened from that path it blends onto white and gives 255, 255, 255. `load_image`, which the pipelines call
# on whatever they are given, drops alpha in both cases. A model that is trained on opened images and served through a
# pipeline (or by path) therefore sees other pixels, without a word, wherever a picture has transparency.
#
# Seen:
#   by path       10 20 30
#   opened        255 255 255
#   load_image    10 20 30
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 pillow==12.0.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from PIL import Image
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

Image.new("RGBA", (224, 224), (10, 20, 30, 0)).save("transparent.png")
processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)


def first_pixel(given):
    return processor(given, return_tensors="np")["pixel_values"][0, :, 0, 0].astype(int).tolist()


by_path, opened = first_pixel("transparent.png"), first_pixel(Image.open("transparent.png"))
loaded = list(load_image(Image.open("transparent.png")).getpixel((0, 0)))
for name, pixel in (("by path", by_path), ("opened", opened), ("load_image", loaded)):
    print(f"{name:13} {pixel[0]} {pixel[1]} {pixel[2]}")
sys.exit((by_path, opened, loaded) != ([10, 20, 30], [255, 255, 255], [10, 20, 30]))
PYTHON
