"""llama.cpp as a library: bindings, the judge of a file, and the proof that both compute alike."""
