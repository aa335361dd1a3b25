"""Adapters and models that travel: Hugging Face PEFT's files read and written, low-rank stand-ins, merged models.

    peft_export, peft_import   adapter_config.json and adapter_model.safetensors as PEFT has them (peft_files)
    peft_folder                where they lie: in a folder, in one below it, on the hub
    lora, adalora, c3a, lokr   what one type of PEFT's keeps in them, the same functions in each; between: updates
    trained                    what trains beside the updates: modules to save, and biases
    low_rank                   the nearest low-rank update, for families that PEFT lacks
    merged                     a whole model, its update folded in, as transformers loads it; with tokenizer_files
    model_file                 the same as a file of our own, for models that transformers has not
    names                      our paths <-> the names of transformers' modules

`surm.peft` and `surm.models` know nothing of it.
"""

from surm.exchange.low_rank import to_low_rank
from surm.exchange.merged import export_merged
from surm.exchange.model_file import save_model
from surm.exchange.peft_export import export_peft
from surm.exchange.peft_import import import_peft

__all__ = ["export_merged", "export_peft", "import_peft", "save_model", "to_low_rank"]
