"""Export checkpoints for other libraries."""

SUBCOMMANDS = {
    "hf": "make a folder that Hugging Face's transformers loads",
    "ctranslate2": "make a folder that CTranslate2 loads, for fast translation",
    "onnx": "make ONNX graphs: an encoder, a step of decoding",
}
