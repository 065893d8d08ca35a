"""Data sets of text: local files or those of the Hugging Face Hub, read as documents."""
