"""Exchanges adapters and models with other programs: Hugging Face PEFT and transformers.

    peft_export, peft_import   write and read adapter_config.json and adapter_model.safetensors of PEFT (peft_files)
    peft_folder                finds these files: in a folder, in a folder below it, or on the hub
    lora, adalora, c3a, lokr   one adapter type of PEFT each, all with the same functions; updates has the common form
    trained                    other trained variables: modules to save, and biases
    low_rank                   the nearest low-rank update, for families that PEFT lacks
    merged                     a whole merged model, as transformers loads it; with tokenizer_files
    model_file                 a whole merged model in surm's own format, for models that transformers lacks
    names                      surm's paths <-> the names of modules in transformers

`surm.peft` and `surm.models` do not import this package.
"""

from surm.exchange.low_rank import to_low_rank
from surm.exchange.merged import export_merged
from surm.exchange.model_file import save_model
from surm.exchange.peft_export import export_peft
from surm.exchange.peft_import import import_peft

__all__ = ["export_merged", "export_peft", "import_peft", "save_model", "to_low_rank"]
