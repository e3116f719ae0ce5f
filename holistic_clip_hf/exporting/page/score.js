// Scores of images for a query, found as `holistic_clip_hf.search.scoring` finds them, in numbers of 64 bits.
import { FUSED } from './query.js';

const LEAST_LENGTH = 1e-12; // of a mean of vectors, as torch normalises

// What sliders make of the terms of a query: one that names no perspective is asked of each that has a weight.
export function weighted(terms, weights) {
  const moved = Object.entries(weights).filter(([, weight]) => weight !== 0);
  return terms.flatMap((term) => {
    if (term.perspective !== FUSED) return [term];
    if (!moved.length) {
      throw new Error('All sliders are at zero, so that no image is better than another. Move one of them.');
    }
    return moved.map(([perspective, weight]) => ({ ...term, perspective, weight: term.weight * weight }));
  });
}

// Vectors (H, N, D) of images, whose names are ordered.
export class Index {
  constructor(facts, vectors) {
    this.names = facts.perspectives;
    this.fusion = facts.fusion;
    this.floor = facts.floor;
    this.width = facts.width;
    this.size = facts.images.length;
    this.vectors = vectors;
    this.lengths = this.fusion.combine === 'centroid' ? this.meanLengths() : null;
  }

  // A term as vectors: by branch what it is held against, and how the products become one number.
  ask(term, embeds) {
    const { combine, shares, is_routed: isRouted } = this.fusion;
    const blocks = isRouted
      ? this.names.map((_, place) => embeds.subarray(place * this.width, (place + 1) * this.width))
      : [];
    if (term.perspective !== FUSED) {
      const text = isRouted ? unit(sum(blocks)) : embeds;
      return { term, combine: 'sum', branches: [this.names.indexOf(term.perspective)], asked: [text] };
    }
    const branches = this.names.map((_, place) => place);
    if (isRouted) return { term, combine, branches, asked: blocks };
    if (combine === 'max' || combine === 'softmax')
      return { term, combine, branches, asked: branches.map(() => embeds) };
    return { term, combine, branches, asked: shares.map((share) => embeds.map((value) => share * value)) };
  }

  // The terms of a query, those against with a floor if there are others: what is usual among the images is no fault.
  withFloors(questions) {
    const isAgainst = ({ term }) => term.weight < 0;
    if (questions.every(isAgainst)) return questions;
    return questions.map((question) => (isAgainst(question) ? { ...question, floor: this.floorOf(question) } : question));
  }

  floorOf(question) {
    const plain = { ...question, term: { ...question.term, weight: 1 } };
    const step = Math.max(1, Math.ceil(this.size / this.floor.sampled));
    const found = Array.from({ length: Math.ceil(this.size / step) }, (_, number) =>
      total(this.parts([plain], number * step).flat()),
    );
    const mean = total(found) / found.length;
    const spread = Math.sqrt(total(found.map((value) => (value - mean) ** 2)) / found.length);
    return mean + this.floor.spreads * spread;
  }

  // What each term adds to the score of one image, by branch.
  parts(questions, row) {
    return questions.map((question) => {
      const products = question.branches.map((branch, place) => {
        const start = (branch * this.size + row) * this.width;
        return dot(this.vectors, start, question.asked[place]);
      });
      const divisor = question.combine === 'centroid' ? this.lengths[row] : 1;
      const shares = this.counted(products, question).map((value) => value / divisor);
      return aboveFloor(shares, question.floor).map((value) => question.term.weight * value);
    });
  }

  // The best `count` images, best first; of equal ones, the first by name.
  best(questions, count) {
    const scores = Float64Array.from({ length: this.size }, (_, row) => total(this.parts(questions, row).flat()));
    const rows = Array.from(scores.keys()).sort((one, other) => scores[other] - scores[one] || one - other);
    return rows.slice(0, count).map((row) => ({ row, score: scores[row] }));
  }

  // What each product counts.
  counted(products, { combine }) {
    if (combine === 'max') {
      const first = products.indexOf(Math.max(...products));
      return products.map((product, place) => (place === first ? product : 0));
    }
    if (combine !== 'softmax') return products;
    const logits = products.map((product) => this.fusion.scale * product);
    const highest = Math.max(...logits);
    const weights = logits.map((logit) => Math.exp(logit - highest));
    return products.map((product, place) => (weights[place] / total(weights)) * product);
  }

  meanLengths() {
    const step = this.size * this.width;
    return Float64Array.from({ length: this.size }, (_, row) => {
      let square = 0;
      for (let place = row * this.width; place < (row + 1) * this.width; place++) {
        let mean = 0;
        for (let branch = 0; branch < this.names.length; branch++) mean += this.vectors[branch * step + place];
        square += (mean / this.names.length) ** 2;
      }
      return Math.max(Math.sqrt(square), LEAST_LENGTH);
    });
  }
}

// What of the shares of a similarity exceeds a floor, less the floor in equal parts; else nothing.
function aboveFloor(shares, floor) {
  if (floor === undefined) return shares;
  return shares.map((share) => (total(shares) > floor ? share - floor / shares.length : 0));
}

const total = (values) => values.reduce((sum, value) => sum + value, 0);
const sum = (vectors) => vectors[0].map((_, place) => total(vectors.map((vector) => vector[place])));
const unit = (vector) => vector.map((value) => value / Math.hypot(...vector));

function dot(vectors, start, asked) {
  let found = 0;
  for (let place = 0; place < asked.length; place++) found += vectors[start + place] * asked[place];
  return found;
}

// Numbers of a file of vectors, of 32 or 16 bits.
export function readVectors(buffer, kind) {
  if (kind === 'float32') return new Float32Array(buffer);
  return Float32Array.from(new Uint16Array(buffer), (bits) => {
    const sign = bits >> 15 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
  });
}
