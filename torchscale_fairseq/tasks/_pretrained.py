"""Tasks whose models can start from released weights."""

from typing import Any

from fairseq.tasks import FairseqTask


class StartsFromWeights(FairseqTask):
    """The base of a task whose models have --pretrained."""

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build a model, with the weights of --pretrained unless it gets those of a checkpoint.

        Raises:
            FileNotFoundError, CheckpointError: of --pretrained.
        """
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and cfg.pretrained is not None:
            branch = {"branch": cfg.pretrained_branch} if hasattr(cfg, "pretrained_branch") else {}
            model.load_weights(cfg.pretrained, **branch)
        return model
