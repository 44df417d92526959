// A list of paths grows by an empty line when its last one is filled.
document.addEventListener('input', ({target}) => {
  if (!target.closest('.several') || target.nextElementSibling?.matches('input') || !target.value) return;
  const next = target.cloneNode();
  next.value = '';
  next.removeAttribute('id');
  next.setAttribute('aria-label', target.name);
  target.after(next);
});
