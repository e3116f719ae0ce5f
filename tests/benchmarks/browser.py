"""How long the page of `export --layout browser` takes in Chromium: a text by a tower of CLIP's size, and the search.

    python tests/benchmarks/browser.py

Asked of it: 1,000 images searched by perspective within 1 s, the text included. Weights are random. It needs
transformers.js in build/npm and Debian's chromium, as `make test-browser` does.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _measure import write_record
from PIL import Image
from transformers import CLIPImageProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_browsers import opened_browser  # noqa: E402
from exported_pages import NODE_MODULES, served  # noqa: E402
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor  # noqa: E402
from holistic_clip_hf.exporting.browser_folder import export_page  # noqa: E402
from holistic_clip_hf.search import FolderImages, index_images  # noqa: E402
from holistic_clip_hf.trainer.tiny import train_tokenizer  # noqa: E402

NAMES = ["short", "detail", "main_object", "background", "style"]
IMAGES, ROUNDS = 1_000, 15
TEXTS = [f"short: a photo of {number} red squares; not style: drawn flat on white" for number in range(ROUNDS + 1)]
# Medians over queries with a new text each; the first warms up.
MEASURE = """async (queries) => {
  const [{ Encoder }, { Index, readVectors }, { parseQuery }] = await Promise.all(
    ['./text.js', './score.js', './query.js'].map((name) => import(name)));
  const facts = await (await fetch('search.json')).json();
  const buffer = await (await fetch(facts.vectors.file)).arrayBuffer();
  const start = performance.now();
  const encoder = await Encoder.open(facts.text, () => {});
  const loaded = performance.now() - start;
  const index = new Index(facts, readVectors(buffer, facts.vectors.kind));
  const texts = [], searches = [], wholes = [];
  for (const query of queries) {
    const begin = performance.now(), questions = [];
    for (const term of parseQuery(query, facts.perspectives, facts.limits)) {
      questions.push(index.ask(term, await encoder.embed(term.text)));
    }
    const middle = performance.now();
    index.best(questions, 24);
    texts.push(middle - begin);
    searches.push(performance.now() - middle);
    wholes.push(performance.now() - begin);
  }
  const median = (values) => values.slice(1).sort((one, other) => one - other)[(values.length - 1) >> 1];
  return { loading_ms: loaded, texts_ms: median(texts), search_ms: median(searches), query_ms: median(wholes) };
}"""


def make_model(tokenizer: Any) -> HolisticCLIPModel:
    """A text tower of the size of CLIP's base models, beside the smallest images."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    patches = {"image_size": 32, "patch_size": 16, "num_branches": len(NAMES), "num_branch_layers": 1}
    torch.manual_seed(0)
    config = HolisticCLIPConfig(
        text_config={**text, **ends}, vision_config={**vision, **patches}, projection_dim=512, perspectives=NAMES
    )
    return HolisticCLIPModel(config).eval()


def main() -> None:
    """Export the page twice, with 32 and 8 bits, and keep medians of queries in a browser."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=560, max_length=77)
    size = {"height": 32, "width": 32}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)
    model, results = make_model(tokenizer), {}
    with tempfile.TemporaryDirectory() as scratch, opened_browser() as browser:
        base = Path(scratch)
        (base / "images").mkdir()
        for number in range(IMAGES):
            colour = (number % 256, number // 4, 255 - number % 256)
            Image.new("RGB", (32, 32), colour).save(base / "images" / f"{number:04d}.png")
        index_images(base / "index", FolderImages(base / "images"), model, processor)
        for int8 in (False, True):
            folder = base / f"page-{int8}"
            report = export_page(model, processor, base / "index", folder, node_modules=NODE_MODULES, int8=int8)
            with served(folder) as address:
                page = browser.new_page()
                page.goto(address)
                name = "8 bits" if int8 else "32 bits"
                measured = page.evaluate(MEASURE, TEXTS)
                results[name] = {"megabytes": round(report.num_bytes / 1e6, 1), **measured}
                page.close()
            print(name, results[name])
        version = browser.version
    write_record("browser", {"chromium": version, "images": IMAGES, "rounds": ROUNDS, "results": results})


if __name__ == "__main__":
    main()
