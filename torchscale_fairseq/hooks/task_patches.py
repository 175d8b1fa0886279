"""Everything that this package replaces or sets in single tasks and criterions of stock fairseq; a part of
``patches.PATCHES``."""

from fairseq.criterions import label_smoothed_cross_entropy_with_rdrop
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.data import resampling_dataset
from fairseq.data.audio import audio_utils
from fairseq.data.audio.feature_transforms.specaugment import SpecAugmentTransform
from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset, SpeechToTextDatasetCreator
from fairseq.data.legacy.masked_lm_dictionary import MaskedLMDictionary
from fairseq.scoring.wer import WerScorer
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

from torchscale_fairseq.hooks.patching import Patch, Setting
from torchscale_fairseq.hooks.stock import speech, speech_data, tasks
from torchscale_fairseq.hooks.training import masked_tokens

PATCHES: tuple[Patch | Setting, ...] = (
    Patch(MaskedLMDictionary, "load", tasks.load_masked_dictionaries, "an unknown argument", "'add_special_symbols'"),
    Patch(
        TranslationFromPretrainedBARTTask,
        "args",
        tasks.give_bart_translation_its_options,
        "stock reads args, and has cfg",
        "object has no attribute 'args'",
    ),
    Patch(
        SentenceRankingTask,
        "add_args",
        tasks.let_sentence_ranking_have_a_length,
        "an option that not all architectures have",
        "object has no attribute 'max_positions'",
    ),
    Patch(
        SentenceRankingTask,
        "load_dataset",
        tasks.name_missing_inputs_of_ranking,
        "the error names no folder",
        "object has no attribute 'sizes'",
    ),
    Patch(
        TranslationTask,
        "setup_task",
        tasks.heed_one_language,
        "stock needs both languages",
        "nothing: the option is ignored",
    ),
    Setting(
        tasks.classify_without_a_criterion,
        "options of the criterion that is in the checkpoint",
        "Interpolation key 'criterion.classification_head_name'",
    ),
    Patch(
        SentencePredictionTask,
        "setup_task",
        tasks.count_labels_before_training,
        "stock fails in the first update",
        "Target 2 is out of bounds",
    ),
    Patch(
        resampling_dataset,
        "ResamplingDataset",
        tasks.sample_languages_in_proportion,
        "a share of exactly 1",
        "`AssertionError` in `resampling_dataset.py`",
    ),
    Patch(
        label_smoothed_cross_entropy_with_rdrop,
        "duplicate_input",
        tasks.leave_batches_as_they_are,
        "the batch is doubled in place",
        "`IndexError`",
    ),
    Patch(MaskedLmLoss, "forward", masked_tokens.loss_at_positions, "stock waits for the device to count tokens"),
    # speech
    Setting(speech.read_mp3, "libsndfile reads them", "Unsupported file format"),
    Patch(
        audio_utils,
        "convert_waveform",
        speech.convert_without_torchaudio,
        "torchaudio has no SoX any more",
        "Please install torchaudio",
    ),
    Patch(
        audio_utils,
        "_get_torchaudio_fbank",
        speech.compute_features_without_torchaudio,
        "a large package for one function",
        "Please install pyKaldi or torchaudio",
    ),
    Patch(
        audio_utils,
        "get_features_or_waveform",
        speech.name_unusable_audio,
        "the error names no file",
        "LibsndfileError",
    ),
    Patch(
        SpecAugmentTransform,
        "__call__",
        speech.warp_time_without_opencv,
        "a large package for one function",
        "No module named 'cv2'",
    ),
    Patch(
        SpeechToTextDataset,
        "__getitem__",
        speech.draw_augmentation_by_epoch,
        "numpy's state is not saved",
        "nothing: every epoch is augmented in the same way",
    ),
    Patch(SpeechToTextDataset, "set_epoch", speech.know_the_epoch, "stock keeps no epoch"),
    Patch(SpeechToTextDatasetCreator, "from_tsv", speech.know_the_seed, "stock passes no seed on"),
    Patch(
        SpeechToTextDataset,
        "get_tgt_lens_and_check_oov",
        speech.compare_dictionary_with_text,
        "stock logs a percentage",
        "nothing: the model learns unknown tokens",
    ),
    Patch(
        SpeechToTextTask,
        "setup_task",
        speech_data.name_missing_settings,
        "the error does not say what makes the file",
        "Dict not found",
    ),
    Patch(
        SpeechToTextDatasetCreator,
        "_load_samples_from_tsv",
        speech_data.name_missing_manifest,
        "the error does not say what makes the file",
        "Dataset not found",
    ),
    Patch(
        SpeechToTextDataset,
        "_get_source_audio",
        speech_data.name_features_of_another_width,
        "the error names no file",
        "to have 80 channels",
    ),
    Patch(
        WerScorer,
        "__init__",
        speech.count_errors_without_editdistance,
        "a package for one function",
        "Please install editdistance",
    ),
)
