"""Which tasks and criterions, of fairseq and of this package, each family of models trains with.

docs/stock_tasks.md says why the others do not fit; ``hooks/options/fitting.py`` refuses them.
"""

from collections.abc import Mapping

Fits = Mapping[str, tuple[str, ...]]
"""Per task the criterions that train on its batches."""

_SEQUENCE = (
    "cross_entropy",
    "label_smoothed_cross_entropy",
    "label_smoothed_cross_entropy_with_alignment",
    "label_smoothed_cross_entropy_with_rdrop",
    "composite_loss",
    "linear_cross_entropy",
    "moe_cross_entropy",
    "moe_linear_cross_entropy",
    "moe_label_smoothed_cross_entropy",
)
_MASKED = ("masked_lm", "masked_lm_moe_cross_entropy")

TRANSLATION: Fits = dict.fromkeys(
    (
        "translation",
        "translation_multi_simple_epoch",
        "translation_from_pretrained_bart",
        "translation_from_pretrained_xlm",
        "online_backtranslation",
        "denoising",
        "multilingual_denoising",
        "span_masked_lm",
        "dummy_mt",
    ),
    _SEQUENCE,
)
LANGUAGE: Fits = dict.fromkeys(
    ("language_modeling", "pretraining", "instruction_tuning", "multilingual_language_modeling", "dummy_lm"), _SEQUENCE
)
MASKED: Fits = {
    "masked_lm": _MASKED,
    "pretraining": _MASKED,
    "sentence_prediction": ("sentence_prediction",),
    "sentence_ranking": ("sentence_ranking",),
    "multilingual_masked_lm": _MASKED,
    "cross_lingual_lm": ("legacy_masked_lm_loss",),
    "dummy_masked_lm": _MASKED,
}
SPEECH: Fits = {
    "speech_to_text": (
        "label_smoothed_cross_entropy",
        "label_smoothed_cross_entropy_with_ctc",
        "cross_entropy",
        "linear_cross_entropy",
        "moe_cross_entropy",
        "moe_linear_cross_entropy",
        "moe_label_smoothed_cross_entropy",
        "moe_label_smoothed_cross_entropy_with_ctc",
    )
}
IMAGE_TEXT: Fits = {
    "image_text": ("image_text",),
    "image_classification": ("image_classification",),
    "visual_question_answering": ("visual_question_answering",),
    "visual_reasoning": ("image_classification",),
    "image_captioning": ("masked_lm",),
    "image_text_retrieval": ("image_text_contrastive",),
}
IMAGES: Fits = {
    "image_classification": ("image_classification", "survival"),
    "self_distillation": ("self_distillation",),
}
VISION: Fits = {**IMAGES, "masked_image_modeling": ("masked_image_modeling",)}
SLIDES: Fits = {"slide_classification": ("slide_classification", "multi_label", "survival")}
