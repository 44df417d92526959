/** @type {HTMLInputElement | null} */
const only = document.querySelector('#only');
if (only) only.addEventListener('change', () => document.body.classList.toggle('only', only.checked));
