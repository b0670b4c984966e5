"""Models on this machine and from elsewhere: the stores of Ollama, LM Studio, llama.cpp, Hugging Face and anytune's
own, what -m means, and fetching what is not here yet. Stores are only read: a model is used where it lies."""
