// A click on an example asks it.
element.addEventListener('click', (event) => {
  const example = event.target.closest('[data-query]');
  if (example) trigger('ask', {query: example.dataset.query});
});
