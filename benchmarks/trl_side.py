"""TRL's DPOTrainer on given pairs, for the comparisons in this folder; it runs in an environment of TRL's own.

    python -m venv trl && trl/bin/pip install trl==1.16.0

Reads its settings as JSON on standard input and ends with a line of JSON: losses and gradient norms of all steps,
seconds from the end of the first step on, peak memory in GiB.
"""

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # pyright: ignore


class Clock(TrainerCallback):
    """Starts when the first step, which warms up, is done."""

    began = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.began, self.cpu = time.perf_counter(), time.process_time()


def main(
    model: str,
    pairs: list[dict[str, str]],
    batch_size: int,
    accumulation: int,
    steps: int,
    max_length: int,
    lr: float,
    threads: int,
    activation_checkpointing: bool,
) -> None:
    torch.set_num_threads(threads)
    clock = Clock()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_length=max_length,
            learning_rate=lr,
            lr_scheduler_type="constant",
            max_steps=steps,
            beta=0.1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=activation_checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
    )
    trainer._get_train_sampler = lambda *_: None  # in the order given
    trainer.train()
    seconds, cpu = time.perf_counter() - clock.began, time.process_time() - clock.cpu
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    figures = {
        "losses": [entry["loss"] for entry in logged],
        "gradient_norms": [entry["grad_norm"] for entry in logged],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    sys.stdout.write("\n" + json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(**json.load(sys.stdin))
