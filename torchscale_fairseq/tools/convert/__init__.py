"""Convert checkpoints. Each subcommand reads one file or folder and writes another; the input stays as it is."""

SUBCOMMANDS = {
    "consolidate": "join a sharded checkpoint into one file",
    "from-safetensors": "make a checkpoint of fairseq from a folder that to-safetensors wrote",
    "from-torchscale": "make a checkpoint of this package from one of TorchScale's fairseq examples",
    "merge-experts": "join a checkpoint and its sharded experts into one file",
    "merge-lora": "merge low-rank adapters into the weights that they adapt",
    "pack-bitnet": "pack the weights of a BitNet model to 1.6 bits or 1 bit each",
    "to-safetensors": "make a folder that the core loads without fairseq",
    "to-torchscale": "make a checkpoint of TorchScale's fairseq examples from one of this package",
}
