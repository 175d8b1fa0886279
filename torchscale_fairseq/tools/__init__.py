"""Tools to run before and after fairseq's commands: prepare data, convert checkpoints, evaluate models."""

SUBCOMMANDS = {
    "answer": "answer prompts with a language model that was trained on instructions",
    "average-checkpoints": "average the parameters of several checkpoints into one",
    "classify-images": "print the likeliest class, or the risk, of images and slides",
    "completion": "print a script that completes this command in bash, zsh or fish",
    "convert": "convert checkpoints: TorchScale's, safetensors, packed BitNet weights, sharded experts",
    "data": "prepare text for training; make corpora and images for first trials",
    "embed": "embed images and texts with a BEiT-3",
    "environment": "report versions, optional packages and the backends that can be chosen",
    "export": "export a checkpoint for other libraries: transformers, CTranslate2, ONNX",
    "fill-masks": "fill the masked words of texts with a masked language model",
    "import": "import a model that export hf wrote",
    "lm-eval": "evaluate a language model on tasks of the evaluation harness lm-eval",
    "needle": "measure how often a language model retrieves a fact from a long text",
    "perplexity": "print the perplexity per token and per byte from the output of fairseq-eval-lm",
    "plot-expert-load": "draw how the experts of training runs were used",
    "predict": "predict answers, captions, truth or ranks with a fine-tuned BEiT-3",
    "score-translation": "print BLEU, chrF and exact match of translations",
    "tile-slides": "cut slides in a scanner's format into tiles with tissue, and embed them",
    "unigram-perplexity": "print the perplexity of guessing by frequency, a baseline for masked models",
    "user-dir": "print the path to give to fairseq as --user-dir",
    "version": "print the version of this package",
}
"""Name and summary of each subcommand and group, as the help lists them.

A subcommand is the module of its name, with underscores for dashes, and has the parts of ``command.Subcommand``. A
group is a folder with ``SUBCOMMANDS`` of its own.
"""
