"""Low-rank adapters: GGUF and peft, read, checked and written."""

from anytune.adapter.adapter import Adapter as Adapter
