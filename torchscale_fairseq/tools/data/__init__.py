"""Prepare text and speech for training, and make corpora and images for first trials."""

SUBCOMMANDS = {
    "catalog-corpus": "write an English-German corpus from the message catalogues of free programs",
    "cldr-corpus": "write an English-German corpus from Unicode CLDR",
    "draw-details": "draw images whose class a small square decides",
    "draw-survival": "draw discs whose size sets a hazard, with tables of times",
    "encode-text": "split lines into the pieces of a SentencePiece model",
    "prepare-language": "make a data directory for language models from text",
    "prepare-speech": "make a data directory for speech recognition or translation from audio files and texts",
    "prepare-translation": "make a data directory for translation from parallel text",
    "python-corpus": "write an English corpus from the standard library of Python",
    "shard-corpus": "make the shards and the index that --task pretraining reads",
    "speak-text": "speak lines of text with espeak-ng, for first trials of speech recognition",
    "train-tokenizer": "train the tokenizer of a data directory for --task pretraining",
}
