"""State dicts in open_clip's names, and its way to compute, written down plainly, as the oracle."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.initialization import from_official, from_open_clip

State = dict[str, Tensor]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH, PATCH, GRID, SPACE = 32, 2, 2, 64, 24, 8, 4, 16
GIVEN = {"vision_heads": HEADS, "text_heads": HEADS}
ONE = {"vision_config": {"num_branches": 1}}


def shapes() -> dict[str, tuple[int, ...]]:
    """The parameters of `open_clip.CLIP`, by name."""
    named: dict[str, tuple[int, ...]] = {
        "positional_embedding": (LENGTH, WIDTH),
        "text_projection": (WIDTH, SPACE),
        "logit_scale": (),
        "token_embedding.weight": (VOCABULARY, WIDTH),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + GRID**2, WIDTH),
        "visual.proj": (WIDTH, SPACE),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
    }
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for tower in ("", "visual."):
        for layer in range(LAYERS):
            block = f"{tower}transformer.resblocks.{layer}"
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            named |= {f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": (3 * WIDTH,)}
            named |= {f"{block}.attn.out_proj.weight": (WIDTH, WIDTH), f"{block}.attn.out_proj.bias": (WIDTH,)}
            named |= {f"{block}.mlp.c_fc.weight": (48, WIDTH), f"{block}.mlp.c_fc.bias": (48,)}
            named |= {f"{block}.mlp.c_proj.weight": (WIDTH, 48), f"{block}.mlp.c_proj.bias": (WIDTH,)}
    return named | {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.25 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}


def norm(state: State, name: str, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])


def blocks(state: State, tower: str, tokens: Tensor, mask: Tensor | None, quick: bool) -> Tensor:
    for layer in range(LAYERS):
        name = f"{tower}transformer.resblocks.{layer}"
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        weights = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({part: state[f"{name}.attn.{part}"] for part in weights})
        normed = norm(state, f"{name}.ln_1", tokens)
        tokens = tokens + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        inner = F.linear(
            norm(state, f"{name}.ln_2", tokens), state[f"{name}.mlp.c_fc.weight"], state[f"{name}.mlp.c_fc.bias"]
        )
        inner = inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)
        tokens = tokens + F.linear(inner, state[f"{name}.mlp.c_proj.weight"], state[f"{name}.mlp.c_proj.bias"])
    return tokens


def encode_image(state: State, pixel_values: Tensor, quick: bool = False) -> Tensor:
    patches = F.conv2d(pixel_values, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["visual.class_embedding"].expand(len(patches), 1, -1), patches], dim=1)
    tokens = norm(state, "visual.ln_pre", tokens + state["visual.positional_embedding"])
    tokens = blocks(state, "visual.", tokens, None, quick)
    return F.normalize(norm(state, "visual.ln_post", tokens[:, 0]) @ state["visual.proj"], dim=-1)


def encode_text(state: State, ids: Tensor, quick: bool = False) -> Tensor:
    size = ids.shape[1]
    tokens = state["token_embedding.weight"][ids] + state["positional_embedding"][:size]
    tokens = blocks(state, "", tokens, torch.full((size, size), -torch.inf).triu(1), quick)
    ends = norm(state, "ln_final", tokens)[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return F.normalize(ends @ state["text_projection"], dim=-1)


@pytest.fixture
def ids() -> Tensor:
    """End tokens at 5, 23 and 9; padded with zeros."""
    ids = torch.randint(1, VOCABULARY - 2, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate([5, 23, 9]):
        ids[row, end], ids[row, end + 1 :] = VOCABULARY - 1, 0
    return ids


OPENAI = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(24), "vocab_size": torch.tensor(64)}


@pytest.mark.parametrize("openai", [False, True], ids=["open_clip", "openai"])
@torch.no_grad()
def test_it_computes_what_open_clip_does(state: State, pixel_values: Tensor, ids: Tensor, openai: bool) -> None:
    model = from_open_clip(state | (OPENAI if openai else {}), **GIVEN, **ONE)
    output = model(pixel_values=pixel_values, input_ids=ids)
    torch.testing.assert_close(output.image_embeds, encode_image(state, pixel_values, quick=openai), **CLOSE)
    torch.testing.assert_close(output.text_embeds, encode_text(state, ids, quick=openai), **CLOSE)
    torch.testing.assert_close(output.logit_scale, state["logit_scale"].exp())


@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
@torch.no_grad()
def test_copies_are_the_source_before_training(state: State, pixel_values: Tensor, branch_type: str) -> None:
    vision = {"num_branches": 3, "branch_type": branch_type, "num_branch_layers": 2}
    found = from_open_clip(state, **GIVEN, vision_config=vision).get_image_features(pixel_values).branch_embeds
    expected = encode_image(state, pixel_values)[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(found, expected, **CLOSE)
    moved = from_open_clip(state, **GIVEN, vision_config=vision, perturbation=0.5, seed=4)
    found = moved.get_image_features(pixel_values).branch_embeds
    torch.testing.assert_close(found[:, 0], expected[:, 0], **CLOSE)
    assert (found[:, 1:] - expected[:, 1:]).abs().amax(dim=(0, 2)).min() > 1e-2


def test_wrappers_and_what_is_no_weight_change_nothing(state: State, caplog: pytest.LogCaptureFixture) -> None:
    plain = from_open_clip(state, **GIVEN, **ONE).state_dict()
    text = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")
    custom = {f"text.{name}" if name.startswith(text) else name: value for name, value in state.items()}
    custom |= {"text.attn_mask": torch.zeros(24, 24), "visual.transformer.resblocks.0.ls_1.gamma": torch.ones(WIDTH)}
    custom["logit_scale"] = state["logit_scale"][None]  # as trained with a non-scalar one
    with caplog.at_level(logging.INFO, logger="holistic_clip_hf"):
        found = from_open_clip(
            {f"module.{name}": value for name, value in custom.items()}, **GIVEN, **ONE
        ).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in plain.items())
    assert caplog.messages == ["Not weights, left aside: text.attn_mask, visual.transformer.resblocks.0.ls_1.gamma."]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_of_compilation_come_off(state: State, prefix: str) -> None:
    plain = from_open_clip(state, **GIVEN, **ONE).state_dict()
    found = from_open_clip({f"{prefix}{name}": value for name, value in state.items()}, **GIVEN, **ONE).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in plain.items())


@torch.no_grad()
def test_positions_of_long_clip_are_those_of_two_tables(state: State, ids: Tensor) -> None:
    """The first 20 of one, the others of another; its activation is OpenAI's, from whose files it was trained."""
    positions = torch.randn(state["positional_embedding"].shape, generator=torch.Generator().manual_seed(9))
    added = state["positional_embedding"].clone()
    added[20:] = positions[20:]
    model = from_open_clip(state | {"positional_embedding_res": positions}, **GIVEN, **ONE)
    found = model.get_text_features(ids).text_embeds
    expected = encode_text(state | {"positional_embedding": added}, ids, quick=True)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (1280, 16), (1664, 16)])
def test_heads_by_width(width: int, heads: int) -> None:
    tower = {name: (width if size == WIDTH else size for size in shape) for name, shape in shapes().items()}
    shape = {name: tuple(3 * width if size == 3 * WIDTH else size for size in sizes) for name, sizes in tower.items()}
    weights = {name: torch.zeros(sizes) for name, sizes in shape.items()}
    config = from_open_clip(weights, **ONE).config
    assert config.vision_config.num_attention_heads == heads
    assert config.text_config.num_attention_heads == width // 64


UNSUPPORTED = [
    ("visual.layer1.0.conv1.weight", "a ResNet vision tower"),
    ("visual.attnpool.c_proj.weight", "a ResNet vision tower"),
    ("visual.trunk.patch_embed.proj.weight", "a timm vision tower"),
    ("visual.attn_pool.query", "an attentional pooler"),
    ("text_decoder.ln_final.weight", r"a text decoder \(CoCa\)"),
    ("text.cls_emb", r"a class token in the text tower \(CoCa\)"),
    ("text.transformer.embeddings.word_embeddings.weight", "a Hugging Face text tower"),
    ("text.proj.0.weight", "a Hugging Face text tower"),
    ("text.text_projection.bias", "a text projection with a bias"),
    ("transformer.resblocks.0.ls_1.gamma", "layer scale"),
    ("visual.transformer.resblocks.0.attn.ln_q.weight", "normalised queries and keys"),
    ("logit_bias", r"a bias of the logits \(SigLIP\)"),
]


@pytest.mark.parametrize(("name", "found"), UNSUPPORTED, ids=[name for name, _ in UNSUPPORTED])
def test_what_no_plain_clip_has_is_named(state: State, name: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"Found {found}: {name}"):
        from_open_clip(state | {name: torch.zeros(WIDTH)}, **GIVEN)


def test_nothing_is_lost_silently(state: State) -> None:
    without = {name: value for name, value in state.items() if "resblocks.1.mlp.c_fc.bias" not in name}
    extra = {
        "visual.transformer.resblocks.1.ln_attn.weight": torch.zeros(3),
        "positional_embedding_extra": torch.zeros(3),
    }
    message = (
        r"Lacking: text_model\.encoder\.layers\.1\.mlp\.fc1\.bias, vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias\. "
        r"No place for: vision_model\.encoder\.layers\.1\.ln_attn\.weight, positional_embedding_extra\. "
        r"Shapes: visual_projection\.weight \(16, 31\) for \(16, 32\)\."
    )
    with pytest.raises(ValueError, match=message):
        from_open_clip(without | extra | {"visual.proj": torch.zeros(31, SPACE)}, **GIVEN)
    with pytest.raises(ValueError, match=r"Lacking: nothing\. No place for: queue\."):
        from_open_clip(state | {"queue": torch.zeros(3)}, **GIVEN)
    with pytest.raises(ValueError, match="Two of the weights are meant for the same place: ln_final.bias"):
        from_open_clip(state | {"text.ln_final.bias": state["ln_final.bias"]}, **GIVEN)


def other_families() -> dict[str, tuple[Any, str]]:
    bert = BertModel(BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).state_dict()
    return {
        "bert": (bert, r"Not a CLIP .* lacks visual\.conv1\.weight, .* it has embeddings\.word_embeddings\.weight"),
        "nothing": ({}, "Not a CLIP .* it has nothing"),
        "checkpoint": ({"epoch": 1, "state_dict": {}}, r"'epoch' is a int, not a tensor. Pass checkpoint\[\"state"),
        "numbers": ({"visual.proj": 1.0}, "is a float, not a tensor. Pass a state dict of tensors"),
        "path": ("ViT-B-32.pt", r"`state_dict` is a str; expected names and tensors. .*`torch.jit.load\(path\)"),
        "module": (torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(2)), r"Pass its `state_dict\(\)`"),
    }


@pytest.mark.parametrize("convert", [from_open_clip, from_official])
@pytest.mark.parametrize("family", ["bert", "nothing", "checkpoint", "numbers", "path", "module"])
def test_another_family_is_refused(convert: Callable[..., HolisticCLIPModel], family: str) -> None:
    weights, message = other_families()[family]
    with pytest.raises(ValueError, match=message):
        convert(weights)


def test_a_state_dict_is_sent_to_its_own_converter(make_model: Callable[..., HolisticCLIPModel], state: State) -> None:
    for num_branches in (1, 3):  # one branch: CLIP's names
        with pytest.raises(ValueError, match=r"Found transformers' names: for a CLIP take `from_clip`"):
            from_open_clip(make_model(vision={"num_branches": num_branches}).state_dict())
    with pytest.raises(ValueError, match="These weights have no branches. Take `from_open_clip`"):
        from_official(state, **GIVEN)


def test_sizes_that_do_not_tell_are_asked_for(state: State) -> None:
    with pytest.raises(ValueError, match="A width of 32 does not tell the number of heads. Give `vision_heads`"):
        from_open_clip(state)
    image = {"visual.positional_embedding": torch.zeros(1 + 12, WIDTH)}
    patch = {"visual.conv1.weight": torch.zeros(WIDTH, 3, PATCH, PATCH + 1)}
    for oblong, size in ((image, "12 patches of 8 x 8"), (patch, "16 patches of 8 x 9")):
        with pytest.raises(ValueError, match=f"{size} pixels do not tile a square image by squares"):
            from_open_clip(state | oblong, **GIVEN)
