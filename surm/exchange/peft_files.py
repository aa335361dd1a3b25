"""The names in Hugging Face PEFT's files, and the adapter types of PEFT that are supported.

    family                             PEFT's type
    low_rank                           LoRA
    c3a, block_circulant, circulant    C3A     (circulant for square layers, as one block)
    kronecker                          LoKr    (if LoKr has the shapes; see `surm.exchange.lokr`)
    adalora                            AdaLoRA

Other trained variables, such as the head, are listed under `modules_to_save`; see `surm.exchange.trained`. Examples of
keys:

    base_model.model.vit.layers.0.attention.q_proj.lora_A.weight
    base_model.model.vit.layers.0.attention.q_proj.base_layer.bias
    base_model.model.classifier.weight
"""

from types import ModuleType

from surm.exchange import adalora, c3a, lokr, lora

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROOT = "base_model.model."
UNREAD = (".original_module.", ".modules_to_save.", ".ranknum.")
"""Parts of keys that PEFT may write but does not read: copies of modules_to_save, and a number of AdaLoRA."""
CONVOLUTION = "embed.patch"  # a convolution in transformers, whose adapters have other shapes

TYPES: dict[str, ModuleType] = {"LORA": lora, "C3A": c3a, "LOKR": lokr, "ADALORA": adalora}
"""The types that are read and written, by `peft_type`."""


def module_of(key: str) -> str:
    """The name of the module that a key's variable belongs to."""
    return key.rpartition(".")[0]
