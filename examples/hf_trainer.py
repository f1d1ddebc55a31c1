"""Fine-tune without forgetting under a Hugging Face Trainer: one callback, and a patch beside the model."""

import torch
from transformers import Trainer, TrainingArguments

from dowser_pl import DowserCallback, ModelDowser, Probe, load_model, load_processor

QUESTIONS = {"what is 2 plus 3 ?": "red", "what is 4 plus 1 ?": "blue"}  # new facts, to see that something is learnt


def main(folder: str = "embedded:world", out: str = "runs/hf_trainer") -> str:
    model = load_model(folder, dtype="float32")  # or AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    texts = [f"{question} {answer}" for question, answer in QUESTIONS.items()]
    rows = [processor.tokenizer(text)["input_ids"] for text in texts * 8]

    dowser = DowserCallback(ModelDowser(update_ratio=0.1), probe=Probe(num_prompts=16))
    trainer = Trainer(
        model,
        TrainingArguments(
            out,
            num_train_epochs=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            learning_rate=3e-3,
            save_strategy="epoch",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        processing_class=processor,
        callbacks=[dowser],
    )
    trainer.train()  # or resume_from_checkpoint=True, with the masks of the checkpoint
    frozen, trained = dowser.counts
    print(f"{trained.changed:,} entries moved; {frozen.changed} of {frozen.entries:,} frozen ones")
    return dowser.frozen_digest["after"]


if __name__ == "__main__":
    main()
