// Votes: a click or a key is sent, and the next pair comes back as the page without a script would show it.
import {tell, texts} from '/static/page.js';

const words = texts.votes;
const keys = {ArrowLeft: 'left', ArrowRight: 'right', ArrowUp: 'same', ArrowDown: 'both bad', Backspace: 'undo'};
let isSending = false;

async function send(button) {
  if (isSending) return;
  isSending = true;
  const form = button.form, data = new FormData(form);
  data.set(button.name, button.value);
  form.setAttribute('aria-busy', 'true');
  try {
    const answer = await fetch(form.action, {method: 'POST', body: data, headers: {accept: 'text/html'}});
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const next = page.getElementById('ballot');
    if (answer.ok && next) {
      document.getElementById('ballot').replaceWith(next);
      tell('');
    } else {
      tell(words.failed.replace('{reason}', page.getElementById('main')?.innerText.trim() ?? page.body.innerText), true);
    }
  } catch {
    tell(words.offline, true);
  }
  form.removeAttribute('aria-busy');
  isSending = false;
}

document.addEventListener('submit', event => {
  if (event.target.id !== 'pair' || !event.submitter) return;
  event.preventDefault();
  send(event.submitter);
});

document.addEventListener('keydown', event => {
  const choice = keys[event.key];
  if (!choice || event.ctrlKey || event.metaKey || event.altKey || event.target.closest('select, input')) return;
  const button = document.querySelector(`#pair [value="${choice}"]:enabled`);
  if (!button) return;
  event.preventDefault();
  button.click();
});
