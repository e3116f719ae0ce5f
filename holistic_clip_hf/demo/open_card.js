// A click on a card asks for that image; the id is looked up in the index, never opened as a path.
element.addEventListener('click', (event) => {
  const card = event.target.closest('[data-image-id]');
  if (card) trigger('inspect', {image_id: card.dataset.imageId});
});
