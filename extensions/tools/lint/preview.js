const only = document.getElementById('only');
if (only) only.addEventListener('change', () => document.body.classList.toggle('only', only.checked));
