"""OpenAI's HTTP API over one base model and its adapters, which come and go while it runs.
A scheduler decodes all requests together on one of two backends: llama.cpp, or the engines of this package.
What a sequence has computed is shared only with requests of the same adapters at the same scales."""
