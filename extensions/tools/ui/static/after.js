// Try it: the form is sent and stays as it is; what it makes appears below it. With mistakes it comes back with them.
import {all, one, tell} from '/static/page.js';

document.addEventListener('submit', async event => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (form.id !== 'try-form') return;
  event.preventDefault();
  const button = event.submitter ?? one('button.main', form);
  button.toggleAttribute('disabled', true);
  try {
    const answer = await fetch(form.action, {method: 'POST', body: new FormData(form), headers: {accept: 'text/html'}});
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const fresh = page.getElementById('try-form');
    if (answer.ok) {
      for (const bad of all('.bad', form)) bad.remove();
      for (const field of all('[aria-invalid]', form)) field.removeAttribute('aria-invalid');
      one('#tried').replaceChildren(...one('#tried', page).children);
      const sent = form.querySelector('[value=send]:checked') && fresh?.querySelector('#controls');
      if (sent) {
        // the image that was sent is one to choose by now
        /** @type {HTMLInputElement} */
        const latest = one('[data-latest]', sent);
        latest.checked = true;
        one('#controls', form).replaceWith(sent);
      }
      tell('');
    } else if (fresh) {
      form.replaceWith(fresh);
      one('#try-form [aria-invalid]')?.focus();
    } else {
      tell(page.getElementById('main')?.innerText.trim() ?? page.body.innerText, true);
    }
  } catch (error) {
    tell(String(error), true);
  }
  button.toggleAttribute('disabled', false);
});

// Whoever chooses a file means it.
document.addEventListener('change', event => {
  const field = /** @type {HTMLInputElement} */ (event.target);
  /** @type {HTMLInputElement | null | undefined} */
  const send = field.form?.querySelector('[value=send]');
  if (field.name === 'image' && field.files?.length && send) send.checked = true;
});
