"""Low-rank adapters: GGUF and peft, read, checked and written."""
