// A click beside the panel, on its cross, or Escape closes it.
const close = () => { props.value = ''; };
element.addEventListener('click', (event) => {
  if (event.target.closest('.hc-close') || event.target.classList.contains('hc-overlay')) close();
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && props.value) close(); });
watch('value', () => { element.querySelector('.hc-overlay')?.focus(); });
