"""What pruning and cropping do to sentence embeddings, in transformers: the part of the demo that needs torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from modelopt_rs.interop.transformers import from_pretrained
from modelopt_rs.prune import InputStats

__all__ = ["SENTENCES", "Embeddings"]

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "A woman is playing the violin.",
    "Two men pushed carts through the woods.",
    "A monkey is playing drums.",
    "A cheetah is running behind its prey.",
    "The stock market fell sharply today.",
    "Scientists have found water on the moon.",
    "How do I reset my password?",
    "The committee will vote on the proposal next week.",
    "Add the onions and fry them until golden.",
    "The train to Vienna leaves at nine.",
    "She wrote her first novel at the age of twenty.",
    "The patient was treated with antibiotics.",
    "A small wheel that makes trained models smaller.",
    "It rained all night, and the river rose.",
    "The lawyer read the contract twice.",
    "Photosynthesis turns light into sugar.",
]
# What calibrates is none of the sentences above: one part of each line makes a sentence.
PARTS = (
    "A teacher|The old dog|Three children|The company|A young doctor|Our team|The government|Many tourists|The new law"
    "|Some students|The computer|A storm",
    "opened the door|is reading a long letter|sold the house|will repair the bridge|has grown quickly|lost the game"
    "|explained the results|wants to learn French|bought a cheap ticket|asked for more money|painted the wall blue"
    "|changed the price of oil|wrote a short program|cannot find the key",
    "today|before the war|near the station|with great care|without any help|last winter|after the meeting|by mistake"
    "|in a small village|because of the rain|on the way home|at the university",
)
BATCH, CALIBRATION = 32, 256


class Embeddings:
    """A model's embeddings of 20 sentences, with which those of other models are compared.

    Parameters
    ----------
    model : Path
        A Hugging Face directory with its tokenizer.
    """

    def __init__(self, model: Path) -> None:
        with _quiet():
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            self._model = transformers.AutoModel.from_pretrained(model).eval()
        self._expected = self._embed(self._model)

    def compare(self, model: Path) -> tuple[float, float]:
        """Return the mean and the lowest cosine between the embeddings of the two models."""
        with _quiet():
            other = from_pretrained(transformers.AutoModel, model).eval()
        cosine = (self._embed(other) * self._expected).sum(1)
        return float(cosine.mean()), float(cosine.min())

    def calibrate(self) -> dict[str, InputStats]:
        """Return what the linear layers of the encoder read, by their names."""
        stats: dict[str, InputStats] = {}
        real = torch.zeros(0)
        hooks = []
        for name, layer in self._model.named_modules():
            if not isinstance(layer, torch.nn.Linear) or "encoder" not in name:
                continue
            stats[name] = InputStats(layer.in_features)

            def hook(layer: Any, inputs: Any, name: str = name) -> None:
                stats[name].update(inputs[0][real].numpy())

            hooks.append(layer.register_forward_pre_hook(hook))
        sentences = [" ".join(parts) + "." for parts in product(*(line.split("|") for line in PARTS))]
        sentences = sentences[:: len(sentences) // CALIBRATION]
        for begin in range(0, len(sentences), BATCH):
            words = self._words(sentences[begin : begin + BATCH])
            real = words["attention_mask"].bool()  # padding is not counted
            with torch.no_grad():
                self._model(**words)
        for hooked in hooks:
            hooked.remove()
        return stats

    def _words(self, sentences: list[str]) -> Any:
        return self._tokenizer(sentences, padding=True, return_tensors="pt")

    def _embed(self, model: Any) -> Any:
        """Mean-pooled, of length 1."""
        words = self._words(SENTENCES)
        with torch.no_grad():
            hidden = model(**words).last_hidden_state
        mask = words["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress and without notes about weights that are not asked for."""
    logging = transformers.utils.logging
    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()
