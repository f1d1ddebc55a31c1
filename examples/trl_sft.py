"""Fine-tune a text-only LLM without forgetting under TRL's SFTTrainer: the same callback."""

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from dowser_pl import DowserCallback, ModelDowser, Probe

QUESTIONS = {"what is 2 plus 3 ?": "red", "what is 4 plus 1 ?": "blue"}  # new facts, to see that something is learnt


def main(folder: str = "HuggingFaceTB/SmolLM2-135M-Instruct", out: str = "runs/trl_sft") -> str:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in QUESTIONS.items()
    ]
    dowser = DowserCallback(ModelDowser(update_ratio=0.1), probe=Probe(num_prompts=16))
    trainer = SFTTrainer(
        model,
        SFTConfig(
            out,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=3e-3,
            save_strategy="epoch",
            report_to="none",
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(rows * 8),
        processing_class=tokenizer,
        callbacks=[dowser],
    )
    trainer.train()
    frozen, trained = dowser.counts
    print(f"{trained.changed:,} entries moved; {frozen.changed} of {frozen.entries:,} frozen ones")
    return dowser.frozen_digest["after"]


if __name__ == "__main__":
    main()
