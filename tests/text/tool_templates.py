"""Small templates with the constructions that real ones have for calls, thoughts and ends, each written once with
generation tags: what the tags hold is what is to be learned, and `plain` takes them away.
"""
# ruff: noqa: E501 (chat templates as they are)

import re

# The prompt opens a thought; earlier turns lose theirs; an empty thought is before an answer without one.
OPENED = """{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\n' }}{%- for t in tools %}{{- t | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content or '' %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and thought %}{{- '<think>\n' }}{%- generation %}{{- thought + '\n</think>\n\n' }}{%- endgeneration %}
{%- elif loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- generation %}{{- content }}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>\n<function=' + c.function.name + '>\n' }}{%- for k, v in c.function.arguments | items %}{{- '<parameter=' + k + '>\n' }}{{- v if v is string else v | tojson }}{{- '\n</parameter>\n' }}{%- endfor %}{{- '</function>\n</tool_call>\n' }}{%- endfor %}
{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"""

# Calls only where content is null, arguments are joined as text, no prompt behind a tool's answer, no tools shown.
NULLED = """{%- set ns = namespace(tool=false, system='') %}{%- for m in messages %}{%- if m.role == 'system' %}{%- set ns.system = m.content %}{%- endif %}{%- endfor %}{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{%- set ns.tool = false %}{{- '<|user|>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none %}{%- if not ns.tool %}{{- '<|assistant|>' }}{%- endif %}{%- set ns.tool = false %}{%- generation %}
{%- for c in m.tool_calls %}{{- '<|call|>' + c.type + '<|sep|>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}{%- endfor %}{{- '</s>' }}{%- endgeneration %}
{%- elif m.role == 'assistant' %}{%- if not ns.tool %}{{- '<|assistant|>' }}{%- endif %}{%- set ns.tool = false %}{%- generation %}{{- m.content.split('</think>')[-1] + '</s>' }}{%- endgeneration %}
{%- elif m.role == 'tool' %}{%- set ns.tool = true %}{{- '<|result|>' + m.content + '<|sep|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{- '<|assistant|><think>\n' }}{%- endif %}"""

# A turn ends with nothing but the next header; an answer without a thought begins with the end of one.
HEADERS = """<|begin|>{%- if tools %}{{- '<|system|>\n' }}{%- for t in tools %}{{- t | tojson(ensure_ascii=False) + '\n' }}{%- endfor %}{%- endif %}
{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<|assistant|>' }}
{%- if m.reasoning_content and loop.index0 > ns.last %}{{- '<think>' }}{%- generation %}{{- m.reasoning_content | trim + '</think>' }}{%- endgeneration %}{%- else %}{{- '</think>' }}{%- endif %}
{%- generation %}{{- (m.content or '') | trim }}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function.name }}{%- for k, v in c.function.arguments.items() %}{{- '<key>' + k + '</key><value>' }}{{- v if v is string else v | tojson }}{{- '</value>' }}{%- endfor %}{{- '</tool_call>' }}{%- endfor %}{%- endgeneration %}
{%- elif m.role == 'tool' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|observation|>' }}{%- endif %}{{- '<r>' + m.content + '</r>' }}
{%- elif m.role == 'system' %}{{- '<|system|>' + m.content }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|><think>' }}{%- endif %}"""

# Each kind of speech in a channel of its own, which the model names itself; another end in the middle than at the end.
CHANNELS = """{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|start|>assistant' }}
{%- generation %}{%- if m.thinking and loop.last %}{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{%- endif %}
{%- if m.tool_calls %}{{- ' to=' + m.tool_calls[0].function.name + '<|channel|>commentary<|message|>' }}{{- m.tool_calls[0].function.arguments | tojson }}{{- '<|call|>' }}
{%- elif loop.last %}{{- '<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- else %}{{- '<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endgeneration %}
{%- elif m.role == 'tool' %}{{- '<|start|>tool<|message|>' }}{{- m.content | tojson }}{{- '<|end|>' }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

# No prompt at all; the tools are before the last question; calls as a list of JSON with the function's own keys.
BRACKETS = """{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{%- if tools and loop.index0 == ns.last %}{{- '[TOOLS]' }}{{- tools | tojson }}{{- '[/TOOLS]' }}{%- endif %}{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{%- generation %}{{- m.content or '' }}{%- if m.tool_calls %}{{- '[CALLS][' }}{%- for c in m.tool_calls %}{{- c.function | tojson }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}{%- endif %}{{- eos_token }}{%- endgeneration %}
{%- elif m.role == 'tool' %}{{- '[RESULT]' + m.content + '[/RESULT]' }}
{%- elif m.role == 'system' %}{{- '[SYS]' + m.content + '[/SYS]' }}{%- endif %}
{%- endfor %}"""

# The arguments printed as they are, a space behind the header, a line before the end.
RAW = """{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- 'assistant:' }}{%- generation %}{{- ' ' + (m.content or '') }}{%- for c in m.tool_calls or [] %}<function={{ c.function.name }}>{{ c.function.arguments }}</function>{%- endfor %}{{- '\n\n<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- m.role + ': ' + m.content + '\n\n<|im_end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"""

# Tools' answers are part of the model's turn, which one end closes; JSON of ASCII; the prompt closes an empty thought.
INLINE = """{%- for t in tools or [] %}{{- '<|tool|>' }}{{- t | tojson(ensure_ascii=True) }}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|response|>' }}{{- m.content | tojson(ensure_ascii=True) }}{{- '<|answered|>' }}
{%- elif m.role == 'assistant' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|turn|>model\n' }}{%- endif %}
{%- generation %}{%- if m.reasoning %}{{- '<thought>\n' + m.reasoning + '\n</thought>' }}{%- endif %}{{- m.content or '' }}
{%- for c in m.tool_calls or [] %}{{- '<|call|>' + c.function.name }}{{- c.function.arguments | tojson(ensure_ascii=True) }}{%- endfor %}{{- '<|done|>' if m.tool_calls else '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- '<|turn|>' + m.role + '\n' + m.content + '<|im_end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<|turn|>model\n<thought>\n</thought>' }}{%- endif %}"""

TAGGED = {
    "opened": OPENED,
    "nulled": NULLED,
    "headers": HEADERS,
    "channels": CHANNELS,
    "brackets": BRACKETS,
    "raw": RAW,
    "inline": INLINE,
}
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|observation|>",
    "<|call|>",
    "<|sep|>",
    "<|result|>",
    "<|begin|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "[TOOLS]",
    "[/TOOLS]",
    "[INST]",
    "[/INST]",
    "[CALLS]",
    "[RESULT]",
    "[/RESULT]",
    "[SYS]",
    "[/SYS]",
    "<|tool|>",
    "<|turn|>",
    "<|response|>",
    "<|answered|>",
    "<|done|>",
    "<s>",
    "</s>",
]
#: the end tokens of each, and its own end of turn
ENDS = {
    "opened": ["<|im_end|>"],
    "nulled": ["</s>"],
    "headers": ["<|user|>", "<|observation|>"],
    "channels": ["<|return|>", "<|call|>"],
    "brackets": ["</s>"],
    "raw": ["<|im_end|>"],
    "inline": ["<|im_end|>", "<|done|>"],
}


def plain(source: str) -> str:
    return re.sub(
        r"\{%-? (?:end)?generation %\}", lambda tag: "{%- if true %}{%- endif %}" if "-" in tag[0] else "", source
    )
