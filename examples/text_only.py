"""Fine-tune a text-only LLM without forgetting: a tokenizer instead of a processor, everything else is the same."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dowser_pl import ModelDowser, Probe, choose_masks, measure_importance, train_only

QUESTIONS = {"what is 2 plus 3 ?": "red", "what is 4 plus 1 ?": "blue"}  # new facts, to see that something is learnt


def main(folder: str = "HuggingFaceTB/SmolLM2-135M-Instruct", out: str = "runs/text_only", steps: int = 20) -> str:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    importance = measure_importance(model, tokenizer, probe=Probe(num_prompts=16), cache_dir=f"{out}/cache")
    masks = choose_masks(importance, ModelDowser(update_ratio=0.1))

    texts = [f"{question} {answer}" for question, answer in QUESTIONS.items()]
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(device)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with train_only(model, masks) as trained:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
        for step in range(steps):
            loss = model(**batch, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 0:
                print(f"step {step}: loss {loss.item():.3f}")
        Path(out).mkdir(parents=True, exist_ok=True)
        trained.save_patch(f"{out}/patch.safetensors")
        return trained.frozen_digest  # the same before and after: nothing else moved


if __name__ == "__main__":
    main()
