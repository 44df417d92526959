// Try it: the form is sent and stays as it is; what it makes appears below it. With mistakes it comes back with them.
import {tell} from './page.js';

const parts = text => new DOMParser().parseFromString(text, 'text/html');

document.addEventListener('submit', async event => {
  const form = event.target;
  if (form.id !== 'try-form') return;
  event.preventDefault();
  const button = event.submitter ?? form.querySelector('button.main');
  button.disabled = true;
  try {
    const answer = await fetch(form.action, {method: 'POST', body: new FormData(form), headers: {accept: 'text/html'}});
    const page = parts(await answer.text());
    const fresh = page.getElementById('try-form');
    if (answer.ok) {
      for (const bad of form.querySelectorAll('.bad')) bad.remove();
      for (const field of form.querySelectorAll('[aria-invalid]')) field.removeAttribute('aria-invalid');
      document.getElementById('tried').replaceChildren(...page.getElementById('tried').children);
      const sent = form.querySelector('[value=send]:checked') && fresh.querySelector('#controls');
      if (sent) {
        // the image that was sent is one to choose by now
        sent.querySelector('[data-latest]').checked = true;
        form.querySelector('#controls').replaceWith(sent);
      }
      tell('');
    } else if (fresh) {
      form.replaceWith(fresh);
      document.querySelector('#try-form [aria-invalid]')?.focus();
    } else {
      tell(page.getElementById('main')?.innerText.trim() ?? page.body.innerText, true);
    }
  } catch (error) {
    tell(String(error), true);
  }
  button.disabled = false;
});

// Whoever chooses a file means it.
document.addEventListener('change', event => {
  if (event.target.name === 'image' && event.target.files.length)
    event.target.form.querySelector('[value=send]').checked = true;
});
