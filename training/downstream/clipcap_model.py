"""ClipCap (https://arxiv.org/abs/2111.09734): vectors of an image become the first tokens of a language model.

Axes: N images, V vectors of an image, D their width, K prefix tokens, L tokens of text, W width of the language model.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutput

UNTRAINED = -100  # label of a token that is not learned, as torch's cross entropy has it


@strict
class ClipCapConfig(PreTrainedConfig):
    """Sizes of the prefix, and the language model's configuration.

    Args:
        text_config: Configuration of a causal language model.
        num_vectors: V, the number of vectors of an image.
        vector_size: D, their width.
        prefix_length: K, the number of tokens that they become.
        freeze_language_model: train the head alone.
    """

    model_type = "clipcap"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type=GPT2Config.model_type)}

    text_config: dict | PreTrainedConfig | None = None
    num_vectors: int = 1
    vector_size: int = 512
    prefix_length: int = 10
    freeze_language_model: bool = False


class ClipCapHead(nn.Module):
    """ClipCap's MLP: one hidden layer of half the width of what comes out, and a tanh.

    It reads the V vectors of an image side by side and always writes K tokens, so that the language model reads
    equally much whatever V is.
    """

    def __init__(self, config: ClipCapConfig, width: int) -> None:
        super().__init__()
        inside, outside = config.num_vectors * config.vector_size, config.prefix_length * width
        self.prefix_length = config.prefix_length
        self.fc1 = nn.Linear(inside, outside // 2)
        self.fc2 = nn.Linear(outside // 2, outside)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (N, V, D) to (N, K, W)."""
        return self.fc2(torch.tanh(self.fc1(vectors.flatten(1)))).unflatten(1, (self.prefix_length, -1))


class ClipCapModel(PreTrainedModel):
    """A language model that goes on from the prefix which the vectors of an image become."""

    config: ClipCapConfig
    config_class = ClipCapConfig
    base_model_prefix = "clipcap"
    main_input_name = "vectors"
    accepts_loss_kwargs = False  # its loss is a mean over the batch

    def __init__(self, config: ClipCapConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.language_model: Any = (
            AutoModelForCausalLM.from_config(config.text_config) if language_model is None else language_model
        )
        self.head = ClipCapHead(config, self.language_model.get_input_embeddings().embedding_dim)
        if config.freeze_language_model:
            self.language_model.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> "ClipCapModel":
        """Switch to training, but for a language model that is frozen: it drops nothing."""
        super().train(mode)
        if self.config.freeze_language_model:
            self.language_model.eval()
        return self

    def forward(
        self, vectors: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> CausalLMOutput:
        """Give the logits of each token of texts, from the image and the tokens before.

        Args:
            vectors: (N, V, D).
            input_ids: (N, L).
            attention_mask: (N, L), zero where a text is padded.
            labels: (N, L), `input_ids` with `UNTRAINED` where a token is not learned.

        Returns:
            `logits` (N, L, vocabulary), of the token at each position of the text; `loss` with `labels`.
        """
        embeds, mask = self._with_prefix(vectors, input_ids, attention_mask)
        logits = self.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        logits = logits[:, self.config.prefix_length - 1 : -1]
        loss = (
            None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNTRAINED)
        )
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def caption(self, vectors: Tensor, prompt: Tensor, **options: Any) -> Tensor:
        """Write a text for each image: (N, V, D) to token ids (N, L).

        Args:
            vectors: (N, V, D).
            prompt: Token ids (L,) that all texts begin with; there may be none.
            options: Options of transformers' `generate`.
        """
        tokens = prompt.to(vectors.device).expand(len(vectors), -1)
        embeds, mask = self._with_prefix(vectors, tokens, torch.ones_like(tokens))
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, **options)

    def _with_prefix(self, vectors: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        prefix = self.head(vectors)
        embeds = torch.cat([prefix, self.language_model.get_input_embeddings()(tokens)], dim=1)
        return embeds, torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)


# By this name transformers finds the configuration beside a tokenizer that it loads.
AutoConfig.register(ClipCapConfig.model_type, ClipCapConfig, exist_ok=True)
