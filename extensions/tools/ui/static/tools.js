// A list of paths grows by an empty line when its last one is filled.
document.addEventListener('input', event => {
  const target = /** @type {HTMLInputElement} */ (event.target);
  if (!target.closest('.several') || target.nextElementSibling?.matches('input') || !target.value) return;
  const next = /** @type {HTMLInputElement} */ (target.cloneNode());
  next.value = '';
  next.removeAttribute('id');
  next.setAttribute('aria-label', target.name);
  target.after(next);
});
