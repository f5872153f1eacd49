"""Zero-shot CLIP with hand-written prompts (Radford et al., 2021)."""

from npt.encoders import ClassPrompts
from npt.encoders.openai import CLIP
from npt.trainers.base import PromptTrainer
from npt.trainers.prompts import PromptLearner, readable, tokenize

DEFAULT = "a photo of a {}."
TEMPLATES = {  # DATASET.NAME -> prompt, as CoOp and its successors use them
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "StanfordCars": "a photo of a {}.",
    "Food101": "a photo of {}, a type of food.",
    "SUN397": "a photo of a {}.",
    "Caltech101": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNet": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetV2": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
}


class ZeroshotCLIP(PromptTrainer):
    """Learns nothing: training goes straight to the test."""

    def build_prompts(
        self, classnames: list[str], clip_model: CLIP
    ) -> tuple[PromptLearner, ClassPrompts]:
        template = TEMPLATES.get(self.cfg.DATASET.NAME, DEFAULT)
        texts = [template.format(readable(name)) for name in classnames]
        print(f'Prompts: "{template}"')
        return PromptLearner(), ClassPrompts(tokenize(texts, classnames))

    def train(self) -> None:
        if not self.cfg.TEST.NO_TEST:
            self.test()
