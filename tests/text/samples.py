"""Texts that tokenizers disagree about: scripts, digits, white space, contractions, emoji, special tokens."""

import random

FIXED = [
    "",
    " ",
    "\n",
    "Hello world",
    " Hello  world   !",
    "I'LL say: don't, we've, it's 'S 'tIs",
    'def f(x):\n\treturn {"a": x**2}  # ok\r\n\r\n\n\n    pass\n',
    "1 12 123 1234 12345678 3.14159 ½ ٣٤٥ Ⅷ",
    "Der Fuß, élève, Ångström, naïve — “quotes” … €100",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "日本語のテキストと中文文本，한국어 텍스트。ไทย हिन्दी பேச்சு",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽 ☃️ ﷽ 𝒳𝔘 ﬁ",
    "a\u0301e\u0300 e\u200d\ufe0f\u00ad\u2060",
    "\u00a0\u2003\u3000\u2028\u0085x \t \n \t\n",
    "    " * 9 + "\t" * 20 + "\n" * 33,
    "~~^^``||<>=+$_-/\\@#%&*",
    "<|im_start|>user\nHi<|im_end|>\n<start_of_turn>model\nYo<end_of_turn>",
    "</s><s><unk><bos><eos><pad>[INST] x [/INST]",
    "<0x0A><unused5><|endoftext|",
    "\u2581\u2581 \u2581a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20#e",
    "A\x00B\x1fC\x7f",
    "\U000110b2\U0001f6dc\U00031350\U0001e4d0\U0001d2c5",
]
_WORDS = [
    "hello",
    "World",
    "<|im_end|>",
    "<end_of_turn>",
    "</s>",
    "\n\n\n",
    "   ",
    "don't",
    "I'LL",
    "123456",
    "x=3;",
    "日本語",
    "🙂🙂",
    "é",
    "\t\t",
    "<bos>",
    "<unused1>",
    "<0x0A>",
    " the",
    "▁▁",
    "<table>",
    "def f(x):",
    "～",
    "~S",
    "/~",
]
_CHARS = " \t\n\r'’sStTlLreRE019abz.,!?<>/|-_~`^$é日語🙂ा्가\u00a0\u3000\u2028\u2581\u200d\ufe0fßǅΩ٣½"
_PLANES = [(0, 0x7F), (0x80, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x1FFFF), (0x20000, 0x10FFFF)]


def texts(count: int, seed: int) -> list[str]:
    """FIXED and `count` random ones: arbitrary code points, tricky characters, tricky words."""
    rng = random.Random(seed)

    def one() -> str:
        size, kind = rng.randint(1, 40), rng.random()
        if kind < 0.3:
            return "".join(chr(rng.randint(*rng.choice(_PLANES))) for _ in range(size))
        if kind < 0.6:
            return "".join(rng.choice(_CHARS) for _ in range(size))
        return "".join(rng.choice(_WORDS) + rng.choice(["", " "]) for _ in range(size // 2 + 1))

    return FIXED + [one() for _ in range(count)]
