// Texts to vectors: cleaned as `holistic_clip_hf.processing_holistic_clip` cleans them, by the exported text tower.
import {
  AutoTokenizer,
  CLIPTextModelWithProjection,
  SiglipTextModel,
  Tensor,
  env,
} from './transformers/transformers.min.js';

const MODELS = { clip: CLIPTextModelWithProjection, siglip: SiglipTextModel };
const MOST_ESCAPES = 16;
const BLANK = /^[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}]*$/u; // controls, formats without width, spaces
const TERMINAL_ESCAPE = /\x1b\[[\d;]*[a-zA-Z]/g;

// Text as the processor sees it; `letters` are those that are made plain. Mis-decoded letters are not repaired, since
// nobody types them.
export function clean(text, letters) {
  if (!text.includes('<')) {
    for (let depth = 0; depth < MOST_ESCAPES; depth++) text = unescaped(text);
  }
  text = [...text.toWellFormed().replace(TERMINAL_ESCAPE, '')].map((letter) => letters[letter] ?? letter).join('');
  const folded = unescaped(unescaped(text.normalize('NFC')))
    .split(/\s+/)
    .filter(Boolean)
    .join(' ');
  return folded.includes('Σ') ? folded.toLowerCase() : folded;
}

function unescaped(text) {
  if (!text.includes('&')) return text;
  const page = new DOMParser().parseFromString(`<p>${text.replaceAll('<', '&lt;')}</p>`, 'text/html');
  return page.querySelector('p').textContent;
}

export class Encoder {
  // `facts` are those of `search.json` on texts; `tell` is called with the share of the model that is loaded.
  static async open(facts, tell) {
    const here = (name) => new URL(name, import.meta.url).href;
    env.allowLocalModels = true; // which browsers are not, unless told
    env.allowRemoteModels = false;
    env.localModelPath = './'; // a whole address would not be looked up as local
    // Kept by its address alone, an earlier export at the same place would answer for this one.
    env.useBrowserCache = false;
    env.useWasmCache = false;
    env.backends.onnx.wasm.wasmPaths = {
      mjs: here('transformers/ort-wasm-simd-threaded.mjs'),
      wasm: here('transformers/ort-wasm-simd-threaded.wasm'),
    };
    const encoder = new Encoder();
    encoder.facts = facts;
    encoder.known = new Map();
    encoder.tokenizer = await AutoTokenizer.from_pretrained('model');
    encoder.model = await MODELS[facts.kind].from_pretrained('model', {
      dtype: facts.dtype,
      device: 'wasm',
      progress_callback: ({ file, progress }) => file?.includes('.onnx') && progress && tell(progress / 100),
    });
    return encoder;
  }

  // Token ids, cut at the most that the tower reads with the last ones kept, which mark the end.
  tokens(text) {
    const { letters, special, max_length: most, num_end: end } = this.facts;
    const cleaned = clean(text, letters);
    if (BLANK.test(cleaned)) throw new Error('The text says nothing; expected words. Say what is sought.');
    const mark = special.find((each) => cleaned.includes(each));
    if (mark) throw new Error(`The text has ${mark}, a mark of the tokenizer; expected words. Leave it out.`);
    const ids = this.tokenizer.encode(cleaned);
    return ids.length <= most ? ids : [...ids.slice(0, most - end), ...ids.slice(ids.length - end)];
  }

  // Vector of a text, (D), or (H * D) if texts are routed.
  async embed(text) {
    if (!this.known.has(text)) {
      const ids = this.tokens(text);
      const shape = [1, ids.length];
      const { text_embeds: found } = await this.model({
        input_ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), shape),
        attention_mask: new Tensor('int64', new BigInt64Array(ids.length).fill(1n), shape),
      });
      this.known.set(text, Float32Array.from(found.data));
    }
    return this.known.get(text);
  }
}
