// A click on a card asks for that image; the id is looked up in the index, never opened as a path.
element.addEventListener('click', (event) => {
  const card = event.target.closest('.hc-card');
  if (card) trigger('inspect', {image_id: card.dataset.imageId});
  const more = event.target.closest('[data-shown]');
  if (more) trigger('more', {shown: Number(more.dataset.shown)});
});
// Where the words of a query name their perspectives, the sliders cannot be moved: they would do nothing.
const mark = () => {
  const off = element.querySelector('[data-sliders]')?.dataset.sliders === 'off';
  const weights = document.querySelector('#hc-weights');
  if (weights) weights.inert = off;
};
watch('value', mark);
