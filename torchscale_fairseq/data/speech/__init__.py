"""Speech: audio files, transcripts and features."""
