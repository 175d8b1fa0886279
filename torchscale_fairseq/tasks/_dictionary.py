"""Tasks of which all texts have one dictionary."""

from typing import Any

from fairseq.tasks import FairseqTask


class OneDictionary(FairseqTask):
    """Goes first in the bases of a task that sets ``dictionary``."""

    dictionary: Any

    @property
    def source_dictionary(self) -> Any:
        """The dictionary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Any:
        """The dictionary."""
        return self.dictionary
