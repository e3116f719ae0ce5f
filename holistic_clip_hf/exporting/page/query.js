// The one-line language of queries, read as `holistic_clip_hf.search.parse_query` reads it.
//
//     main object: a dog; background: snow^0.5; not style: drawing

export const FUSED = 'fused'; // in place of a perspective: all branches
const PIECE = /"[^"]*"|[^";]+|;/g;
const WEIGHT = /^\^\s*[^\s^"]*$/;
const NUMBER = /^\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

const shown = (text) => `“${text.length > 200 ? `${text.slice(0, 100)} ... ${text.slice(-100)}` : text}”`;
const counted = (number) => number.toLocaleString('en');
const plain = (name) =>
  name
    .trim()
    .replace(/[\s_-]+/g, ' ')
    .toLowerCase();

// Terms {text, perspective, weight} of a query; `limits` are the most letters and terms. Throws a sentence.
export function parseQuery(query, perspectives, limits) {
  const letters = [...query].length;
  if (letters > limits.letters) {
    throw new Error(`The query has ${counted(letters)} letters; expected up to ${counted(limits.letters)}.`);
  }
  if (query.split('"').length % 2 === 0) {
    throw new Error(`A double quote does not close in ${shown(query)}. Close it, or write it twice inside quotes.`);
  }
  const parts = split(query).filter((part) => part.trim());
  if (!parts.length) {
    throw new Error('The query is empty. Say what is sought, as in “a dog” or “background: snow”.');
  }
  if (parts.length > limits.terms) {
    throw new Error(`The query has ${parts.length} terms; expected up to ${limits.terms}.`);
  }
  return parts.map((part) => parseTerm(part, perspectives));
}

// A text as the model learned to read it from a perspective; `captions` have the form and who has it, if any.
export function written(text, perspective, captions) {
  if (!captions?.perspectives.includes(perspective)) return text;
  const given = { text, perspective };
  return captions.form.replace(/\{(text|perspective)\}/g, (_, name) => given[name]);
}

// At semicolons that are not in quotes.
function split(query) {
  const parts = [''];
  for (const piece of query.match(PIECE) ?? []) {
    if (piece === ';') parts.push('');
    else parts[parts.length - 1] += piece;
  }
  return parts;
}

function parseTerm(part, perspectives) {
  const term = part.trimStart();
  const opens = term.indexOf('"');
  const isQuoted = opens >= 0;
  const closes = isQuoted ? term.lastIndexOf('"') : -1;
  const caret = isQuoted ? -1 : term.indexOf('^');
  let before = isQuoted ? term.slice(0, opens) : caret < 0 ? term : term.slice(0, caret);
  const quoted = isQuoted ? term.slice(opens + 1, closes) : '';
  const after = (isQuoted ? term.slice(closes + 1) : caret < 0 ? '' : term.slice(caret)).trim();
  const negative = before.match(/^not\s+/i);
  if (negative) before = before.slice(negative[0].length);
  const colon = before.indexOf(':');
  const name = colon < 0 ? '' : before.slice(0, colon);
  const words = before.slice(colon + 1);
  const isTerm =
    !/[:^]/.test(words) &&
    !(isQuoted && words.trim()) &&
    !quoted.replaceAll('""', '').includes('"') &&
    (!after || WEIGHT.test(after)) &&
    !name.includes('^');
  if (!isTerm) {
    throw new Error(
      `${shown(term.trim())} is not a term; expected “a dog”, “background: snow”, “not style: drawing^0.5”. A text ` +
        'with a colon, semicolon, caret or quote stands in double quotes as a whole.',
    );
  }
  const text = (isQuoted ? quoted.replaceAll('""', '"') : words).trim();
  const weight = after ? parseWeight(after.slice(1).trim(), part) : 1;
  const perspective = colon < 0 ? FUSED : findPerspective(name, perspectives);
  if (!text) throw new Error('A term has no word; expected a text. Say what is sought, as in “background: snow”.');
  return { text, perspective, weight: negative ? -weight : weight };
}

function parseWeight(text, part) {
  const weight = NUMBER.test(text) ? Number(text) : NaN;
  if (weight > 0 && Number.isFinite(weight)) return weight;
  throw new Error(
    `The weight of ${shown(part.trim())} is ${shown(text)}; expected a number above 0, as in “snow^0.5”. Write “not” ` +
      'before what counts against.',
  );
}

function findPerspective(name, perspectives) {
  const known = [...perspectives, FUSED];
  const found = known.find((each) => plain(each) === plain(name));
  if (found !== undefined) return found;
  throw new Error(
    `The perspective is ${shown(name.trim())}; expected one of ${known.join(', ')}. A text that has a colon itself ` +
      'stands in double quotes.',
  );
}
