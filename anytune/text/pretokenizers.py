"""Pre-tokenizers by the name in `tokenizer.ggml.pre`: how text is cut into words before BPE merges.

The regular expressions are those that the models' own tokenizers publish, in the form in which llama.cpp
applies them. Like there, they do not run on the text itself: every character outside ASCII is first
replaced by one that stands for its Unicode class, so that Python's `re` (ASCII rules) suffices and a word
is found in linear time. An expression without a class runs on the text with its wide spaces made plain.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# The stand-ins: any other character, then one for each class, then white space.
_OTHER, _NUMBER, _LETTER, _PUNCTUATION, _MARK, _SYMBOL, _SPACE = "\xd0\xd1\xd2\xd3\xd4\xd5\x0b"
_STAND_IN = {"N": _NUMBER, "L": _LETTER, "P": _PUNCTUATION, "M": _MARK, "S": _SYMBOL}
_CLASS = {
    "N": _NUMBER + "0-9",
    "L": _LETTER + "A-Za-z",
    "M": _MARK,
    "P": _PUNCTUATION + r"!-#%-*,-/:-;?-@\[-\]_\{\}",
    "S": _SYMBOL + r"\$\+<->^`\|~",
}
_WIDE_SPACES = {0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}

_ENGLISH = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDS
_LLAMA3 = _WORDS % "{1,3}"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+%s"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDS
)
_GPT4O = _CASED % (_ENGLISH + "?", _ENGLISH + "?", "{1,3}")
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _ENDS
)
# Letters with case, as DeepSeek LLM's tokenizer lists them (code points: their characters are easily
# mangled).
_DEEPSEEK_LETTERS = "".join(
    "-".join(chr(int(point, 16)) for point in part.split("-"))
    for part in (
        "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 "
        "388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba "
        "1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 "
        "1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec "
        "1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 "
        "213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b "
        "a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f "
        "104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
    ).split()
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|[\n]+"


@dataclass(frozen=True)
class Pre:
    """What a pre-tokenizer name implies.

    patterns       applied one after the other, each to the pieces that the former left
    ignore_merges  a word that is a token is taken whole, whatever the merges say
    add_bos        default of tokenizer.ggml.add_bos_token
    bytes_         words are spelled in GPT-2's 256 byte characters (else UTF-8 with <0xXX> fallback)
    escape         spaces become U+2581 first, as in SentencePiece
    whole_lines    a run of newlines that is a token is taken whole
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    bytes_: bool = True
    escape: bool = False
    whole_lines: bool = False


_LLAMA = Pre((_LLAMA3,), ignore_merges=True, add_bos=True)
_SMOLLM = Pre((r"\p{N}", _GPT2))
_PLAIN = Pre((_GPT2,))
_QWEN2 = Pre((_WORDS % "",))
_DEEPSEEK = Pre((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_SENTENCE = Pre((_LINES,), bytes_=False, escape=True)
_GEMMA4 = Pre((_LINES,), bytes_=False, escape=True, whole_lines=True)

_TABLE = [
    (Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (_LLAMA, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (Pre((_LLAMA3,)), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (_SMOLLM, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (
        _PLAIN,
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert "
        "jina-es jina-de jina-v2-es jina-v2-de",
    ),
    (_QWEN2, "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2"),
    (Pre((_ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _ENDS,)), "qwen35"),
    (
        Pre(
            (
                "[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+\Z",
                "[一-龥ࠀ-一가-퟿]+",
                r"\p{N}+",
            )
        ),
        "deepseek-llm",
    ),
    (Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")), "deepseek-coder"),
    (_DEEPSEEK, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (Pre((_BLOOM,)), "bloom gpt3-finnish poro-chat"),
    (Pre((_BLOOM, r"\p{N}")), "viking"),
    (Pre((_CASED % ("", "", ""),), ignore_merges=True, add_bos=True), "tekken"),
    (Pre((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (
        Pre(
            (
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    (Pre((_ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _ENDS,)), "seed-coder"),
    (Pre((r"\p{N}{1,3}", _WORDS % "+"), ignore_merges=True), "minicpm5"),
    (_GEMMA4, "gemma4"),
    (_SENTENCE, "sarvam-moe"),
]
PRE: dict[str, Pre] = {name: pre for pre, names in _TABLE for name in names.split()}


# llama.cpp's tables are of Unicode 15.1; this is what Python 3.11's (Unicode 14) lack: first-last and class.
_UNICODE_15 = (
    "CF3M ECEM 2FFC-2FFFS 31EFS 10EFD-10EFFM 1123F-11240L 11241M 11B00-11B09P 11F00-11F01M 11F02L 11F03M "
    "11F04-11F10L 11F12-11F33L 11F34-11F3AM 11F3E-11F42M 11F43-11F4FP 11F50-11F59N 1342FL 13440M "
    "13441-13446L 13447-13455M 1B132L 1B155L 1D2C0-1D2D3N 1DF25-1DF2AL 1E030-1E06DL 1E08FM 1E4D0-1E4EBL "
    "1E4EC-1E4EFM 1E4F0-1E4F9N 1F6DCS 1F774-1F776S 1F77B-1F77FS 1F7D9S 1FA75-1FA77S 1FA87-1FA88S "
    "1FAAD-1FAAFS 1FABB-1FABDS 1FABFS 1FACE-1FACFS 1FADA-1FADBS 1FAE8S 1FAF7-1FAF8S 2B739L 2EBF0-2EE5DL "
    "31350-323AFL"
)
_NEWER = [
    (int(ends[0], 16), int(ends[-1], 16), _STAND_IN[entry[-1]])
    for entry in _UNICODE_15.split()
    for ends in [entry[:-1].split("-")]
]


class _Classes(dict):
    """For str.translate: code point -> its stand-in, worked out when first met (ASCII stays as it is)."""

    def __missing__(self, point: int) -> str:
        if point < 128:
            found = chr(point)
        elif point in _WIDE_SPACES:
            found = _SPACE
        else:
            found = next((c for lo, hi, c in _NEWER if lo <= point <= hi), None) or _STAND_IN.get(
                unicodedata.category(chr(point))[0], _OTHER
            )
        self[point] = found
        return found


_CLASSES = _Classes()
_SPACES = dict.fromkeys(_WIDE_SPACES, _SPACE)


def _compile(pattern: str) -> tuple[re.Pattern, bool]:
    r"""(compiled pattern, whether it runs on classes). Writes \p{L} as the stand-in's character set."""
    inside, out, at, on_classes = False, [], 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and pattern.startswith("\\p{", at):
            end = pattern.index("}", at)
            members = _CLASS[pattern[at + 3]]
            out.append(members if inside else f"[{members}]")
            at, on_classes = end + 1, True
            continue
        if char == "\\":
            out.append(pattern[at : at + 2])
            at += 2
            continue
        if char == "[" and not inside:
            inside = True
        elif char == "[":
            char = r"\["
        elif char == "]":
            inside = False
        out.append(char)
        at += 1
    return re.compile("".join(out), re.ASCII), on_classes


class Splitter:
    """Cuts text into the words of one pre-tokenizer; nothing is lost: "".join(words) == text."""

    def __init__(self, pre: Pre) -> None:
        self._stages = [_compile(pattern) for pattern in pre.patterns]

    def __call__(self, text: str) -> list[str]:
        plain = text.isascii()
        classes = text if plain else text.translate(_CLASSES)
        spaced = text if plain else text.translate(_SPACES)
        cuts = [0, len(text)]
        for pattern, on_classes in self._stages:
            subject, found = classes if on_classes else spaced, [0]
            for lo, hi in zip(cuts, cuts[1:], strict=False):
                for match in pattern.finditer(subject, lo, hi):
                    start, end = match.span()
                    if start > found[-1]:
                        found.append(start)
                    if end > found[-1]:
                        found.append(end)
                if hi > found[-1]:
                    found.append(hi)
            cuts = found
        return [text[lo:hi] for lo, hi in zip(cuts, cuts[1:], strict=False)]
