"""The embedded demo: captioned clips, the checkpoints trained on them, and the program that scores a clip."""
