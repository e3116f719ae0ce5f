// Text and image vectors of an exported folder, by transformers.js: FOLDER PICTURE TEXTS, printed as JSON.
import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  RawImage,
  SiglipTextModel,
  SiglipVisionModel,
  env,
  pipeline,
} from '@huggingface/transformers';
import fs from 'node:fs';
import path from 'node:path';

const [folder, picture, texts] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + '/';
const name = path.basename(folder);
const options = { dtype: 'fp32' };

const tokenizer = await AutoTokenizer.from_pretrained(name);
const processor = await AutoProcessor.from_pretrained(name);
const { model_type: kind } = JSON.parse(fs.readFileSync(path.join(folder, 'config.json')));
const [Text, Vision] = {
  clip: [CLIPTextModelWithProjection, CLIPVisionModelWithProjection],
  siglip: [SiglipTextModel, SiglipVisionModel],
}[kind];
const text = await Text.from_pretrained(name, options);
const vision = await Vision.from_pretrained(name, options);
const tokens = tokenizer(JSON.parse(texts), { padding: true, truncation: true });
const image = await RawImage.read(picture);
const { text_embeds } = await text(tokens);
const { image_embeds, branch_embeds } = await vision(await processor(image));
const classify = await pipeline('zero-shot-image-classification', name, options);
const scores = await classify(picture, JSON.parse(texts), { hypothesis_template: '{}' });
console.log(
  JSON.stringify({
    ids: Array.from(tokens.input_ids.data, Number),
    text_embeds: Array.from(text_embeds.data),
    image_embeds: Array.from(image_embeds.data),
    branch_embeds: Array.from(branch_embeds.data),
    scores: Object.fromEntries(scores.map(({ label, score }) => [label, score])),
  }),
);
