"""How tokens see each other: one file a kind, with what its backward and its decoding need."""
