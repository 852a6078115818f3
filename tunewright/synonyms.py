"""What other libraries and papers call things, and where they are in a recipe."""

from __future__ import annotations

KEYS = {
    "training.learning_rate": ["lr", "peak_lr", "max_lr"],
    "training.rate_multiplier": ["learning_rate_multiplier"],
    "training.epochs": ["num_train_epochs", "num_epochs", "n_epochs", "max_epochs"],
    "training.max_steps": ["num_steps", "num_train_steps", "max_train_steps", "iters", "iterations"],
    "training.batch": [
        "batch_size", "per_device_train_batch_size", "train_batch_size", "global_batch_size", "micro_batch_size",
        "gradient_accumulation_steps", "gradient_accumulation", "grad_accum", "accumulation_steps",
    ],
    "training.warmup": ["warmup_steps", "warmup_ratio", "num_warmup_steps", "lr_warmup_steps"],
    "training.schedule": ["lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"],
    "training.layer_decay": ["layerwise_lr_decay", "llrd"],
    "training.gradient_clip": ["max_grad_norm", "grad_clip", "clip_grad_norm", "gradient_clipping"],
    "training.activation_checkpointing": ["gradient_checkpointing"],
    "training.precision": ["bf16", "fp16", "dtype", "torch_dtype", "mixed_precision"],
    "training.optimizer": ["optim"],
    "training.processes": ["num_processes", "nproc_per_node", "gpus"],
    "training.evaluate_every": ["eval_steps", "eval_every", "eval_interval", "logging_steps"],
    "training.checkpoint_every": ["save_steps", "save_every", "save_interval"],
    "training.patience": ["early_stopping_patience", "early_stopping"],
    "training.track": ["report_to", "logger"],
    "data.max_length": ["max_seq_length", "max_seq_len", "cutoff_len", "sequence_length", "seq_len", "context_length"],
    "data.train": ["dataset", "dataset_name", "train_file", "train_dataset", "training_file"],
    "data.validation": ["eval_dataset", "validation_file", "validation_split", "val_size", "eval_file"],
    "data.augment": ["augmentation", "augmentations"],
    "method.rank": ["r", "lora_r", "lora_rank"],
    "method.alpha": ["lora_alpha"],
    "method.dropout": ["lora_dropout"],
    "method.targets": ["target_modules", "lora_target_modules", "lora_target"],
    "method.dora": ["use_dora"],
    "method.rslora": ["use_rslora"],
    "objective.samples": ["num_generations", "group_size"],
    "objective.kl_coefficient": ["kl_coef", "kl_beta"],
    "objective.temperature": ["sampling_temperature"],
    "evaluation.max_new_tokens": ["generation_max_length"],
    "base": ["model", "model_name", "model_name_or_path", "base_model", "pretrained_model_name_or_path"],
    "output": ["output_dir", "out_dir", "save_dir"],
}  # fmt: skip
"""Names of options, by our own path."""

NAMES = {
    "objective": {
        "supervised": ["sft", "cross_entropy", "instruction_tuning"],
        "reward": ["reward_model", "bradley_terry", "rm"],
        "rl": ["rlhf", "rlvr", "reinforcement"],
    },
    "method": {
        "full": ["fft", "full_finetuning", "full_fine_tuning", "finetune"],
        "head": ["linear_probe", "linear_probing", "probe"],
        "adapter": ["adapters", "bottleneck"],
        "freeze": ["partial", "freezing"],
        "peft and method.config.peft_type: {name}": [
            "prefix_tuning", "prompt_tuning", "p_tuning", "ia3", "adalora", "loha", "lokr", "vera", "oft", "boft",
        ],
    },
}  # fmt: skip
"""Names of what is chosen, by our own name."""

ABSENT = {"qlora": "There are no 4-bit bases yet: take method.type: lora, with training.precision: bf16 on a GPU."}
"""What people look for and is not there, with what is."""
