#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0): a small LoRA update beside a bfloat16 layer is lost, though its own weights are float32.
#
# Merging a small update into bfloat16 weights is known to lose it. Left beside the layer it is expected to act in full,
# since PEFT keeps A and B in float32. But the branch is added to the layer's answer in bfloat16, and where it is less
# than half a unit in the last place of that answer, the sum is the answer without it. As the answers of a layer are
# sums over all inputs, and so is the branch, this begins where the entries of B·A are below about a quarter of the unit
# of the weights: as small as an update is in its first steps, or where the rate is low.
#
# Seen, for one layer of 768x768 and LoRA of rank 8, by the entries of B·A in units of the weights (medians): the
# share of the update that acts, which is the scalar product of the answer's change with the exact change, over that of
# the exact change with itself.
#   1/64 0.06   1/16 0.33   1/4 0.85   1 1.00        in float32: 1.00 throughout
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 peft==0.21.2 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model


@torch.no_grad()
def share(dtype, fraction):
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Linear(768, 768, bias=False, dtype=dtype))
    model = get_peft_model(linear, LoraConfig(r=8, lora_alpha=8, target_modules=["0"]))
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == b.dtype == torch.float32
    kernel = layer.base_layer.weight.double()
    unit = 2.0 ** (torch.floor(torch.log2(kernel.abs())) - 7)  # of bfloat16, whose fraction has 7 bits
    b.normal_()
    b.mul_(fraction * unit.median() / (b.double() @ a.double()).abs().median())
    x = torch.randn(512, 768).bfloat16()
    exact = x.double() @ (b.double() @ a.double()).T
    change = model(x.to(dtype)).double() - x.double() @ kernel.T
    return float((exact * change).sum() / (exact**2).sum())


fractions = (1 / 64, 1 / 16, 1 / 4, 1)
found = {dtype: [round(share(dtype, fraction), 2) for fraction in fractions] for dtype in (torch.bfloat16, torch.float32)}
for dtype, shares in found.items():
    print(dtype, *(f"{fraction:g}: {acts:.2f}" for fraction, acts in zip(fractions, shares)))
low = found[torch.bfloat16]
sys.exit(not (low[0] < 0.2 and low[1] < 0.5 and low[3] > 0.95 and min(found[torch.float32]) > 0.95))
PYTHON
