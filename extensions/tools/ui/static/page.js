// What every page does: forms that ask before something is lost, and lists that stay current.
import {shown} from './pages/viewer.js';
export {shown, viewer} from './pages/viewer.js';

export const texts = JSON.parse(document.getElementById('texts').textContent);

export function tell(text, isBad = false) {
  const told = document.getElementById('told');
  told.textContent = shown(text);
  told.className = isBad ? 'bad' : '';
}

// Puts parts of this page in as the server has them by now.
export async function renew(...places) {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), 'text/html');
  for (const place of places) document.querySelector(place)?.replaceWith(page.querySelector(place) ?? '');
}

document.addEventListener('submit', event => {
  const question = event.submitter?.dataset.ask ?? event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

// Replaces the children that differ of an element with data-live by those of its page, so that a choice in it stays.
async function refresh(list) {
  if (document.hidden || list.contains(document.activeElement)) return;
  const answer = await fetch(list.dataset.live + location.search, {headers: {accept: 'text/html'}});
  if (!answer.ok) return;
  if (answer.redirected) return location.replace(answer.url);  // what was waited for is there
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const fresh = page.querySelector(`[data-live="${list.dataset.live}"]`);
  if (!fresh && list.dataset.live === location.pathname) return location.reload();  // nothing changes any more
  if (!fresh) return;
  const chosen = new Set([...list.querySelectorAll(':checked')].map(box => box.value));
  for (const box of fresh.querySelectorAll('[type=checkbox]')) box.checked = chosen.has(box.value);
  if (fresh.innerHTML !== list.innerHTML) list.replaceChildren(...fresh.children);
}

for (const list of document.querySelectorAll('[data-live]')) {
  setInterval(() => refresh(list).catch(() => {}), Number(list.dataset.every ?? 5000));
}
