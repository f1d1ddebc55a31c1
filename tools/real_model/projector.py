"""The only training of ours: the projector learns to show pictures of some concepts to the language model.

First by regression, every image token to the mean embedding of the concept's name, which costs next to nothing; then by
the language model's own loss of that name. Language model and vision tower stay as they are.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, mse_loss
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from real_model.llava import IMAGE

SHIPPED = Path(__file__).with_name("projector.safetensors")
Named = tuple[Image.Image, str]
_IGNORED = -100


def conversation(question: str, answer: str | None = None) -> list[dict[str, object]]:
    """A picture and a question, and its answer if there is one."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return [asked] if answer is None else [asked, said]


def train_projector(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    rows: Sequence[Named],
    question: str,
    steps: Sequence[int],
    seed: int,
    batch_size: int = 16,
    rate: float = 1e-3,
) -> None:
    """Train the projector in place: regression with Adam, then AdamW with a warm-up of 20 steps and a linear fall.

    It ends with weights that bfloat16 holds, as those that are shipped.

    Args:
        model: float32; the language model computes in bfloat16 meanwhile.
        processor: of the model.
        rows: pictures and the names of what they show.
        question: asked about each.
        steps: of the regression, and of the language model's loss.
        seed: of the order of the rows.
        batch_size: rows per step.
        rate: learning rate.
    """
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    features = picture_features(model, processor, [picture for picture, _ in rows])
    names = [name for _, name in rows]
    _regress(model, processor, features, names, steps[0])
    ids, mask, labels = _encoded(processor, question, names, features.shape[1])
    language = copy.deepcopy(model.model.language_model).to(torch.bfloat16)  # the model's own keeps every bit
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps[1]):
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - 0.95 * step / steps[1])
        words = language.embed_tokens(ids[chosen])
        is_image = (ids[chosen] == model.config.image_token_id)[..., None].expand_as(words)
        inputs = words.masked_scatter(is_image, projector(features[chosen]).to(words.dtype))
        hidden = language(inputs_embeds=inputs, attention_mask=mask[chosen], use_cache=False).last_hidden_state[:, :-1]
        targets = labels[chosen][:, 1:]
        learnt = targets != _IGNORED
        loss = cross_entropy(linear(hidden[learnt], language.embed_tokens.weight).float(), targets[learnt])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9:
            print(f"projector {step + 1}/{steps[1]}: {loss.item():.3f}", flush=True)
    model.requires_grad_(True)
    with torch.no_grad():
        for weight in projector.parameters():
            weight.copy_(weight.to(torch.bfloat16))


def load_projector(model: LlavaForConditionalGeneration, path: Path = SHIPPED) -> None:
    """Put a trained projector in place, of a file in bfloat16.

    Raises:
        RuntimeError: if it is of another size.
    """
    weights = {name: weight.to(torch.float32) for name, weight in load_file(path).items()}
    model.model.multi_modal_projector.load_state_dict(weights)


@torch.no_grad()
def picture_features(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: Sequence[Image.Image]
) -> Tensor:
    """(pictures, image tokens, width) of the vision tower's last layer: what the projector reads."""
    found = []
    for start in range(0, len(pictures), 40):
        pixels = processor.image_processor(pictures[start : start + 40], return_tensors="pt")["pixel_values"]
        layers = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        found.append(layers[model.config.vision_feature_layer][:, 1:])
    return torch.cat(found)


def _regress(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, features: Tensor, names: Sequence[str], steps: int
) -> None:
    projector, embedding = model.model.multi_modal_projector, model.get_input_embeddings()
    numbers = [torch.tensor(processor.tokenizer(" " + name, add_special_tokens=False).input_ids) for name in names]
    goal = torch.stack([embedding(each).mean(0) for each in numbers])[:, None]
    optimizer = torch.optim.Adam(projector.parameters(), lr=2e-3)
    for _ in range(steps):
        said = projector(features)
        loss = mse_loss(said, goal.expand_as(said)) / goal.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"projector: {loss.item():.3f} of the names' variance is left after the regression", flush=True)


def _encoded(
    processor: LlavaProcessor, question: str, names: Sequence[str], num_image_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token numbers, attention mask and labels, (rows, T) each, right-padded; the names carry loss."""
    tokenizer = processor.tokenizer
    start = _text(processor, question, None, num_image_tokens)
    texts = [_text(processor, question, name, num_image_tokens).removesuffix("\n") for name in names]
    asked = len(tokenizer(start, add_special_tokens=False).input_ids)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, _IGNORED)
    labels[:, :asked] = _IGNORED
    return batch["input_ids"], batch["attention_mask"], labels


def _text(processor: LlavaProcessor, question: str, answer: str | None, num_image_tokens: int) -> str:
    turns = conversation(question, answer)
    text = str(processor.apply_chat_template(turns, add_generation_prompt=answer is None))
    return text.replace(IMAGE, IMAGE * num_image_tokens)
