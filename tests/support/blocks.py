"""Where the float16 scales of a block are, so that tests can plant some there; MXFP4, NVFP4 and IQ1_M have none."""

FIRST = ("F16", "Q1_0", "Q2_0", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS")
FIRST += ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")
SCALES = {name: (0,) for name in FIRST} | {name: (0, 2) for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}
SCALES |= {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)}
