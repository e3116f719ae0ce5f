// A click beside the panel, on its cross, or Escape closes it; captions that were changed and not saved are asked about.
const isChanged = () => element.querySelector('[data-unsaved]') ||
  [...element.querySelectorAll('.hc-editor textarea')].some((field) => field.value !== field.defaultValue);
const close = () => {
  if (!isChanged() || confirm('Close without saving the captions?')) props.value = '';
};
element.addEventListener('click', (event) => {
  if (event.target.closest('.hc-close') || event.target.classList.contains('hc-overlay')) close();
  if (!event.target.closest('[data-save]')) return;
  const editor = event.target.closest('.hc-editor');
  const fields = [...editor.querySelectorAll('textarea')];
  trigger('save', {
    image_id: editor.dataset.imageId,
    seen: editor.dataset.seen,
    captions: fields.map((field) => [field.dataset.perspective, field.value]),
  });
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && props.value) close(); });
watch('value', () => { element.querySelector('.hc-overlay')?.focus(); });
