"""The cells of the works-with tables: their order, and why some are untested."""

from __future__ import annotations

from typing import NamedTuple

Entry = tuple[str, "str | None", "str | None"]  # table, row, column; None is every one
SERVER = "needs a vLLM server"
# What no test shows, and why. None is every row, or every column; the exact entry goes first.
UNTESTED: dict[Entry, str] = {
    ("trainers", "AsyncGRPO", None): f"{SERVER}, which it sends its weights to",
    ("trainers", "AsyncDistillation", None): f"{SERVER} that samples and another that teaches",
    ("trainers", "ServerDistillation", None): f"{SERVER} for the teacher's log-probabilities",
    ("ways", "padding-free", "DPO"): "TRL has none here",
    ("ways", "padding-free", "GRPO"): "TRL has none here",
    ("ways", "packing bfd", None): "TRL has none here",
    ("ways", "packing wrapped", None): "TRL has none here",
    ("ways", "completion-only loss", None): "TRL has no such switch here: always so",
    ("ways", "assistant-only loss", None): "TRL has no such switch here: always so",
    ("ways", "activation offloading", "GRPO"): "TRL has none here",
    ("ways", "vLLM in this process", None): "does not generate",
    ("ways", "vLLM as a server", None): "does not generate",
    ("ways", "a GPU: CUDA, Triton kernels", None): "no GPU was at hand",
    ("ways", "FSDP 1", None): "does not run on a CPU, and is deprecated",
    ("ways", "tensor, context, sequence or pipeline parallel", None): "not run yet",
    ("ways", "HQQ by its configuration", None): "transformers does not load it on a CPU yet",
}


class Table(NamedTuple):
    """What is above a table, and its wished order; what is not in it comes last, by name."""

    caption: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]


TABLES = {
    "trainers": Table(
        "Trainers of TRL. *LoRA*, *full*: each step has the gradient of a direct computation; "
        "*weight 0*: training is bit-identical; *any split*: gradients do not depend on how rows "
        "are split into micro-batches; *sides*: the terms on one side of a preference alone "
        "(`emoreg_sides`); *host's base*: the base is the trainer's own reference.",
        "trainer",
        (
            "SFT", "DPO", "KTO", "GRPO", "RLOO", "Reward", "Distillation", "A2PO", "CPO", "GKD",
            "GMPO", "GOLD", "IWOPD", "OnlineDPO", "ORPO", "SDFT", "SDPO", "TPO", "AsyncGRPO",
            "AsyncDistillation", "ServerDistillation",
        ),
        (
            "LoRA", "full", "weight 0", "any split", "evaluation", "sides", "host's base",
            "2 processes",
        ),
    ),
    "ways": Table(
        "Ways of training. *Tested*: the gradient of the terms alone is that of a direct "
        "computation, or of the plain way; quantised and half precision within their rounding. "
        "All on a CPU: vLLM by a stand-in for its engine, Liger's kernels interpreted, activations "
        "offloaded from CPU to CPU.",
        "way",
        (
            "LoRA", "DoRA", "rsLoRA", "IA3", "several adapters", "an adapter from before",
            "modules_to_save", "LoRA on MoE", "prompt tuning", "p-tuning", "prefix tuning",
            "prompt learning, anchor base", "adapters above the blocks read",
            "head or final norm only", "embeddings only", "full fine-tuning",
            "full fine-tuning, anchor base",
            "QLoRA 4-bit (bitsandbytes)", "8-bit (bitsandbytes)", "torchao int8 weights",
            "torchao int8 dynamic", "Quanto int8", "Quanto int4", "HQQ int4",
            "HQQ by its configuration",
            "float32", "bf16 autocast", "bf16 weights", "fp16 weights", "fp16 with GradScaler",
            "padded right", "padded left", "padding-free", "packing bfd", "packing wrapped",
            "completion-only loss", "assistant-only loss", "conversational data", "tools",
            "short last window", "average_tokens_across_devices off",
            "no checkpointing", "non-reentrant checkpointing", "re-entrant checkpointing",
            "every_n_layers", "checkpointing as TRL does it", "activation offloading",
            "TRL's own precision and checkpointing",
            "torch.compile", "torch.compile, eval_on_start", "Liger kernels",
            "mixture of experts with auxiliary loss", "vision-language model", "tied embeddings",
            "encoder-only model", "encoder-decoder model",
            "vLLM in this process", "vLLM as a server", "logging",
            "DDP", "FSDP 2", "FSDP 2 as transformers shards it", "ZeRO-1", "ZeRO-2", "ZeRO-3",
            "several GPUs in one process (DataParallel)", "accelerate launch --cpu, 2 processes",
            "FSDP 1", "tensor, context, sequence or pipeline parallel",
            "a GPU: CUDA, Triton kernels",
        ),
        ("SFT", "DPO", "GRPO"),
    ),
}  # fmt: skip
