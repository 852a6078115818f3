"""What transformers' Trainer and TRL's trainers are both told: the workload's hyperparameters, and to write nothing."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads import Job

SEED = 0


def training_arguments(job: Job) -> dict[str, Any]:
    """One pass over the rows. AdamW, a constant learning rate, gradients clipped at 1: the same for every system."""
    return {
        "output_dir": str(job.out / "trainer"),
        "per_device_train_batch_size": job.workload.batch,
        "num_train_epochs": 1,
        "learning_rate": job.workload.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": job.device != "cpu",
        "use_cpu": job.device == "cpu",
        "seed": SEED,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device != "cpu",
    } | (job.options or {})


def lora_config(job: Job) -> Any:
    from peft import LoraConfig

    assert job.workload.rank
    return LoraConfig(
        r=job.workload.rank,
        lora_alpha=job.workload.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
