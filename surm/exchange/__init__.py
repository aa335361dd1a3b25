"""Exchange of adapters and models: Hugging Face PEFT's files both ways, low-rank stand-ins, merged models.

    peft_export, peft_import   adapter_config.json and adapter_model.safetensors in PEFT's form (peft_files)
    peft_folder                finds them: in a folder, in one below it, on the hub
    lora, adalora, c3a, lokr   one type of PEFT each, all with the same functions; updates is the common form
    trained                    other trained variables: modules to save, and biases
    low_rank                   the nearest low-rank update, for families that PEFT lacks
    merged                     a whole merged model, as transformers loads it; with tokenizer_files
    model_file                 a whole merged model in surm's own format, for models that transformers lacks
    names                      our paths <-> the names of transformers' modules

`surm.peft` and `surm.models` know nothing of it.
"""

from surm.exchange.low_rank import to_low_rank
from surm.exchange.merged import export_merged
from surm.exchange.model_file import save_model
from surm.exchange.peft_export import export_peft
from surm.exchange.peft_import import import_peft

__all__ = ["export_merged", "export_peft", "import_peft", "save_model", "to_low_rank"]
