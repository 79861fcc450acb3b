"""What tasks are called: Hugging Face's names."""

from __future__ import annotations

IMAGE_CLASSIFICATION = "image-classification"
AUDIO_CLASSIFICATION = "audio-classification"
OBJECT_DETECTION = "object-detection"
TEXT_GENERATION = "text-generation"
SPEECH_RECOGNITION = "automatic-speech-recognition"
FEATURES = "feature-extraction"
TEXT_CLASSIFICATION = "text-classification"
TEXT_RANKING = "text-ranking"
TOKEN_CLASSIFICATION = "token-classification"
FILL_MASK = "fill-mask"
QUESTION_ANSWERING = "question-answering"
ZERO_SHOT_IMAGES = "zero-shot-image-classification"
IMAGE_FEATURES = "image-feature-extraction"
CUSTOM = "custom"
"""A user's own: what it takes and gives is its code's to say."""
