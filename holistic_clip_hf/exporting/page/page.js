// The page: what it asks of the index and the text model, and how it shows what is found.
import { FUSED, parseQuery, written } from './query.js';
import { Index, readVectors, weighted } from './score.js';

const SHOWN = 24;
const find = (selector) => document.querySelector(selector);
const words = (name) => name.replaceAll('_', ' ');

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

async function load(name, read) {
  const copy = 'Copy the whole folder that was exported.';
  let answer;
  try {
    answer = await fetch(name, { cache: 'no-cache' });
  } catch (error) {
    throw new Error(`${name} cannot be loaded (${error.message}). ${copy}`);
  }
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status} ${answer.statusText}). ${copy}`);
  return answer[read]();
}

class Page {
  constructor(facts, index, tell) {
    this.facts = facts;
    this.index = index;
    this.tell = tell;
    this.count = SHOWN;
    this.asked = 0;
    this.weights = { [FUSED]: 1, ...Object.fromEntries(facts.perspectives.map((name) => [name, 0])) };
    this.hues = Object.fromEntries(facts.perspectives.map((name, place) => [name, facts.colours[place]]));
  }

  open() {
    const { images, perspectives } = this.facts;
    const names = perspectives.map(words).join(', ');
    find('#about').textContent =
      `${images.length.toLocaleString('en')} images, seen from ${perspectives.length} perspectives: ${names}.`;
    find('#language').textContent =
      `A query may name perspectives itself: “${words(perspectives[0])}: a dog; not ${words(perspectives.at(-1))}: brown^0.5”.`;
    Object.keys(this.weights).forEach((name) => find('#weights').append(this.slider(name)));
    find('#ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.count = SHOWN;
      this.search();
    });
    find('#more').addEventListener('click', () => {
      this.count += SHOWN;
      this.search();
    });
    find('#panel').addEventListener('click', (event) => event.target === find('#panel') && find('#panel').close());
    find('#ask').hidden = find('#weights').hidden = false;
    find('#query').focus();
    this.browse();
  }

  slider(name) {
    const number = make('output', { textContent: this.weights[name].toFixed(1) });
    const input = make('input', { type: 'range', min: -1, max: 1, step: 0.1, value: this.weights[name], name });
    input.addEventListener('input', () => {
      this.weights[name] = Number(input.value);
      number.textContent = this.weights[name].toFixed(1);
      if (find('#query').value.trim()) this.search();
    });
    const label = make(
      'label',
      {},
      make('span', { textContent: name === FUSED ? 'all together' : words(name) }),
      number,
      input,
    );
    label.style.setProperty('--hue', this.hues[name] ?? 'var(--quiet)');
    return label;
  }

  // Loading begins with the page, so that the first query need not wait for all of it.
  begin() {
    const tell = (share) => {
      if (!this.asked) find('#status').textContent = `Loading the text model: ${Math.round(100 * share)} %.`;
    };
    this.encoder = import('./text.js').then(({ Encoder }) => Encoder.open(this.facts.text, tell));
    this.encoder.then(
      () => this.asked || this.greet(),
      (error) =>
        this.tell(`The text model cannot be loaded (${error.message}). Copy the whole folder that was exported.`),
    );
  }

  // Images from everywhere, before anything is asked.
  browse() {
    const step = Math.max(1, Math.ceil(this.index.size / SHOWN));
    const rows = Array.from({ length: Math.ceil(this.index.size / step) }, (_, place) => place * step);
    const hits = rows.map((row) => ({ row }));
    this.show(hits, []);
    this.greet();
  }

  greet() {
    find('#status').textContent = 'Some of the images. Say what you are looking for.';
  }

  async search() {
    const number = ++this.asked;
    const query = find('#query').value;
    find('#problem').hidden = true;
    try {
      const named = parseQuery(query, this.facts.perspectives, this.facts.limits);
      find('#weights').disabled = named.every((term) => term.perspective !== FUSED);
      const terms = weighted(named, this.weights);
      find('#status').textContent = 'Searching.';
      const encoder = await this.encoder;
      const start = performance.now();
      const plain = [];
      for (const term of terms) {
        const text = written(term.text, term.perspective, this.facts.text.captions);
        plain.push(this.index.ask(term, await encoder.embed(text)));
      }
      const questions = this.index.withFloors(plain);
      const hits = this.index.best(questions, this.count);
      if (number !== this.asked) return; // another one was asked meanwhile
      this.show(hits, questions);
      const spent = performance.now() - start;
      find('#results').dataset.milliseconds = spent;
      find('#status').textContent = this.told(spent);
    } catch (error) {
      if (number !== this.asked) return;
      this.show([], []);
      find('#status').textContent = '';
      this.tell(error.message);
    }
  }

  told(spent) {
    const named = find('#weights').disabled ? ' The query names its perspectives, so the sliders have no effect.' : '';
    return `The best of ${this.index.size.toLocaleString('en')} images, found in ${(spent / 1000).toFixed(2)} s.${named}`;
  }

  show(hits, questions) {
    find('#results').replaceChildren(...hits.map((hit, place) => make('li', {}, this.card(hit, place, questions))));
    find('#more').hidden = !questions.length || hits.length >= this.index.size;
  }

  card({ row, score }, place, questions) {
    const name = this.facts.images[row];
    const card = make('button', { type: 'button', className: 'card' }, this.picture(row));
    card.dataset.imageId = name;
    if (score !== undefined) {
      card.dataset.score = score;
      card.append(make('span', { className: 'score', textContent: score.toFixed(3) }));
    }
    card.append(
      make('span', { className: 'name', title: name, textContent: `${place + 1}. ${name.split('/').at(-1)}` }),
    );
    card.addEventListener('click', () => this.openPanel(row, score, questions));
    return card;
  }

  picture(row) {
    if (this.facts.without_thumbnail.includes(row))
      return make('span', { className: 'gone', textContent: 'no picture' });
    const source = `thumbnails/${String(row).padStart(6, '0')}.webp`;
    const image = make('img', { src: source, alt: '', loading: 'lazy', draggable: false });
    image.addEventListener('error', () =>
      image.replaceWith(make('span', { className: 'gone', textContent: `${source} is missing` })),
    );
    return image;
  }

  // One image, and what each term and branch adds to its score.
  openPanel(row, score, questions) {
    const panel = find('#panel');
    const close = make('button', { type: 'button', className: 'close', textContent: '×', ariaLabel: 'Close' });
    close.addEventListener('click', () => panel.close());
    const parts = this.index.parts(questions, row);
    const most = Math.max(...parts.flat().map(Math.abs));
    const terms = questions.map((question, place) => this.term(question, parts[place], most));
    const told =
      score === undefined
        ? []
        : [
            make('p', {
              textContent: `Score ${score.toFixed(3)}: each term's similarity times its weight, added up.`,
            }),
          ];
    panel.replaceChildren(
      close,
      this.picture(row),
      make('h2', { id: 'panel-name', textContent: this.facts.images[row] }),
      ...told,
      ...terms,
    );
    panel.showModal();
  }

  term({ term, branches }, parts, most) {
    const rows = branches.map((branch, place) => {
      const name = this.facts.perspectives[branch];
      const bar = make('i', { className: parts[place] < 0 ? 'against' : '' });
      bar.style.setProperty('width', `${(100 * Math.abs(parts[place])) / most}%`);
      const row = make(
        'li',
        {},
        make('span', { textContent: words(name) }),
        make('span', {}, bar),
        make('b', { textContent: parts[place].toFixed(3) }),
      );
      row.style.setProperty('--hue', this.hues[name]);
      return row;
    });
    const whose = term.perspective === FUSED ? 'all together' : words(term.perspective);
    const heading = `${term.weight < 0 ? 'not ' : ''}“${term.text}” (${whose})`;
    return make('section', {}, make('h3', { textContent: heading }), make('ul', {}, ...rows));
  }
}

export async function start(tell) {
  find('#status').textContent = 'Loading the images.';
  const facts = await load('search.json', 'json');
  const made = await load('model/export.json', 'json');
  if (made.checkpoint !== facts.checkpoint) {
    throw new Error('model/ is of another checkpoint than the vectors. Export both together again');
  }
  const buffer = await load(facts.vectors.file, 'arrayBuffer');
  if (buffer.byteLength !== facts.vectors.bytes) {
    throw new Error(`${facts.vectors.file} has ${buffer.byteLength} bytes; expected ${facts.vectors.bytes}`);
  }
  const page = new Page(facts, new Index(facts, readVectors(buffer, facts.vectors.kind)), tell);
  page.open();
  page.begin();
}
