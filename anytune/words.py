"""Words: Python's for the command line's flags, and what other libraries' words are answered with."""

from __future__ import annotations

import re

ARGUMENTS = {  # flag -> what Python calls it, where that is not the flag with underscores
    "-m": "model",
    "-f": "data",
    "-c": "context",
    "-ub": "ubatch",
    "-b": "batch",
    "-n": "max_tokens",
    "-p": "prompt",
    "-o": "output",
    "-t": "threads",
    "--lr": "learning_rate",
    "--num-epochs": "epochs",
    "--lr-scheduler": "scheduler",
    "--adam-beta1": "beta1",
    "--adam-beta2": "beta2",
    "--adam-eps": "eps",
    "--val-file": "val_data",
    "--output-adapter": "output",
    "--lora": "adapter",
    "--full": "full=Full()",
    "--lora-rank": "Lora(rank=…)",
    "--lora-alpha": "Lora(alpha=…)",
    "--lora-modules": "Lora(modules=…)",
    "--lora-dropout": "Lora(dropout=…)",
    "--lora-seed": "Lora(seed=…)",
    "--lora-plus-ratio": "Lora(plus_ratio=…)",
    "--rslora": "Lora(rslora=True)",
    "--train-modules": "Full(modules=…)",
    "--train-layers": "Full(layers=…)",
    "--optimizer": "Full(optimizer=…)",
    "--allow-requantize": "requantize=True",
    "--force": "force=True",
    "--raw": "chat=False",
    "--temp": "temperature",
    "--gpus": "torchrun --nproc-per-node",
    "--chat": "chat=True",
    "--accept-differences": "accept_differences=True",
    **{
        f"--{role}-key": f"columns={{{role!r}: …}}"
        for role in ("messages", "text", "prompt", "completion", "system", "tools", "context", "reasoning")
    },
}
PLAIN = (  # flags whose argument is the same word
    *("learning-rate", "lr-min", "max-steps", "warmup-ratio", "warmup-steps", "weight-decay", "max-grad-norm", "seed"),
    *("val-split", "val-every", "early-stop", "checkpoint-save-steps", "checkpoint-save-dir", "keep-checkpoints"),
    *("resume-from", "report-to", "run-name", "run-dir", "loss", "assistant-loss-only", "overflow", "format", "device"),
    *("dtype", "tf32", "threads", "memory", "max-binding", "shard", "output-type", "chat-template", "positions"),
    *("exact", "imatrix", "system", "output", "chunks", "context", "tensor-type", "top-k", "top-p", "min-p"),
    *("repeat-penalty", "repeat-last-n", "type"),
)
SAYS_NOTHING = {"bias": "none", "task_type": "CAUSAL_LM", "inference_mode": False, "fan_in_fan_out": False}  # of peft's
INSTEAD = {  # words of peft, transformers and trl without a counterpart -> what serves here
    "do_sample": "temperature=0.0 takes the likeliest token, a higher temperature samples",
    "num_beams": "there is no beam search",
    "per_device_train_batch_size": "batch is counted in tokens of an optimizer step, ubatch in tokens at once",
    "gradient_accumulation_steps": "batch is counted in tokens of an optimizer step, ubatch in tokens at once",
    "gradient_checkpointing": "memory, the most that may be taken, decides what is kept and what is recomputed",
    "bf16": "dtype is an argument of anytune.load",
    "fp16": "dtype is an argument of anytune.load",
    "torch_dtype": "dtype is an argument of anytune.load",
    "load_in_4bit": "the model is the GGUF file, whose quantized blocks are used as they are",
    "load_in_8bit": "the model is the GGUF file, whose quantized blocks are used as they are",
    "device_map": "device, such as device='cuda'",
    "optim": "AdamW trains adapters; Full(optimizer=…) chooses for the model's own weights",
    "packing": "examples are always packed, and never see one another",
    "tokenizer": "the tokenizer is in the GGUF file",
    "processing_class": "the tokenizer is in the GGUF file",
    "logging_steps": "every step is a row of metrics; progress=… is called with each",
    "output_dir": "run_dir is the run's folder, output where the result goes besides",
}
_NAMES = ARGUMENTS | {f"--{word}": word.replace("-", "_") for word in PLAIN}
_BESIDE = re.compile(r" \((--[a-z0-9-]+)\)")  # a flag beside the argument's name
_FLAG = re.compile(r"(?<![\w-])(--?[a-z][a-z0-9-]*)(?![\w-])(?: (auto|all|same|error)\b)?")


def python_words(text: str) -> str:
    """A message with Python's arguments for the command line's flags. Command lines in `backticks` stay."""

    def named(found: re.Match) -> str:
        name, value = _NAMES.get(found[1]), found[2]
        if name is None:
            return found[0]
        return f"{name}={value!r}" if value and "=" not in name else name + (f" {value}" if value else "")

    text = _BESIDE.sub(lambda found: "" if found[1] in _NAMES else found[0], text)
    parts = re.split(r"(`[^`]*`)", text.replace("the same command", "the same call"))
    return "".join(part if part.startswith("`") else _FLAG.sub(named, part) for part in parts)
