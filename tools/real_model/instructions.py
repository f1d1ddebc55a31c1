"""Instructions as people give them to an assistant, and what a model says to them."""

import re
from collections.abc import Sequence

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

NUM_TOKENS = 32  # of an answer
_SENTENCE = re.compile(r".*?[^\d\s][.!?](?=\s|$)", re.DOTALL)  # the 1. of a list ends none


def _each(pattern: str, words: str) -> list[str]:
    return [pattern.format(word) for word in words.split(",")]


INSTRUCTIONS: tuple[str, ...] = (
    *_each("What is {}?", "3 + 4,8 + 5,9 - 2,15 - 6,6 times 7,12 divided by 3,20 + 30,100 - 1,half of 18,7 + 7"),
    *_each("What is the opposite of {}?", "cold,small,slow,sad,dark,young,wet,loud,empty,rich"),
    *_each("What comes next: {}?", "5 6 7 8,3 6 9 12,B C D E,Tuesday Wednesday Thursday,April May June,10 9 8 7"),
    *_each('How do you say "{}" in Spanish?', "cat,good morning,house,friend,bread"),
    *_each('Translate "{}" into French.', "book,good night,the sun,milk,I love you"),
    *_each("What color is {}?", "the sun,the ocean,coal,a strawberry,a frog,milk"),
    *_each('What is the plural of "{}"?', "foot,tooth,leaf,story,sheep"),
    *_each('What is the past tense of "{}"?', "see,take,write,sing,buy,swim"),
    *_each("Name a {}.", "fruit,country in Africa,musical instrument,planet,sport,bird that cannot fly,metal,tree"),
    *_each("Write a sentence with the word {}.", "river,bicycle,music,garden,winter,teacher"),
    *_each("Explain in one sentence what {} is.", "a volcano,electricity,a democracy,the internet,evolution,a budget"),
    *_each("Who {}?", "painted the Mona Lisa,wrote Hamlet,discovered penicillin,was the first person on the moon"),
    *_each("How many {}?", "hours are in a day,months are in a year,sides does a triangle have,continents are there"),
    *_each(
        "What do you call {}?",
        "a baby dog,a doctor for teeth,frozen water,a person who flies planes,a house for bees,the study of stars",
    ),
    *_each("Give me a tip for {}.", "sleeping better,learning a language,saving money,cooking rice,staying healthy"),
    *_each("Rewrite in capital letters: {}", "good day,open the door,blue sky"),
    *_each("Answer yes or no: {}?", "is ice cold,can fish fly,is a whale a mammal,is the moon larger than the earth"),
    *_each("What is {} used for?", "a hammer,a telescope,an umbrella,a calendar,a microscope,salt"),
    *_each("Where would you find {}?", "a penguin,the Eiffel Tower,a cactus,the Great Wall,a pharmacist"),
    *_each("List three {}.", "colors,vegetables,animals that live in the sea,things in a kitchen,cities in Europe"),
    *_each("Describe {} in a few words.", "the desert,a thunderstorm,a library,happiness,a market"),
    *_each("Write the first line of {}.", "a poem about the sea,a story about a dragon,a letter to a friend"),
    *_each("What is the chemical symbol for {}?", "gold,oxygen,iron,carbon"),
    *_each("Which is heavier: {}?", "a car or a bicycle,a cat or a horse,a stone or a feather"),
)


@torch.no_grad()
def first_sentences(model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: Sequence[str]) -> list[str]:
    """What the model says to each, greedily, to the end of its first sentence, and no longer than 32 tokens."""
    return [_first_sentence(_answer(model, processor, each)) for each in asked]


def _answer(model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: str) -> str:
    turns = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=NUM_TOKENS)[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(said, skip_special_tokens=True)).strip()


def _first_sentence(text: str) -> str:
    found = _SENTENCE.match(text)
    return found[0] if found else text
