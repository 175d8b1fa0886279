"""The tokenizer of a dictionary that lacks pieces of its SentencePiece model."""

from typing import Any

from transformers import PreTrainedTokenizerFast


class CoreTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer whose pieces from number ``dictionary_size`` on become <unk>, as in fairseq."""

    def __init__(self, *arguments: Any, dictionary_size: int, **keywords: Any):
        super().__init__(*arguments, dictionary_size=dictionary_size, **keywords)
        self.dictionary_size = dictionary_size

    def _convert_encoding(self, *arguments: Any, **keywords: Any) -> Any:
        content, encodings = super()._convert_encoding(*arguments, **keywords)
        content["input_ids"] = [
            [self.unk_token_id if number >= self.dictionary_size else number for number in row]
            for row in content["input_ids"]
        ]
        return content, encodings
