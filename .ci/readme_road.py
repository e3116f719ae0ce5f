"""Run the README's own commands, in order, on a small folder of drawn images, outside the checkout.

    python -I readme_road.py README.md FOLDER

`python` is that of an environment that holds nothing but the wheel. What the README takes from the Hub lies in the
folder under its name, in miniature: a captioner and a CLIP, random. A command that fails ends this with its output.
"""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROAD = re.compile(r"^## The road.*?(?=^## )", re.DOTALL | re.MULTILINE)
USE = re.compile(r"^## The shortest use.*?(?=^## )", re.DOTALL | re.MULTILINE)
CAPTIONER, CLIP = "llava-hf/llava-interleave-qwen-0.5b-hf", "openai/clip-vit-base-patch16"
RECIPE = Path("recipes/photos.yaml")
SECONDS = 300  # for a command; all of them take a minute together
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")


def main(readme: Path, folder: Path) -> None:
    """Prepare the folder, then run the road and the shortest use."""
    text = readme.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    draw_photos(Path("photos"))
    save_captioner(Path(CAPTIONER))
    save_clip(Path(CLIP))
    for language, code in BLOCK.findall(ROAD.search(text)[0]):
        if language == "yaml":
            RECIPE.parent.mkdir(exist_ok=True)
            RECIPE.write_text(code)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                run(line)
    Path("picture.png").write_bytes(next(Path("photos").glob("*.png")).read_bytes())
    ((_, code),) = BLOCK.findall(USE.search(text)[0])
    told(["python", "-c", code])
    print("The README's commands ran, one after the other.")


def run(line: str) -> None:
    """Run a command as the README gives it; a page is served until it has answered once."""
    words = shlex.split(line)
    if words[1] == "demo":
        serve(words)
    else:
        told(words)


def told(words: list[str]) -> None:
    """Run a command to its end, and end with its output if it fails."""
    print("$", " ".join(words[:6]), flush=True)
    ran = subprocess.run(program(words), capture_output=True, text=True, timeout=SECONDS, env=environment())
    if ran.returncode:
        sys.exit(f"{ran.stdout}\n{ran.stderr}\nThe README's command failed: {' '.join(words)}")


def serve(words: list[str]) -> None:
    """Start a server, ask it once, and stop it as Ctrl-C does."""
    print("$", " ".join(words), flush=True)
    port = "7899"
    process = subprocess.Popen(
        program([*words, "--port", port]), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
    )
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
                assert answer.status == 200
            process.terminate()
            process.wait(30)
            return
        except OSError:
            time.sleep(0.5)
    process.kill()
    sys.exit(f"{process.stdout.read().decode()}\nThe README's page did not answer: {' '.join(words)}")


def program(words: list[str]) -> list[str]:
    """Return the command with this environment's programs."""
    return [str(Path(sys.executable).with_name(words[0])), *words[1:]]


def environment() -> dict[str, str]:
    """Return the environment of every command: no network, one thread."""
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    return {**{name: value for name, value in os.environ.items() if "proxy" not in name.lower()}, **settings}


def draw_photos(folder: Path) -> None:
    """Draw images of four colours and two shapes at several sizes, with a metadata.csv."""
    from PIL import Image, ImageDraw

    folder.mkdir()
    lines = ["file_name,title,story"]
    for number in range(64):
        colour, shape, side = list(COLOURS)[number % 4], SHAPES[number // 4 % 2], 20 + number
        image = Image.new("RGB", (96, 96), "white")
        draw = getattr(ImageDraw.Draw(image), "rectangle" if shape == "square" else "ellipse")
        draw((8, 8, 8 + side, 8 + side), fill=COLOURS[colour])
        name = f"holiday-{number:02}.png"  # by these, a hash puts some into each split
        image.save(folder / name)
        lines.append(f"{name},a {colour} {shape},It is {colour}. It is a {shape} of {side} pixels.")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def save_captioner(folder: Path) -> None:
    """Save a random LLaVA with a token per byte."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<s>", "</s>", "<image>"]
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        fast,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    text = LlamaConfig(
        **widths,
        vocab_size=len(fast),
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    vision = CLIPVisionConfig(**widths, image_size=32, patch_size=16)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=fast.convert_tokens_to_ids("<image>"))
    )
    for part in (model, processor):
        part.save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """Save a random CLIP of the size that the README's recipe says."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from holistic_clip_hf.trainer.recipes import train_tokenizer

    tokenizer = train_tokenizer(
        [f"It is {colour}. It is a {shape} of pixels." for colour in COLOURS for shape in SHAPES],
        vocab_size=600,
        max_length=77,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**widths, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
            vision_config={**widths, "image_size": 224, "patch_size": 32},
            projection_dim=16,
        )
    )
    size = {"height": 224, "width": 224}
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=size)
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
