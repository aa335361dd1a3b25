"""The same training step with HF PEFT on PyTorch (eager), and the same text written by transformers and llama.cpp."""

from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers

from experiments.decoder_speed.ours import BATCH, FLOOR, LENGTH
from experiments.shared import decoders

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHODS: dict[str, Callable[[int], peft.PeftConfig]] = {
    "LoRA r=8": lambda block: peft.LoraConfig(r=8, lora_alpha=8, target_modules=decoders.PEFT_MAPS),
    "C3A": lambda block: peft.C3AConfig(block_size=block, target_modules=decoders.PEFT_MAPS),
    "LoKr": lambda block: peft.LoKrConfig(r=8, alpha=8, target_modules=decoders.PEFT_MAPS),
}
"""Configurations by name, from the size of C3A's blocks, which divides the sides of all maps."""
BLOCK = 192
"""The largest such size for SmolLM2."""
CACHES = {"dynamic": None, "static": "static"}
"""The caches of transformers, by name, as `generate` takes them."""


def model(dtype: str) -> torch.nn.Module:
    """SmolLM2, all of it frozen."""
    file, options = decoders.gguf_file(), {"dtype": getattr(torch, dtype)}
    own = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
    return own.requires_grad_(False).to(DEVICE)


def step(method: str, dtype: str) -> tuple[Callable[[], None], int]:
    """Builds the step of a method or the floor on SmolLM2: forward, backward, AdamW; and counts what it trains."""
    torch.manual_seed(0)
    return stepped(model(dtype), method, BLOCK, (BATCH, LENGTH))


def stepped(own: torch.nn.Module, method: str, block: int, size: tuple[int, int]) -> tuple[Callable[[], None], int]:
    """The same on any decoder, all of it frozen, with batches of a size; `block` is that of C3A."""
    dtype = own.dtype
    if method == FLOOR:  # the embeddings' output asks for a gradient, so that it flows through every block
        own.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_(True))
    else:
        own = peft.get_peft_model(own, METHODS[method](block))  # what trains is float32
    trained = [array for array in own.parameters() if array.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3) if trained else None
    own.train()  # there is no dropout
    tokens = torch.randint(0, own.config.vocab_size, size, device=DEVICE)

    def run() -> None:
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            loss = own(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if optimiser:
            optimiser.step()
            optimiser.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run, sum(array.numel() for array in trained)


def writing(own: torch.nn.Module, prompt: list[int], new: int, cache: str | None) -> Callable[[], int]:
    """A call of transformers that does the same as `ours.writing`."""
    tokens = torch.tensor([prompt], device=DEVICE)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
    options |= {"attention_mask": torch.ones_like(tokens), "cache_implementation": cache, "pad_token_id": 0}
    return lambda: own.generate(tokens, **options).shape[1] - len(prompt)


def llama_cpp(prompt: list[int], new: int) -> Callable[[], int]:
    """A call of llama.cpp that continues one prompt greedily on the blocks of the file as they are.

    It returns how many tokens were written.
    """
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = str(decoders.gguf_file())
    asked.n_ctx, asked.n_parallel, asked.cpuparams.n_threads = 512, 1, torch.get_num_threads()
    server = xllamacpp.Server(asked)
    request = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}

    def run() -> int:
        return server.handle_completions(request)["usage"]["completion_tokens"]

    return run


def versions() -> dict[str, str]:
    """What the peers were measured with."""
    packages = {package.__name__: package.__version__ for package in (torch, peft, transformers)}
    return packages | {"device": DEVICE, "threads": str(torch.get_num_threads())}
